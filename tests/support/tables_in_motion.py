"""A table of outcomes that changes as the stream, its replays and its operators change one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable, Field, write_deltalake
from deltalake.exceptions import DeltaError
from deltalake.schema import PrimitiveType

from outcome_tables import MODEL, SCHEMA, row

__all__ = ["CHANGES", "MovingTable", "outcome", "tombstone"]

_SERIAL = count(1)
_START = datetime(2026, 1, 1, tzinfo=UTC)


def outcome(
    offset: int, *, model_id: str = MODEL, failed: bool = False, length: int = 3
) -> dict[str, Any]:
    """A row with a vector that no other row has; every fifth offset has the same key."""
    serial = float(next(_SERIAL))
    vector = None if failed else [serial, *[1.0] * (length - 1)]
    return row(f"id {offset}", vector, offset=offset, model_id=model_id) | {
        "key": f"key {offset % 5}".encode(),
        "uri": f"file:///{offset}",
        "timestamp": _START + timedelta(seconds=offset),
        "media": {"type": "audio/wav", "duration_s": serial},
        "attributes": [("shop", f"shop {offset % 3}"), ("Größe", "klein")],
    }


def tombstone(offset: int, key: bytes) -> dict[str, Any]:
    error = {"code": "deleted", "stage": "message", "message": "the message has no value"}
    changes = {"key": key, "embedding": None, "error": error, "model_id": None}
    return outcome(offset) | changes


@dataclass
class MovingTable:
    """`rows` counts the offsets that were given out."""

    path: str
    rows: int = 0
    models: dict[int, str] = field(default_factory=dict)

    @staticmethod
    def create(
        folder: Path, *, rows: int, feed: bool = False, partitions: Sequence[str] = ()
    ) -> MovingTable:
        DeltaTable.create(
            str(folder),
            pa.schema(SCHEMA),
            partition_by=list(partitions),
            configuration={"delta.enableChangeDataFeed": str(feed).lower()},
        )
        table = MovingTable(str(folder))
        table.append(rows)
        return table

    def replace_all(self, *, rows: int) -> MovingTable:
        """Another table at the same path, with at least as many versions."""
        versions = self.version()
        shutil.rmtree(self.path)
        table = MovingTable.create(Path(self.path), rows=rows)
        while table.version() <= versions:
            table.append(1)
        return table

    def version(self) -> int:
        return DeltaTable(self.path).version()

    def append(
        self,
        number: int,
        *,
        operation: str = "STREAMING UPDATE",
        model_id: str = MODEL,
        length: int = 3,
    ) -> None:
        """New rows, of which every seventh is a failure."""
        offsets = range(self.rows, self.rows + number)
        self.models |= dict.fromkeys(offsets, model_id)
        rows = [
            outcome(one, model_id=model_id, failed=one % 7 == 6, length=length) for one in offsets
        ]
        self.rows += number
        self._append(rows, operation)

    def bury(self, keys: Sequence[int]) -> None:
        """Tombstones of the keys that these offsets have."""
        rows = [
            tombstone(self.rows + place, f"key {key % 5}".encode())
            for place, key in enumerate(keys)
        ]
        self.rows += len(rows)
        self._append(rows, "STREAMING UPDATE")

    def replace(self, offsets: Sequence[int], *, failed: bool = False) -> None:
        """As a replay does: rows of these offsets are made again."""
        rows = [
            outcome(one, model_id=self.models[one], failed=failed)
            for one in dict.fromkeys(offsets)
            if one in self.models
        ]
        if rows:
            self._merge(rows).when_matched_update_all().when_not_matched_insert_all().execute()

    def fail(self, offsets: Sequence[int]) -> None:
        self.replace(offsets, failed=True)

    def delete_by_merge(self, offsets: Sequence[int]) -> None:
        known = [one for one in dict.fromkeys(offsets) if one in self.models]
        rows = [outcome(one, model_id=self.models[one]) for one in known]
        if rows:
            self._merge(rows).when_matched_delete().execute()

    def delete(self, condition: str) -> None:
        DeltaTable(self.path).delete(condition)

    def overwrite(self, number: int) -> None:
        """All rows are replaced by those of the first offsets."""
        self.models |= dict.fromkeys(range(number), MODEL)
        self.rows = max(self.rows, number)
        rows = [outcome(one) for one in range(number)]
        write_deltalake(self.path, _to_table(rows), mode="overwrite", schema_mode="merge")

    def compact(self) -> None:
        DeltaTable(self.path).optimize.compact()

    def vacuum(self) -> None:
        DeltaTable(self.path).vacuum(0, dry_run=False, enforce_retention_duration=False)

    def restore(self, version: int) -> None:
        DeltaTable(self.path).restore(version)

    def try_restore(self, number: int) -> None:
        """To some earlier version, unless its files are gone or its columns are others."""
        with suppress(DeltaError):
            self.restore(number % (self.version() + 1))

    def checkpoint(self) -> None:
        DeltaTable(self.path).create_checkpoint()

    def alter(self) -> None:
        DeltaTable(self.path).alter.set_table_properties(
            {"delta.logRetentionDuration": "interval 40 days"}
        )

    def add_column(self) -> None:
        name = f"extra_{self.version()}"
        DeltaTable(self.path).alter.add_columns(Field(name, PrimitiveType("string")))

    def _append(self, rows: list[dict[str, Any]], operation: str) -> None:
        if operation == "WRITE":
            write_deltalake(self.path, _to_table(rows), mode="append", schema_mode="merge")
        else:
            self._commit(rows, operation)

    def _commit(self, rows: list[dict[str, Any]], operation: str) -> None:
        """As Spark's sink does, whose name of the operation deltalake has no way to give."""
        opened = DeltaTable(self.path)
        columns = opened.metadata().partition_columns
        groups: dict[tuple[str | None, ...], list[dict[str, Any]]] = {}
        for one in rows:
            values = tuple(None if one[name] is None else str(one[name]) for name in columns)
            groups.setdefault(values, []).append(one)
        actions: list[dict[str, Any]] = [{"commitInfo": {"operation": operation}}]
        for values, members in groups.items():
            name = f"part-{uuid4()}.parquet"
            data = _to_table(members).drop_columns(columns)
            pq.write_table(data, Path(self.path) / name, compression="zstd")
            add = {"path": name, "partitionValues": dict(zip(columns, values, strict=True))}
            size = (Path(self.path) / name).stat().st_size
            state = {"size": size, "modificationTime": 0, "dataChange": True}
            actions.append({"add": add | state})
        log = Path(self.path) / "_delta_log"
        written = log / f"{uuid4()}.tmp"
        written.write_text("\n".join(map(json.dumps, actions)))
        # Readers find the whole entry or none.
        written.rename(log / f"{opened.version() + 1:020}.json")

    def _merge(self, rows: list[dict[str, Any]]) -> Any:
        same = " AND ".join(
            f"t.{name} = s.{name}" for name in ("topic", "partition", "offset", "model_id")
        )
        return DeltaTable(self.path).merge(
            _to_table(rows), same, source_alias="s", target_alias="t", merge_schema=True
        )


