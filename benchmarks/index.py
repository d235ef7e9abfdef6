"""The vector index: the first full pass, search, and how soon a commit is found.

    python benchmarks/index.py [--rows 1000000] [--commits 120]

A table of seeded clusters, 384 floats in a row, is written with deltalake. The index reads it in a
full pass, as `embedstream index` does, and builds its approximate index. Searches with vectors that
are not in the table are then timed, warm, and compared with numpy over a matrix in memory and with
a scan of the table. At last `embedstream index --continuous` runs as a process while commits of 20
rows are appended, one per second; a commit's latency ends when another reader's search finds its
last row. These commits are plain appends of deltalake, which the index cannot tell from those of a
replay: it looks for each key. A stream's own appends are cheaper.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import pyarrow as pa
from deltalake import DeltaTable, write_deltalake

from embedstream.config.sections import IndexConfig
from embedstream.follow.table_reader import open_table
from embedstream.index.indexer import update_index
from embedstream.index.reports import AnnBegun, AnnBuilt, FullPassBegun, Report
from embedstream.index.state import Collection, IndexState
from embedstream.index.stores.contract import Store
from embedstream.index.stores.kinds import open_store
from embedstream.search.scan import scan_table
from embedstream.table.rows import OUTCOME_ARROW_SCHEMA
from report import print_table, write_result

MODEL = "clusters/384"
DIMENSION = 384
CENTRES = 2000
ROWS_PER_COMMIT = 50_000
QUERIES = 300
WARM_UP = 50
EXACT_QUERIES = 20
K = 10
SCANS = 3
FRESH_ROWS = 20
WAIT_S = 60.0


Vectors = npt.NDArray[np.float32]
Row = dict[str, float]


def main() -> None:
    arguments = _arguments()
    folder = Path(tempfile.mkdtemp(prefix="embedstream-", dir=arguments.folder))
    try:
        table, config = str(folder / "table"), IndexConfig(path=str(folder / "index"))
        clusters = Clusters(seed=7)
        vectors = clusters.draw(arguments.rows)
        _write_table(table, vectors)
        full_pass = _pass_over(table, config, arguments.rows)
        with closing(open_store(config, table=table, mode="read")) as store:
            collection = _read_collection(store)
            search = _search(store, collection, vectors, clusters.draw(QUERIES))
            peers = _search_otherwise(table, vectors, clusters.draw(SCANS))
            del vectors
            fresh = _follow(table, config, store, clusters, arguments)
    finally:
        shutil.rmtree(folder)
    _report(arguments, collection, full_pass, search, peers, fresh)


class Clusters:
    """Vectors around 2,000 centres, with noise of 0.7 of their spread and of various lengths."""

    def __init__(self, *, seed: int) -> None:
        self._generator = np.random.default_rng(seed)
        self._centres = self._generator.standard_normal((CENTRES, DIMENSION)).astype(np.float32)

    def draw(self, rows: int) -> Vectors:
        drawn = np.empty((rows, DIMENSION), np.float32)
        for start in range(0, rows, ROWS_PER_COMMIT):
            part = drawn[start : start + ROWS_PER_COMMIT]
            part[:] = self._generator.standard_normal(part.shape, dtype=np.float32)
            part *= 0.7
            part += self._centres[self._generator.integers(CENTRES, size=len(part))]
            part *= self._generator.uniform(0.5, 2, size=(len(part), 1)).astype(np.float32)
        return drawn


def _write_table(table: str, vectors: Vectors) -> None:
    for start in range(0, len(vectors), ROWS_PER_COMMIT):
        _append(table, start, vectors[start : start + ROWS_PER_COMMIT])
    DeltaTable(table).alter.set_table_properties(
        {"embedstream.model_id": MODEL}, raise_if_not_exists=False
    )


def _append(table: str, first: int, vectors: Vectors) -> None:
    """Commit rows whose offsets begin with `first`."""
    count = len(vectors)
    offsets = np.arange(first, first + count)
    offset_type = pa.int32()
    columns = {
        "topic": ["clusters"] * count,
        "partition": np.zeros(count, np.int32),
        "offset": offsets,
        "key": [f"{one:012d}".encode() for one in offsets],
        "timestamp": pa.array(offsets * 1000).cast(pa.timestamp("us", "UTC")),
        "image_id": [f"item-{one}" for one in offsets],
        "uri": [f"s3://items/{one}.jpg" for one in offsets],
        "model_id": [MODEL] * count,
        "embedding": pa.ListArray.from_arrays(
            pa.array(np.arange(count + 1) * DIMENSION, offset_type), pa.array(vectors.ravel())
        ),
    }
    rows = [
        pa.array(columns[one.name], one.type) if one.name in columns else pa.nulls(count, one.type)
        for one in OUTCOME_ARROW_SCHEMA
    ]
    write_deltalake(table, pa.table(rows, schema=OUTCOME_ARROW_SCHEMA), mode="append")


@contextmanager
def _measure(into: Row, name: str) -> Iterator[None]:
    """Add the wall and the CPU seconds of this process."""
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    into[f"{name}_s"] = time.perf_counter() - wall
    into[f"{name}_cpu_s"] = time.process_time() - cpu


def _pass_over(table: str, config: IndexConfig, rows: int) -> Row:
    measured: Row = {}
    times: dict[type, tuple[float, float]] = {}

    def take(report: Report) -> None:
        times[type(report)] = time.perf_counter(), time.process_time()

    with _measure(measured, "whole_pass"):
        update_index(table, config, report=take, stop=threading.Event())
    began, copied = times[FullPassBegun], times.get(AnnBegun)
    if copied is not None:
        built = times[AnnBuilt]
        measured["copy_s"], measured["copy_cpu_s"] = copied[0] - began[0], copied[1] - began[1]
        measured["ann_s"], measured["ann_cpu_s"] = built[0] - copied[0], built[1] - copied[1]
        measured["copied_rows_per_s"] = rows / measured["copy_s"]
    measured["rows_per_s"] = rows / measured["whole_pass_s"]
    measured["cpu_us_per_row"] = 1e6 * measured["whole_pass_cpu_s"] / rows
    measured["peak_memory_mb"] = psutil.Process().memory_info().rss / 2**20
    return measured


def _read_collection(store: Store) -> Collection:
    text = store.read_state()
    assert text is not None
    return IndexState.model_validate_json(text).collections[MODEL]


def _search(
    store: Store, collection: Collection, vectors: Vectors, queries: Vectors
) -> dict[str, Row]:
    """Time the approximate search, and the exact one, which has no recall to measure."""
    nearest = _compare_all(vectors, queries)
    measured = {}
    efforts: dict[str, int | None] = {"exact": None}
    if collection.ann is not None:
        efforts["approximate"] = collection.ann.effort
    for name, effort in efforts.items():
        count = len(queries) if effort else EXACT_QUERIES

        def ask(query: Vectors, effort: int | None = effort) -> list[int]:
            found = store.search(collection.name, query, K, effort=effort)
            return list(found["offset"].to_pylist())

        answers, row = _time(ask, queries[:count], warm_up=WARM_UP if effort else 1)
        hits = sum(len({*one} & {*near}) for one, near in zip(answers, nearest, strict=False))
        measured[name] = {**row, "recall": hits / (K * count)}
    return measured


def _search_otherwise(table: str, vectors: Vectors, queries: Vectors) -> dict[str, Row]:
    """Time a scan of the table, and numpy over a matrix of unit vectors in memory."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def multiply(query: Vectors) -> list[int]:
        similarities = unit @ query
        best = np.argpartition(-similarities, K)[:K]
        return list(best[np.argsort(-similarities[best])])

    opened = open_table(table)

    def scan(query: Vectors) -> list[int]:
        found = scan_table(opened, query, model_id=MODEL, k=K)
        return [int(one) for one in found["offset"].to_pylist()]

    many = np.repeat(queries, 10, axis=0)
    return {
        "numpy, matrix in memory": _time(multiply, many)[1],
        "scan of the table": _time(scan, queries, warm_up=1)[1],
    }


