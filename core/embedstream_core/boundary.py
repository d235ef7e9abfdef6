"""The boundary around one item: an exception that it causes becomes its outcome."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from embedstream_core.errors import Code, EmbedstreamError, ItemError, Stage
from embedstream_core.records import Failure

__all__ = ["attempt"]

Result = TypeVar("Result")

_log = logging.getLogger(__name__)

# An exception may quote the whole input; a row keeps the beginning.
_MAX_MESSAGE_CHARACTERS = 1000


def attempt(
    action: Callable[[], Result],
    stage: Stage,
    *,
    content_sha256: str | None = None,
    position: str | None = None,
) -> Result | Failure:
    """Run one item's part of a stage; return its result, or the item's failure.

    An exception that no code expected is a failure too, with the code `internal_error`, and is
    logged with its traceback and the item's `position`: a bug in a parser or a library never stops
    a stream.

    Raises:
        EmbedstreamError: the set-up or the system is to blame, not the item.
        MemoryError: this process has too little; the next attempt decodes in a child process.
    """
    try:
        return action()
    except ItemError as error:
        code, stage, message = error.code, error.stage, error.message
    except (EmbedstreamError, MemoryError):
        raise
    except Exception as error:
        known = {"position": position, "content_sha256": content_sha256}
        _log.exception(
            "unexpected error in one item's %s stage; it becomes a failure row",
            stage,
            extra={"fields": {name: value for name, value in known.items() if value}},
        )
        code, message = Code.INTERNAL_ERROR, f"{type(error).__name__}: {error}"
    # A lone surrogate, as in a file's name, is not UTF-8: Arrow would refuse the whole Arrow batch.
    text = message[:_MAX_MESSAGE_CHARACTERS].encode("utf-8", "replace").decode("utf-8")
    return Failure(code, stage, text, content_sha256=content_sha256)
