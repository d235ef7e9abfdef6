"""The answer to a search: rows, and what they were found in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

__all__ = ["ANSWER_SCHEMA", "Answer", "Neighbour", "build_rows", "list_neighbours"]

ANSWER_SCHEMA = pa.schema(
    [
        ("similarity", pa.float32()),
        ("topic", pa.string()),
        ("partition", pa.int32()),
        ("offset", pa.int64()),
        ("model_id", pa.string()),
        ("image_id", pa.string()),
        ("uri", pa.string()),
        ("media_type", pa.string()),
        ("duration_s", pa.float64()),
        ("timestamp", pa.timestamp("us", "UTC")),
        ("attributes", pa.map_(pa.string(), pa.string())),
    ]
)
"""The columns of an answer. `similarity` is the cosine, from -1 to 1."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The rows nearest to a query, in the columns of `ANSWER_SCHEMA`, the nearest first.

    `source` says what was compared with the query: the rows of the index, which are those of
    `index_version` of the table, or those of `table_version`, the newest one. `attributes` has the
    attributes that the index keeps, or all. `unused` says why an index that exists did not answer.
    """

    rows: pa.Table
    model_id: str
    source: Literal["index", "table"]
    table_version: int
    index_version: int | None = None
    index_address: str = ""
    unused: str = ""

    @property
    def versions_behind(self) -> int:
        """The versions of the table that came after what was compared."""
        return 0 if self.index_version is None else max(0, self.table_version - self.index_version)

    def describe(self) -> str:
        """Return a line that says what was compared, and how new that is."""
        if self.source == "table":
            line = f"compared all rows of the table, version {self.table_version}"
            return f"{line}; the index was not used: {self.unused}" if self.unused else line
        lag = self.versions_behind
        age = f"{lag} version{'' if lag == 1 else 's'} behind the table" if lag else "up to date"
        return f"from the index at {self.index_address}, version {self.index_version}: {age}"


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A row near the query. `similarity` is the cosine, from -1 to 1."""

    similarity: float
    image_id: str
    uri: str | None
    topic: str
    partition: int
    offset: int
    media_type: str | None = None
    duration_s: float | None = None


def build_rows(rows: Iterable[dict[str, Any]]) -> pa.Table:
    """Return rows in the columns of `ANSWER_SCHEMA`, in the order of an answer.

    Rows of equal similarity are in the order of their topic, partition and offset.
    """

    def order(row: dict[str, Any]) -> tuple[Any, ...]:
        return -row["similarity"], row["topic"] or "", row["partition"], row["offset"]

    ordered = [row | {"attributes": row["attributes"] or []} for row in sorted(rows, key=order)]
    return pa.Table.from_pylist(ordered, schema=ANSWER_SCHEMA)


def list_neighbours(rows: pa.Table) -> list[Neighbour]:
    """Return the rows of an answer as objects."""
    columns = list(Neighbour.__dataclass_fields__)
    return [Neighbour(**row) for row in rows.select(columns).to_pylist()]
