"""The cost of a micro-batch with a long log, and while the table's files are compacted.

    python benchmarks/log_growth.py [--batches 100] [--commits 2000]

A topic of small pictures is drained with two of them in a micro-batch, so that nearly all of its
time is Spark's and Delta's own: first into a new table, then, by the same query on the same
checkpoint, when another writer has given the table as many commits more, each of one small file.
The first micro-batches of a query are left out: the JVM warms up.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from itertools import cycle, islice
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
from deltalake import DeltaTable, QueryBuilder, write_deltalake
from pyspark.sql import SparkSession

from embedstream.config.sections import StreamConfig
from embedstream.kafka.admin import create_topic
from embedstream.stream.job import start_stream
from embedstream.table.delta import PROPERTIES
from embedstream_core.models.card import PreparedModel
from images import jpegs
from report import bars, print_table, write_result
from stream_runs import CORES, opened, send, settings, workplace

DISTINCT = 50
WARM_UP = 20
CHECKPOINT_EVERY = int(PROPERTIES["delta.checkpointInterval"])

Row = dict[str, float]


def main() -> None:
    arguments = _arguments()
    values = list(islice(cycle(jpegs(DISTINCT, size=(100, 75))), CORES * arguments.batches))
    with workplace() as place:
        create_topic(place.servers, "pictures", partitions=CORES)
        config = settings(
            place,
            "pictures",
            options={"spark.sql.streaming.numRecentProgressUpdates": str(2 * arguments.batches)},
            kafka={
                "bootstrap_servers": place.servers,
                "subscribe": "pictures",
                "max_offsets_per_trigger": CORES,
            },
        )
        with opened(config) as (spark, model):
            send(place.servers, "pictures", values)
            short = _drained(spark, config, model)
            growth_s = _grow(config.table.path, arguments.commits)
            send(place.servers, "pictures", values)
            long = _drained(spark, config, model)
        table = DeltaTable(config.table.path)
        compactions = [each["operation"] for each in table.history()].count("OPTIMIZE")
    told = {"version": table.version(), "compactions": compactions, "growth_s": growth_s}
    _report(short, long, told)


def _drained(spark: SparkSession, config: StreamConfig, model: PreparedModel) -> list[Any]:
    """The micro-batches that did all that the topic holds."""
    query = start_stream(spark, config, [model], until="drained").query
    query.awaitTermination()
    return [batch for batch in query.recentProgress if batch.numInputRows][WARM_UP:]


def _grow(path: str, commits: int) -> float:
    """Append so many files of one row; the seconds that took."""
    started = time.perf_counter()
    table = DeltaTable(path)
    outcomes = QueryBuilder().register("outcomes", table)
    row = pa.table(outcomes.execute("SELECT * FROM outcomes LIMIT 1"))
    for number in range(1, commits + 1):
        write_deltalake(table, row, mode="append")
        if number % CHECKPOINT_EVERY == 0:
            table.create_checkpoint()
    return time.perf_counter() - started


def _report(short: Sequence[Any], long: Sequence[Any], told: Row) -> None:
    rows = {"new table": _row(short), "long log": _row(long)}
    phases = {name: _phases(batches) for name, batches in (("new", short), ("long", long))}
    ratio = rows["long log"]["median, s"] / rows["new table"]["median, s"]
    print_table(
        f"{len(short)} and {len(long)} micro-batches, {told['version']} versions at the end, "
        f"{told['compactions']} compactions",
        ["", *rows["new table"]],
        [(name, *row.values()) for name, row in rows.items()],
    )
    print_table(
        "Medians by Spark's own account, ms",
        ["phase", *phases],
        [(name, *(each.get(name, 0) for each in phases.values())) for name in phases["long"]],
    )
    write_result("log-growth", {**told, "seconds": rows, "ratio": ratio, "phases_ms": phases})
    labelled = {f"embedstream, {name}": row["median, s"] for name, row in rows.items()}
    bars("log-growth", "A micro-batch of two pictures", "s, median", labelled)


def _row(batches: Sequence[Any]) -> Row:
    seconds = [batch.durationMs["triggerExecution"] / 1000 for batch in batches]
    return {
        "median, s": median(seconds),
        "95 of 100 below, s": float(np.percentile(seconds, 95)),
        "longest, s": max(seconds),
    }


def _phases(batches: Sequence[Any]) -> Row:
    told = [dict(batch.durationMs) for batch in batches]
    medians = {name: median(each.get(name, 0) for each in told) for name in set().union(*told)}
    return dict(sorted(medians.items(), key=lambda phase: -phase[1]))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batches", type=int, default=100, help="before, and after")
    parser.add_argument("--commits", type=int, default=2000, help="of the other writer")
    return parser.parse_args()


if __name__ == "__main__":
    main()
