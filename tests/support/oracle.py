"""The judge after every stream: each message stands in the outcome table exactly once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from deltalake import DeltaTable, QueryBuilder

from embedstream_core.errors import Code

__all__ = ["Position", "Row", "all_rows", "check_outcomes", "read_rows"]

Row = dict[str, Any]


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """The identity of a message."""

    topic: str
    partition: int
    offset: int


def all_rows(table: Path) -> list[Row]:
    """Read the rows without Spark; why not by pyarrow: docs/decisions/0017."""
    found = QueryBuilder().register("outcomes", DeltaTable(table)).execute("SELECT * FROM outcomes")
    rows: list[Row] = pa.table(found).to_pylist()
    return rows


def read_rows(table: Path, *, model_id: str | None = None) -> dict[Position, Row]:
    """All rows, or one model's, by position, read without Spark.

    Fails where a position stands twice.
    """
    rows = all_rows(table)
    if model_id is not None:
        rows = [row for row in rows if row["model_id"] == model_id]
    counts = Counter(map(_position, rows))
    assert not [position for position, count in counts.items() if count > 1], "doubled rows"
    return {_position(row): row for row in rows}


def check_outcomes(
    table: Path, positions: Iterable[Position], *, model_id: str | None = None
) -> dict[Position, Row]:
    """Every position has one row, there is no other, and every row is an embedding or a failure."""
    rows = read_rows(table, model_id=model_id)
    expected = set(positions)
    assert not expected - rows.keys(), f"lost: {sorted(expected - rows.keys())[:5]}"
    assert not rows.keys() - expected, f"unknown: {sorted(rows.keys() - expected)[:5]}"
    for row in rows.values():
        _check_row(row)
    return rows


def _position(row: Row) -> Position:
    return Position(row["topic"], row["partition"], row["offset"])


def _check_row(row: Row) -> None:
    assert (row["embedding"] is None) != (row["error"] is None), row
    assert row["model_id"]
    assert row["processed_at"] >= row["timestamp"]
    if row["error"] is not None:
        assert row["error"]["code"] in set(Code)
        assert row["error"]["stage"]
        assert row["error"]["message"]
