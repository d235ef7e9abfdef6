"""Write to an index, and be killed in the middle: `python killed_writer.py CONFIG TABLE FRACTION`.

Prints a line once the store is open, and waits for one. Of two writes of the same shape, the first
counts the calls of functions; in the second, SIGKILL comes after that fraction of them.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

from embedstream.config.sections import IndexConfig
from embedstream.index.stores.contract import Store, StoreWriter, Write
from embedstream.index.stores.kinds import open_store
from index_stores import build_keys, build_rows

__all__ = ["check"]

_ROWS = 50


def check(store: Store) -> None:
    """Assert that the collections hold what the state says: the rows of step 1, or of step 2."""
    state = store.read_state()
    assert state in ("1", "2")
    step = int(state)
    kept = [one for one in range((step + 1) * _ROWS) if one >= step * _ROWS or one % 2]
    for collection in ("one", "two"):
        assert sorted(store.list_keys(collection)["offset"].to_pylist()) == kept


def _build_writes(step: int) -> list[Write]:
    # New rows in two collections, and every second row of the step before leaves them.
    first = step * _ROWS
    rows = build_rows(range(first, first + _ROWS))
    deleted = build_keys(range(max(0, first - _ROWS), first, 2))
    return [Write("one", 8, rows, "append", deleted), Write("two", 8, rows, "upsert", deleted)]


def _count_calls(store: StoreWriter, step: int, *, kill_after: float = float("inf")) -> int:
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls >= kill_after:
            os.kill(os.getpid(), signal.SIGKILL)

    writes = _build_writes(step)
    sys.setprofile(count)
    store.write(writes, str(step))
    sys.setprofile(None)
    return calls


def _main(config: str, table: str, fraction: str) -> None:
    store = open_store(IndexConfig(**json.loads(config)), table=table, mode="write")
    store.write(_build_writes(0), "0")
    print("open", flush=True)
    sys.stdin.readline()
    calls = _count_calls(store, 1)
    _count_calls(store, 2, kill_after=calls * float(fraction))
    # The second write may have needed fewer calls.
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    _main(*sys.argv[1:])
