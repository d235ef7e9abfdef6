"""The judge of an index: it holds the embeddings of its table, and nothing else.

The table is read by deltalake's query engine, and the rule of tombstones is applied row by row.
"""

from __future__ import annotations

import threading
from contextlib import closing
from typing import Any

import numpy as np
import pyarrow as pa
from deltalake import DeltaTable, QueryBuilder

from embedstream.config.sections import IndexConfig
from embedstream.index.indexer import update_index
from embedstream.index.reports import Report
from embedstream.index.rows import name_attribute_column
from embedstream.index.state import IndexState
from embedstream.index.stores.contract import Store
from embedstream.index.stores.kinds import open_store
from embedstream_core.errors import SetupError

__all__ = ["check_index", "find_state", "read_expected", "read_state", "update"]

Key = tuple[str, int, int]

_VECTORS = 20
"""So many vectors are looked up by their keys; all are compared as a set."""


def update(table: str, config: IndexConfig, *, rebuild: bool = False) -> list[Report]:
    """Bring the index to the table's version; return what it reported."""
    reports: list[Report] = []
    update_index(table, config, report=reports.append, stop=threading.Event(), rebuild=rebuild)
    return reports


def read_state(config: IndexConfig, table: str) -> IndexState:
    state = find_state(config, table)
    assert state is not None
    return state


def find_state(config: IndexConfig, table: str) -> IndexState | None:
    """The state of an index; None if there is none yet, or it is just being made."""
    with closing(open_store(config, table=table, mode="read")) as store:
        try:
            text = store.read_state()
        except SetupError:
            return None
    return None if text is None else IndexState.model_validate_json(text)


def check_index(table: str, config: IndexConfig) -> IndexState:
    """The index holds the table's last version, each model's rows with their vectors."""
    state = read_state(config, table)
    assert state.version == DeltaTable(table).version()
    assert state.full_pass is None
    assert state.partial is None
    expected = read_expected(table)
    with closing(open_store(config, table=table, mode="read")) as store:
        found = {model: _read_rows(store, one.name) for model, one in state.collections.items()}
        assert {model: rows.keys() for model, rows in found.items() if rows} == {
            model: rows.keys() for model, rows in expected.items()
        }
        for model, rows in expected.items():
            collection = state.collections[model]
            vectors = store.sample(collection.name, len(rows))
            assert sorted(vectors.tolist()) == sorted(row["embedding"] for row in rows.values())
            for number, (key, row) in enumerate(rows.items()):
                _check_row(found[model][key], row, config.attributes)
                if number % (1 + len(rows) // _VECTORS) == 0:
                    topic, partition, offset = key
                    vector = store.get_vector(
                        collection.name, topic=topic, partition=partition, offset=offset
                    )
                    assert vector is not None
                    assert vector.tolist() == row["embedding"], (model, key)
    return state


def read_expected(table: str) -> dict[str, dict[Key, dict[str, Any]]]:
    """The rows that an index must hold, by model and key."""
    found = QueryBuilder().register("outcomes", DeltaTable(table)).execute("SELECT * FROM outcomes")
    rows = pa.table(found).to_pylist()
    tombstones = [row for row in rows if row["error"] and row["error"]["code"] == "deleted"]
    expected: dict[str, dict[Key, dict[str, Any]]] = {}
    for row in rows:
        if row["embedding"] is None or any(_hides(tombstone, row) for tombstone in tombstones):
            continue
        key = row["topic"], row["partition"], row["offset"]
        assert key not in expected.setdefault(row["model_id"], {}), "doubled rows"
        expected[row["model_id"]][key] = row
    return expected


def _hides(tombstone: dict[str, Any], row: dict[str, Any]) -> bool:
    same = all(tombstone[name] == row[name] for name in ("topic", "partition", "key"))
    return tombstone["key"] is not None and same and tombstone["offset"] > row["offset"]


def _read_rows(store: Store, collection: str) -> dict[Key, dict[str, Any]]:
    count = store.count_rows(collection)
    keys = store.list_keys(collection)
    assert keys.num_rows == count
    if not count:
        return {}
    sample = store.sample(collection, 1)[0]
    rows = store.search(collection, np.asarray(sample, np.float32), count).to_pylist()
    assert len(rows) == count
    found = {(row["topic"], row["partition"], row["offset"]): row for row in rows}
    assert len(found) == count, "doubled rows"
    return found


def _check_row(found: dict[str, Any], row: dict[str, Any], attributes: tuple[str, ...]) -> None:
    assert found["message_key"] == (row["key"] and row["key"].hex())
    for name in ("image_id", "uri", "timestamp"):
        assert found[name] == row[name], (name, found, row)
    media = row.get("media") or {}
    assert found["media_type"] == media.get("type")
    assert found["duration_s"] == media.get("duration_s")
    present = dict(row.get("attributes") or {})
    for name in attributes:
        assert found[name_attribute_column(name)] == present.get(name)