def _to_table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=SCHEMA)


Change = Callable[[MovingTable, int], object]

CHANGES: Mapping[str, Change] = {
    "append": lambda table, number: table.append(1 + number % 4),
    "append of another writer": lambda table, number: table.append(
        1 + number % 3, operation="WRITE"
    ),
    "append of another model": lambda table, number: table.append(2, model_id="other"),
    "replace": lambda table, number: table.replace([number % 9, number % 5, number % 13]),
    "fail": lambda table, number: table.fail([number % 9, number % 7]),
    "bury": lambda table, number: table.bury([number % 5]),
    "delete": lambda table, number: table.delete(f"offset % 6 = {number % 6}"),
    "delete tombstones": lambda table, number: table.delete("error['code'] = 'deleted'"),
    "delete by merge": lambda table, number: table.delete_by_merge([number % 9, number % 4]),
    "overwrite": lambda table, number: table.overwrite(number % 5),
    "compact": lambda table, number: table.compact(),
    "vacuum": lambda table, number: table.vacuum(),
    "restore": lambda table, number: table.try_restore(number),
    "alter": lambda table, number: table.alter(),
    "add a column": lambda table, number: table.add_column(),
    "checkpoint": lambda table, number: table.checkpoint(),
}
"""What may happen to a table, varied by a number."""
