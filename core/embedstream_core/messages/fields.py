"""JMESPath expressions that find an item's fields in a message of any shape."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import jmespath
from jmespath.exceptions import JMESPathError, JMESPathTypeError, ParseError
from jmespath.functions import Functions
from jmespath.parser import ParsedResult

from embedstream_core.errors import Code, ItemError, SetupError, Stage, explain

__all__ = ["CONTENT_FIELDS", "FieldExpressions"]

CONTENT_FIELDS = ("uri", "data", "text")
"""The fields that carry an item's content, one of them in each message."""


@dataclass(frozen=True)
class FieldExpressions:
    """Where a message has its fields: a JMESPath expression for each, None for a field it lacks.

    `attributes` yields an object, whose members become the item's attributes. `delete` yields a
    boolean: whether the message deletes its key, as one without a value does.

    Raises:
        SetupError: an expression is not valid, or none finds content.
    """

    id: str | None = None
    uri: str | None = None
    data: str | None = None
    text: str | None = None
    attributes: str | None = None
    delete: str | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            expression = getattr(self, field.name)
            if expression is not None:
                _check(field.name, expression)
        if all(getattr(self, name) is None for name in CONTENT_FIELDS):
            raise SetupError(
                "message.fields names no content: give an expression for 'uri', 'data' or 'text'"
            )

    def find(self, name: str, document: object) -> Any:
        """Return the value of a field in a document; None if the document has none.

        Raises:
            ItemError: the expression cannot be evaluated on this document.
        """
        expression = getattr(self, name)
        if expression is None:
            return None
        try:
            return _compile(expression).search(document)
        except MemoryError:
            raise
        # The document is not trusted, and the library lets Python's own errors through: a TypeError
        # for a string sought in a number, an OverflowError, a RecursionError.
        except Exception as error:
            reason = explain(error)
            if isinstance(error, JMESPathTypeError):
                # Its own text has the value, which may be large, or a secret.
                types = " or ".join(error.expected_types)
                reason = f"{error.function_name}() takes {types}, not {error.actual_type}"
            raise ItemError(
                Code.MESSAGE_MALFORMED,
                Stage.MESSAGE,
                f"the expression {expression!r} of message.fields.{name} fails on this message: "
                f"{reason}",
            ) from None


@lru_cache(maxsize=256)
def _compile(expression: str) -> ParsedResult:
    """Compile an expression, once in this process."""
    with warnings.catch_warnings():
        # Of literals such as `bar` without quotes, which JMESPath once allowed.
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        return jmespath.compile(expression)


def _check(name: str, expression: str) -> None:
    """Raise SetupError if an expression cannot be evaluated on any document."""
    try:
        wrong = _find_wrong_use({"type": "whole", "children": [_compile(expression).parsed]})
    except ParseError as error:
        position = error.lex_position
        marked = f"{expression[:position]}>>>{expression[position:]}"
        wrong = f"it is wrong at position {position}, marked by '>>>' in '{marked}'"
    except JMESPathError as error:
        wrong = str(error)
    except RecursionError:
        wrong = "it is nested too deeply"
    if wrong:
        raise SetupError(
            f"the expression {expression!r} of message.fields.{name} is not JMESPath: {wrong}"
        )


def _find_wrong_use(node: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the use of functions, which JMESPath finds at the evaluation."""
    children = node.get("children", ())
    if node["type"] == "function_expression":
        known = Functions.FUNCTION_TABLE
        if node["value"] not in known:
            return f"unknown function '{node['value']}'; known: {', '.join(sorted(known))}"
        signature = known[node["value"]]["signature"]
        missing = len(signature) - len(children)
        is_variadic = bool(signature) and bool(signature[-1].get("variadic"))
        if missing > 0 or (missing < 0 and not is_variadic):
            return (
                f"function '{node['value']}' has {len(children)} arguments and takes "
                f"{len(signature)}{' or more' if is_variadic else ''}"
            )
    # The children of a slice are numbers.
    nodes = [child for child in children if isinstance(child, dict)]
    if node["type"] != "function_expression" and any(one["type"] == "expref" for one in nodes):
        return "'&' makes an argument of a function, not a value"
    return next(filter(None, map(_find_wrong_use, nodes)), None)
