"""Hide the rows of deleted keys.

A tombstone is an outcome row with the error code `deleted`. It hides every row of the same topic,
partition and message key that has a smaller offset, which is how Kafka compacts a topic. The rule
names offsets alone, so it does not matter in which order rows and tombstones are read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from embedstream.follow.table_reader import has_field, name_columns, select_batches
from embedstream_core.errors import Code

__all__ = ["TOMBSTONE_SCHEMA", "Tombstones", "read_tombstones"]

TOMBSTONE_SCHEMA = pa.schema(
    [
        pa.field("topic", pa.string()),
        pa.field("partition", pa.int32()),
        pa.field("key", pa.binary()),
        pa.field("offset", pa.int64()),
    ]
)


class Tombstones:
    """The deleted keys of a table, each with the largest offset of its tombstones."""

    def __init__(self) -> None:
        # By topic and partition, then by key: 130 bytes for each deleted key.
        self._offsets: dict[tuple[str | None, int], dict[bytes, int]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._offsets.values()))

    def add(self, rows: pa.RecordBatch | pa.Table) -> None:
        """Add tombstones in the columns of `TOMBSTONE_SCHEMA`; those without a key hide nothing."""
        for topic, partition, key, offset in _list_rows(rows):
            if key is not None:
                offsets = self._offsets.setdefault((topic, partition), {})
                offsets[key] = max(offset, offsets.get(key, offset))

    def hides(self, topic: str | None, partition: int, key: bytes | None, offset: int) -> bool:
        """Return whether a row is hidden."""
        last = self._offsets.get((topic, partition), {}).get(key) if key is not None else None
        return last is not None and offset < last

    def hide(self, rows: Any) -> Any:
        """Return an Arrow batch or table without its hidden rows.

        It needs the columns `topic`, `partition`, `key` and `offset`; it is returned as it is if
        no row is hidden.
        """
        if not self._offsets or not rows.num_rows:
            return rows
        kept = [not self.hides(*row) for row in _list_rows(rows)]
        return rows if all(kept) else rows.filter(pa.array(kept, pa.bool_()))

    def to_table(self) -> pa.Table:
        """Return the tombstones in the columns of `TOMBSTONE_SCHEMA`."""
        rows = [
            {"topic": topic, "partition": partition, "key": key, "offset": offset}
            for (topic, partition), offsets in self._offsets.items()
            for key, offset in offsets.items()
        ]
        return pa.Table.from_pylist(rows, schema=TOMBSTONE_SCHEMA)


def read_tombstones(opened: Any) -> Tombstones:
    """Return the tombstones of a version of a table, a `deltalake.DeltaTable`.

    Raises:
        SetupError: the table cannot be read.
    """
    found = Tombstones()
    if "key" in name_columns(opened) and has_field(opened, "error", "code"):
        columns = ", ".join(f'"{name}"' for name in TOMBSTONE_SCHEMA.names)
        condition = f"error['code'] = '{Code.DELETED}' AND key IS NOT NULL"
        for batch in select_batches(opened, f"{columns} FROM outcomes WHERE {condition}"):
            found.add(batch)
    return found


def _list_rows(
    rows: pa.RecordBatch | pa.Table,
) -> Iterable[tuple[str | None, int, bytes | None, int]]:
    columns: Mapping[str, list[Any]] = {
        name: rows.column(name).to_pylist() for name in TOMBSTONE_SCHEMA.names
    }
    return zip(*columns.values(), strict=True)
