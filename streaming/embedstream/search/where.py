"""The condition of a search: `attributes['shop'] = 'a' AND timestamp > '2026-01-01'`.

It is a small part of SQL that has one meaning in all engines: columns of the rows, comparisons,
AND, OR, NOT, IN, BETWEEN, LIKE, ILIKE, IS NULL, lower and upper. Sqlglot parses it, the types are
checked here, and each engine gets text that leaves nothing to its own rules: texts are compared by
their bytes in UTF-8, times are points in time, and literals have the type of their column.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlglot
from sqlglot.errors import SqlglotError

from embedstream.follow.sql_text import quote_name
from embedstream.search.where_sql import (
    COLUMNS,
    FORMS,
    Dialect,
    Renderer,
    UnsupportedCondition,
)
from embedstream_core.errors import SetupError

__all__ = ["COLUMNS", "Condition", "Dialect", "parse_where"]

_SHOWN = 200


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition that was parsed and checked; `attributes` are the names that it uses, sorted."""

    text: str
    attributes: tuple[str, ...]
    _tree: Any

    def render(self, dialect: Dialect, *, attribute_columns: Mapping[str, str]) -> str:
        """Return the condition in an engine's SQL, over the columns of a collection.

        `attribute_columns` has the column of each attribute in `attributes`.
        """
        return Renderer(dialect, lambda name: quote_name(attribute_columns[name])).render(
            self._tree
        )


def parse_where(text: str) -> Condition:
    """Parse and check a condition.

    Raises:
        SetupError: it is no such condition; the message names the part that is wrong.
    """
    try:
        # A lone surrogate has no UTF-8, and PostgreSQL's texts cannot hold a NUL character.
        if "\0" in text or not text.encode():
            raise SetupError("the condition is empty, or holds a NUL character; leave that out")
        trees = sqlglot.parse(text)
    except UnicodeEncodeError:
        raise SetupError("the condition is not text in UTF-8; write it in UTF-8") from None
    except (SqlglotError, RecursionError) as error:
        raise _refuse(text, f"it cannot be parsed ({_shorten(error)})", FORMS) from None
    if len(trees) != 1 or trees[0] is None:
        raise _refuse(text, "it is not one condition", "leave out semicolons")
    attributes: set[str] = set()

    def collect(name: str) -> str:
        attributes.add(name)
        return quote_name(name)

    try:
        Renderer("datafusion", collect).render(trees[0])
    except UnsupportedCondition as error:
        raise _refuse(text, error.reason, error.remedy) from None
    return Condition(text, tuple(sorted(attributes)), trees[0])


def _shorten(error: Exception) -> str:
    """Return the first line of sqlglot's message, whose others are the text with colours."""
    lines = str(error).splitlines()
    return lines[0].rstrip(". ") if lines else type(error).__name__


def _refuse(text: str, reason: str, remedy: str) -> SetupError:
    line = " ".join(text.split())
    shown = line if len(line) <= _SHOWN else f"{line[:_SHOWN]}…"
    return SetupError(f'the condition "{shown}": {reason}; {remedy}')
