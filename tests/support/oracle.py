"""The judge after every stream: each message stands in the outcome table exactly once.

A stream of several encoders has one row of a message for each that accepts it; which ones these
are, and what they hold, the core says (`core_outcomes`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from deltalake import DeltaTable, QueryBuilder

from embedstream_core.errors import Code
from embedstream_core.records import Failure, Outcome

__all__ = [
    "CAREFUL",
    "EXACT",
    "Identity",
    "Position",
    "Row",
    "all_rows",
    "check_messages",
    "check_outcomes",
    "read_outcomes",
    "read_rows",
]

Row = dict[str, Any]

EXACT = 1e-4
"""How far vectors may be apart, as a share of their length: the shape of a batch may change them by
less."""

CAREFUL = 1e-2
"""The same, where tasks are retried: these decode with Pillow, to 1 of 255 levels."""


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """The identity of a message."""

    topic: str
    partition: int
    offset: int


Identity = tuple[Position, str | None]
"""The identity of a row: its message and its model; None where no encoder was chosen."""


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


def read_outcomes(table: Path) -> dict[Identity, Row]:
    """All rows by identity; fails where an identity stands twice."""
    rows = all_rows(table)
    counts = Counter((_position(row), row["model_id"]) for row in rows)
    assert not [identity for identity, count in counts.items() if count > 1], "doubled rows"
    return {(_position(row), row["model_id"]): row for row in rows}


def check_messages(
    table: Path,
    positions: Iterable[Position],
    expect: Callable[[str], Iterable[Outcome]],
    *,
    tolerance: float = EXACT,
) -> dict[Identity, Row]:
    """Every message has exactly the rows that `expect` gives for its key, and there is no other."""
    rows = read_outcomes(table)
    keys = {position: row["key"].decode() for (position, _), row in rows.items()}
    expected = {
        (position, outcome.model_id): outcome
        for position, key in keys.items()
        for outcome in expect(key)
    }
    assert not set(positions) ^ keys.keys(), "lost or unknown messages"
    assert not expected.keys() - rows.keys(), f"lost: {[*expected.keys() - rows.keys()][:5]}"
    assert not rows.keys() - expected.keys(), f"unknown: {[*rows.keys() - expected.keys()][:5]}"
    for identity, row in rows.items():
        _check_equal(row, expected[identity], tolerance)
    return rows


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


def _check_equal(row: Row, expected: Outcome, tolerance: float) -> None:
    _check_form(row)
    assert row["media"] == (expected.media and asdict(expected.media)), (row, expected)
    assert row["content_sha256"] == expected.content_sha256, (row, expected)
    if isinstance(expected, Failure):
        assert row["error"] is not None, (row, expected)
        found = row["error"]["code"], row["error"]["stage"]
        assert found == (expected.code, expected.stage), (row, expected)
    else:
        assert row["error"] is None, row
        distance = np.linalg.norm(np.array(row["embedding"], np.float32) - expected.vector)
        assert distance <= tolerance * np.linalg.norm(expected.vector), (row, expected)


def _check_row(row: Row) -> None:
    is_tombstone = row["error"] is not None and row["error"]["code"] == Code.DELETED
    assert (row["model_id"] is None) == is_tombstone, row
    _check_form(row)


def _check_form(row: Row) -> None:
    assert (row["embedding"] is None) != (row["error"] is None), row
    assert row["processed_at"] >= row["timestamp"]
    if row["error"] is not None:
        assert row["error"]["code"] in set(Code)
        assert row["error"]["stage"]
        assert row["error"]["message"]
