"""Collect changes for one write to the store."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from embedstream.follow.data_files import select_embedded
from embedstream.follow.tombstones import Tombstones
from embedstream.index.rows import KEY, build_rows
from embedstream.index.state import Collection
from embedstream.index.stores.contract import Write

__all__ = ["BYTES_PER_WRITE", "ROWS_PER_WRITE", "Transaction", "name_collection"]

_LOG = logging.getLogger(__name__)

# A write holds its rows two or three times in memory.
BYTES_PER_WRITE = 64 * 2**20
ROWS_PER_WRITE = 50_000

_Mode = Literal["append", "upsert"]


def name_collection(model_id: str, *, generation: int) -> str:
    """Return the name of a model's collection: up to 60 characters of a to z, 0 to 9 and `_`.

    It begins with a letter, and is another one for each model and generation.
    """
    slug = re.sub(r"[^a-z0-9]+", "_", model_id.lower()).strip("_")[:32].strip("_")
    digest = hashlib.sha256(model_id.encode()).hexdigest()[:8]
    return f"m_{slug}_{digest}_g{generation}"


@dataclass
class _Segment:
    """Changes that may be done in any order: rows of one mode, deleted keys, tombstones."""

    mode: _Mode
    outcomes: list[pa.Table] = field(default_factory=list)
    deleted: list[pa.Table] = field(default_factory=list)
    tombstones: Tombstones = field(default_factory=Tombstones)


class Transaction:
    """Changes in the order of the commits, until `build_writes` turns them into writes.

    `collections` are those that the index has, and those that the writes will create.
    """

    def __init__(
        self,
        collections: Mapping[str, Collection],
        *,
        generation: int,
        attributes: Sequence[str],
    ) -> None:
        self.collections = dict(collections)
        self._generation = generation
        self._attributes = attributes
        self._segments: list[_Segment] = []
        self.rows = 0
        self.bytes = 0

    def begin(self, mode: _Mode) -> None:
        """Begin a commit's changes; appends that follow one another are written together."""
        if mode == "upsert" or not self._segments or self._segments[-1].mode == "upsert":
            self._segments.append(_Segment(mode))

    def add(self, outcomes: pa.Table) -> None:
        """Add new rows, of which those without an embedding are left out."""
        outcomes = select_embedded(outcomes)
        if outcomes.num_rows:
            self._segments[-1].outcomes.append(outcomes)
            self.rows += outcomes.num_rows
            self.bytes += outcomes.nbytes

    def delete(self, keys: pa.Table) -> None:
        """Delete rows, by the columns of `IDENTITY`."""
        if keys.num_rows:
            self._segments[-1].deleted.append(keys)
            self.rows += keys.num_rows

    def bury(self, tombstones: pa.Table) -> None:
        """Delete the rows that tombstones hide, those of the same commits included."""
        self._segments[-1].tombstones.add(tombstones)
        self.rows += tombstones.num_rows

    def build_writes(self) -> list[Write]:
        """Return the writes, and add new collections to `collections`."""
        return [one for segment in self._segments for one in self._write_segment(segment)]

    def _write_segment(self, segment: _Segment) -> Iterator[Write]:
        rows = self._group_rows(segment)
        deleted = _group(segment.deleted)
        buried = _list_message_keys(segment.tombstones)
        for model_id in {**self.collections, **rows}:
            if model_id not in rows and model_id not in deleted and buried is None:
                continue
            is_new = model_id not in self.collections
            if is_new:
                dimension = rows[model_id].column("embedding").type.list_size
                name = name_collection(model_id, generation=self._generation)
                self.collections[model_id] = Collection(name=name, dimension=dimension)
            collection = self.collections[model_id]
            keys = deleted.get(model_id)
            yield Write(
                collection=collection.name,
                dimension=collection.dimension,
                rows=rows.get(model_id),
                mode="append" if is_new else segment.mode,
                deleted=None if keys is None or is_new else keys.select(KEY),
                deleted_keys=None if is_new else buried,
            )

    def _group_rows(self, segment: _Segment) -> dict[str, pa.Table]:
        """Return the visible rows of each model, in the columns of its collection."""
        visible = [segment.tombstones.hide(one) for one in segment.outcomes]
        return {
            model_id: built
            for model_id, outcomes in _group(visible).items()
            if (built := self._build(model_id, outcomes)).num_rows
        }

    def _build(self, model_id: str, outcomes: pa.Table) -> pa.Table:
        lengths = pc.list_value_length(outcomes.column("embedding"))
        known = self.collections.get(model_id)
        dimension = known.dimension if known else pc.max(lengths).as_py()
        fits = pc.fill_null(pc.equal(lengths, dimension), False)
        if others := len(fits) - pc.sum(fits, min_count=0).as_py():
            _LOG.warning(
                "%d rows of %s are not in the index: their embeddings do not have %d floats",
                others,
                model_id,
                dimension,
            )
            outcomes = outcomes.filter(fits)
        rows = build_rows(outcomes, dimension=dimension, attributes=self._attributes)
        return _drop_doubled(rows)


def _group(tables: Sequence[pa.Table]) -> dict[str, pa.Table]:
    """Return the rows of each model."""
    parts: dict[str, list[pa.Table]] = {}
    for table in tables:
        models = table.column("model_id").unique().to_pylist()
        for model_id in models:
            of_model = table if len(models) == 1 else table.filter(pc.field("model_id") == model_id)
            parts.setdefault(model_id, []).append(of_model)
    return {model_id: pa.concat_tables(one) for model_id, one in parts.items()}


def _list_message_keys(tombstones: Tombstones) -> pa.Table | None:
    """Return the tombstones as `Write.deleted_keys` has them."""
    if not len(tombstones):
        return None
    table = tombstones.to_table()
    keys = pa.array([key.hex() for key in table.column("key").to_pylist()], pa.string())
    return table.set_column(table.schema.get_field_index("key"), "message_key", keys)


def _drop_doubled(rows: pa.Table) -> pa.Table:
    """Return the last row of each key: a table that others write to may hold a key twice."""
    keys = rows.select(KEY).append_column("row", pa.array(range(rows.num_rows), pa.int64()))
    last = keys.group_by(list(KEY), use_threads=False).aggregate([("row", "max")])
    if last.num_rows == rows.num_rows:
        return rows
    return rows.take(last.column("row_max"))
