"""Names of tables in a catalog of Spark: `catalog.schema.table`, or `schema.table`."""

from __future__ import annotations

import re

__all__ = ["check_table_name", "quote_table_name", "split_table_name"]

_PART = re.compile(r"`((?:[^`]|``)+)`|([^\s.`]+)")


def split_table_name(name: str) -> tuple[str, ...]:
    """Return the parts of a name; in backticks, as in SQL, a part may hold any character.

    Raises:
        ValueError: the name has other than two or three parts, or an empty one.
    """
    parts: list[str] = []
    end = -1
    while end < len(name):
        found = _PART.match(name, end + 1)
        if found is None or name[found.end() : found.end() + 1] not in ("", "."):
            parts = []
            break
        parts.append(found[1].replace("``", "`") if found[1] else found[2])
        end = found.end()
    if len(parts) not in (2, 3):
        raise ValueError(
            f"'{name}' is not the name of a table: write catalog.schema.table or schema.table, a "
            "part with a dot or a space in backticks; a folder is given as path"
        )
    return tuple(parts)


def check_table_name(name: str) -> str:
    """Return a name that `split_table_name` accepts; raise ValueError for any other text."""
    split_table_name(name)
    return name


def quote_table_name(name: str) -> str:
    """Return a name with every part in backticks, as SQL takes it."""
    return ".".join("`" + part.replace("`", "``") + "`" for part in split_table_name(name))
