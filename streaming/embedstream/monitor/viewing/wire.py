"""What the driver and its viewer's child processes send each other.

Requests are pickled: the driver makes them. Answers are JSON, so that a child that some content has
taken over can send nothing that would run code in the driver.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from embedstream.monitor.viewer import Card, FailureGroup, Found, Preview
from embedstream_core.errors import SetupError
from embedstream_core.redaction import redact_prose

__all__ = ["ANSWERS", "encode_answer", "encode_defect", "encode_refusal", "read_answer"]

_log = logging.getLogger(__name__)

ANSWERS: Final[Mapping[str, TypeAdapter[Any]]] = {
    "list_newest": TypeAdapter(list[Card]),
    "list_failures": TypeAdapter(list[FailureGroup]),
    "find_card": TypeAdapter(Card),
    "preview": TypeAdapter(Preview),
    "search": TypeAdapter(Found),
}
"""The type of the answer to each request."""

_ANSWER, _REFUSAL, _DEFECT = b"=", b"!", b"?"


def encode_answer(request: str, value: object) -> bytes:
    """Return the answer to a request."""
    return _ANSWER + ANSWERS[request].dump_json(value)


def encode_refusal(sentence: str) -> bytes:
    """Return an answer that becomes a SetupError."""
    return _REFUSAL + sentence.encode("utf-8", "replace")


def encode_defect(trace: str) -> bytes:
    """Return an answer for an exception that no code expected; its traceback is logged."""
    return _DEFECT + trace.encode("utf-8", "replace")


def read_answer(request: str, content: bytes) -> Any:
    """Return the answer to a request.

    Raises:
        SetupError: the request was refused or failed, or this is no answer to it.
    """
    kind, rest = content[:1], content[1:]
    if kind == _REFUSAL:
        raise SetupError(redact_prose(rest.decode("utf-8", "replace")))
    if kind == _ANSWER:
        try:
            return ANSWERS[request].validate_json(rest)
        except ValidationError as error:
            rest = repr(error).encode("utf-8", "replace")
    trace = rest.decode("utf-8", "replace")
    _log.warning("the viewer's process failed at %s:\n%s", request, trace)
    reason = redact_prose(trace.strip().rpartition("\n")[2])[:200]
    raise SetupError(f"the viewer cannot answer this: {reason}; the driver's log says where")
