"""The cost of a micro-batch with a long log, and while the table's files are compacted.

    python benchmarks/log_growth.py [--batches 20] [--turns 5] [--commits 2000]

A topic of small pictures is drained with two of them in a micro-batch, so that nearly all of its
time is Spark's and Delta's own. Two tables take turns: a new one, and one to which another writer
has made as many commits, each of one small file. A turn is a query that reads what was sent since
the last turn; its seconds are those of its micro-batches.
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
from processes import measure
from report import bars, print_table, print_turns, write_result
from stream_runs import CORES, fresh, opened, send, settings, workplace
from turns import Turn, Turns, add_turns, take_turns

DISTINCT = 50
CHECKPOINT_EVERY = int(PROPERTIES["delta.checkpointInterval"])
LONG, NEW = "long log", "new table"

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
        configs = {LONG: config, NEW: fresh(config)}
        seen: dict[str, list[Any]] = {}
        with opened(config) as (spark, model):
            send(place.servers, "pictures", values[:CORES])
            _drain(spark, config, model)
            growth_s = _grow(config.table.path, arguments.commits)
            sent = -1

            def run(name: str, number: int) -> Turn:
                nonlocal sent
                if number > sent:
                    send(place.servers, "pictures", values)
                    sent = number
                turn, batches = _drain(spark, configs[name], model)
                if number:
                    seen.setdefault(name, []).extend(batches)
                return turn

            taken = take_turns(run, (LONG, NEW), arguments.turns)
        table = DeltaTable(config.table.path)
        compactions = [each["operation"] for each in table.history()].count("OPTIMIZE")
    told = {"version": table.version(), "compactions": compactions, "growth_s": growth_s}
    _report(Turns(taken[LONG], taken[NEW]), seen, told)


def _drain(
    spark: SparkSession, config: StreamConfig, model: PreparedModel
) -> tuple[Turn, list[Any]]:
    """Embed all that the topic holds; the items of the turn are micro-batches."""
    with measure() as spent:
        query = start_stream(spark, config, [model], until="drained").query
        query.awaitTermination()
    batches = [batch for batch in query.recentProgress if batch.numInputRows]
    seconds = sum(batch.durationMs["triggerExecution"] for batch in batches) / 1000
    return Turn(len(batches), seconds, spent.cpu_s), batches


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


def _report(turns: Turns, seen: dict[str, list[Any]], told: Row) -> None:
    rows = {name: _row(batches) for name, batches in seen.items()}
    phases = {name: _phases(batches) for name, batches in seen.items()}
    title = f"{told['version']} versions at the end, {told['compactions']} compactions"
    print_turns(title, "micro-batches", {LONG: turns}, NEW)
    print_table(
        "Micro-batches of two pictures",
        ["", *rows[NEW]],
        [(name, *row.values()) for name, row in rows.items()],
    )
    print_table(
        "Medians by Spark's own account, ms",
        ["phase", *phases],
        [(name, *(each.get(name, 0) for each in phases.values())) for name in phases[LONG]],
    )
    result = {**told, **turns.as_json(), "seconds": rows, "phases_ms": phases}
    write_result("log-growth", result)
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
    parser.add_argument("--batches", type=int, default=20, help="of a turn")
    add_turns(parser)
    parser.add_argument("--commits", type=int, default=2000, help="of the other writer")
    return parser.parse_args()


if __name__ == "__main__":
    main()
