"""Names and texts in the SQL of DataFusion, LanceDB and PostgreSQL."""

from __future__ import annotations

__all__ = ["quote_name", "quote_text"]


def quote_name(name: str) -> str:
    """Return the name of a column, whatever characters it has."""
    return '"' + name.replace('"', '""') + '"'


def quote_text(text: str) -> str:
    """Return a text as a literal; a backslash is an ordinary character."""
    return "'" + text.replace("'", "''") + "'"
