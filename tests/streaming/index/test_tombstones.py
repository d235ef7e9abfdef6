"""Tombstones hide the earlier rows of their topic, partition and key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from embedstream.follow.table_reader import open_table, select_batches
from embedstream.follow.tombstones import TOMBSTONE_SCHEMA, read_tombstones
from outcome_tables import row, write_table


def with_key(key: bytes | None, offset: int, **changes: Any) -> dict[str, Any]:
    return row(f"row {offset}", [1.0, 2.0], offset=offset) | {"key": key} | changes


def tombstone(key: bytes | None, offset: int, **changes: Any) -> dict[str, Any]:
    error = {"code": "deleted", "stage": "message", "message": "the message has no value"}
    return with_key(key, offset) | {"embedding": None, "model_id": None, "error": error} | changes


def visible(table: str) -> list[int]:
    """The offsets of the rows that no tombstone hides."""
    opened = open_table(table)
    tombstones = read_tombstones(opened)
    wanted = 'topic, "partition", key, "offset" FROM outcomes WHERE embedding IS NOT NULL'
    batches = map(tombstones.hide, select_batches(opened, wanted))
    return sorted(offset for batch in batches for offset in batch.column("offset").to_pylist())


def test_only_earlier_rows_of_the_same_topic_partition_and_key_are_hidden(tmp_path: Path) -> None:
    rows = [
        with_key(b"a", 1),
        with_key(b"a", 7),
        with_key(b"b", 2),
        with_key(b"A", 3),
        with_key(b"a\0", 4),
        with_key(None, 5),
        with_key(b"a", 1, partition=1) | {"offset": 11},
        with_key(b"a", 1, topic="other") | {"offset": 12},
    ]
    table = write_table(tmp_path, rows, [tombstone(b"a", 20), tombstone(None, 21)])

    assert visible(table) == [2, 3, 4, 5, 11, 12]


def test_a_row_after_the_tombstone_is_visible_and_the_last_tombstone_counts(tmp_path: Path) -> None:
    rows = [with_key(b"a", offset) for offset in (1, 5, 9)]
    table = write_table(tmp_path, rows, [tombstone(b"a", 6)], [tombstone(b"a", 3)])

    assert visible(table) == [9]
    tombstones = read_tombstones(open_table(table))
    assert len(tombstones) == 1
    expected = [{"topic": "images", "partition": 0, "key": b"a", "offset": 6}]
    assert tombstones.to_table().to_pylist() == expected
    assert tombstones.to_table().schema == TOMBSTONE_SCHEMA


def test_a_failure_is_no_tombstone(tmp_path: Path) -> None:
    failure = row("failed", None, offset=9) | {"key": b"a"}
    table = write_table(tmp_path, [with_key(b"a", 1), failure])

    assert visible(table) == [1]
    assert not len(read_tombstones(open_table(table)))