def _compare_all(vectors: Vectors, queries: Vectors) -> npt.NDArray[np.int64]:
    """Return the rows with the greatest cosines, of shape (queries, K), in any order."""
    lengths = np.linalg.norm(vectors, axis=1)
    found = [
        np.argpartition(-(vectors @ part.T / lengths[:, None]), K, axis=0)[:K].T
        for part in np.array_split(queries, 10)
    ]
    return np.concatenate(found)


def _time(
    ask: Callable[[Vectors], list[int]], queries: Vectors, *, warm_up: int = WARM_UP
) -> tuple[list[list[int]], Row]:
    """Return the answers, and the milliseconds of a question."""
    for query in queries[:warm_up]:
        ask(query)
    answers, seconds, cpu = [], [], time.process_time()
    for query in queries:
        start = time.perf_counter()
        answers.append(ask(query))
        seconds.append(time.perf_counter() - start)
    cpu_ms = 1000 * (time.process_time() - cpu) / len(queries)
    return answers, {**_percentiles(seconds), "cpu_ms": cpu_ms}


def _percentiles(seconds: Sequence[float]) -> Row:
    return {f"p{one}_ms": 1000 * float(np.percentile(seconds, one)) for one in (50, 99)}


def _follow(
    table: str,
    config: IndexConfig,
    store: Store,
    clusters: Clusters,
    arguments: argparse.Namespace,
) -> Row:
    """Commit rows at a steady pace; measure until a search finds the last row of each commit."""
    seconds: list[float] = []
    with _run_index(table, config) as child:
        for number in range(arguments.warm_commits + arguments.commits):
            due = time.perf_counter() + arguments.interval_s
            first = arguments.rows + number * FRESH_ROWS
            vectors = clusters.draw(FRESH_ROWS)
            _append(table, first, vectors)
            found = _await_row(store, vectors[-1], first + FRESH_ROWS - 1)
            if number == arguments.warm_commits:
                cpu = _sum_cpu(child)
            if number >= arguments.warm_commits:
                seconds.append(found)
            time.sleep(max(0, due - time.perf_counter()))
        cpu_ms = 1000 * (_sum_cpu(child) - cpu) / arguments.commits
        memory = child.memory_info().rss / 2**20
    return {
        **_percentiles(seconds),
        "max_ms": 1000 * max(seconds),
        "cpu_ms_per_commit": cpu_ms,
        "memory_mb": memory,
    }


