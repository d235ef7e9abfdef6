"""When rows became visible: each Delta commit's time, joined to the rows that it added.

A commit is visible once its file stands in the Delta log, so its time is that file's. Files that a
later compaction replaced are still on the disk.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

__all__ = ["Arrival", "arrivals", "await_rows", "latencies", "list_models", "percentiles"]

_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Arrival:
    """A row: when Kafka had its message, and when the table showed it; seconds since the epoch."""

    appended: float
    visible: float


def arrivals(table: Path) -> list[Arrival]:
    """The rows of a table, in the order of their commits."""
    return [
        Arrival(appended, visible)
        for visible, parquet in _added_files(table)
        for appended in _timestamps(parquet)
    ]


def latencies(table: Path, *, since: float = 0.0, until: float = float("inf")) -> list[float]:
    """Seconds from append to commit, of the messages that Kafka got in that time."""
    return [
        each.visible - each.appended for each in arrivals(table) if since <= each.appended < until
    ]


def list_models(table: Path) -> list[tuple[float, str]]:
    """When each commit became visible, and the model of its rows, which is one."""
    models = {
        visible: pq.read_table(parquet, columns=["model_id"])["model_id"][0].as_py()
        for visible, parquet in _added_files(table)
    }
    return sorted(models.items())


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    return {f"p{rank}": float(np.percentile(seconds, rank)) for rank in (50, 95, 99)}


def await_rows(
    table: Path, count: int, *, timeout_s: float, alive: Callable[[], bool] = lambda: True
) -> None:
    """Wait until the table shows so many rows; `alive` is false once none can come any more."""
    deadline = time.monotonic() + timeout_s
    while (rows := _rows(table)) < count:
        if not alive():
            raise SystemExit(f"the stream ended after {rows} of {count} rows")
        if time.monotonic() > deadline:
            raise SystemExit(f"only {rows} of {count} rows in {timeout_s:g} s")
        time.sleep(_POLL_S)


def _rows(table: Path) -> int:
    return sum(pq.read_metadata(parquet).num_rows for _, parquet in _added_files(table))


def _added_files(table: Path) -> Iterator[tuple[float, Path]]:
    """Each Parquet file with new rows, and when it was committed; compactions change no data."""
    for commit in sorted((table / "_delta_log").glob("*.json")):
        visible = commit.stat().st_mtime
        for line in commit.read_text().splitlines():
            added = json.loads(line).get("add")
            if added is not None and added["dataChange"]:
                yield visible, table / unquote(added["path"])


def _timestamps(parquet: Path) -> list[float]:
    """Seconds since the epoch; Parquet's older timestamps, which Spark writes, name no zone."""
    column = pq.read_table(parquet, columns=["timestamp"])["timestamp"]
    microseconds = column.cast(pa.timestamp("us", "UTC")).cast(pa.int64())
    return [moment / 1e6 for moment in microseconds.to_pylist()]