def _await_row(store: Store, vector: Vectors, offset: int) -> float:
    """Return the seconds until a search finds the row."""
    start = time.perf_counter()
    while time.perf_counter() - start < WAIT_S:
        collection = _read_collection(store)
        effort = collection.ann.effort if collection.ann else None
        found = store.search(collection.name, vector, 1, effort=effort)
        if found["offset"].to_pylist() == [offset]:
            return time.perf_counter() - start
        time.sleep(0.005)
    raise SystemExit(f"row {offset} was not found within {WAIT_S:.0f} s")


@contextmanager
def _run_index(table: str, config: IndexConfig) -> Iterator[psutil.Process]:
    settings = Path(table).parent / "stream.yaml"
    # The index reads the table alone: there is no broker, and no checkpoint.
    values = {
        "kafka": {"bootstrap_servers": "localhost:9092", "subscribe": "clusters"},
        "checkpoint": f"{table}-checkpoint",
        "table": {"path": table},
        "index": {"path": config.path},
    }
    settings.write_text(json.dumps(values))
    command = [sys.executable, "-m", "embedstream", "index", str(settings), "--continuous"]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield psutil.Process(child.pid)
        child.send_signal(signal.SIGTERM)
        assert child.wait(WAIT_S) == 0
    finally:
        child.kill()
        child.wait()


def _sum_cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _report(
    arguments: argparse.Namespace,
    collection: Collection,
    full_pass: Row,
    search: dict[str, Row],
    peers: dict[str, Row],
    fresh: Row,
) -> None:
    ann: Any = collection.ann and collection.ann.model_dump()
    print_table(
        f"First full pass over {arguments.rows:,} vectors of {DIMENSION} floats",
        ["", "value"],
        list(full_pass.items()),
    )
    asked = {f"embedstream, {name}": row for name, row in search.items()} | peers
    columns = ["p50_ms", "p99_ms", "cpu_ms", "recall"]
    print_table(
        f"Search, k = {K}, warm",
        ["", *columns],
        [(name, *(row.get(one, "") for one in columns)) for name, row in asked.items()],
    )
    print_table(
        f"From a commit of {FRESH_ROWS} rows to its being found, a commit every "
        f"{arguments.interval_s} s",
        ["", "value"],
        list(fresh.items()),
    )
    facts = {"rows": arguments.rows, "dimension": DIMENSION, "commits": arguments.commits}
    measured = {"full_pass": full_pass, "search": asked, "fresh": fresh}
    write_result("index", {**facts, "ann": ann, **measured})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--commits", type=int, default=120)
    parser.add_argument("--warm-commits", type=int, default=10)
    parser.add_argument("--interval-s", type=float, default=1.0, help="from commit to commit")
    parser.add_argument("--folder", type=Path, help="for the table and the index; default /tmp")
    return parser.parse_args()


if __name__ == "__main__":
    main()
