"""The rate of a stream whose driver follows its table with an index, and of one without.

    python benchmarks/index_follow.py [--images 240] [--rounds 4]

A topic of JPEG is drained with EfficientNet-Lite0 and 32 messages in a micro-batch, by turns with
and without the process that `index.follow` starts next to a stream. The rate is from the start of
the query to its end; the index may still have the last commits to apply then.
"""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import nullcontext
from statistics import median
from typing import Any

import psutil
from pyspark.sql import SparkSession

from embedstream.config.sections import StreamConfig
from embedstream.follow.process import FollowerProcess
from embedstream.index.reports import INDEX
from embedstream.stream.job import list_ids, start_stream
from embedstream.table.delta import create_table
from embedstream_core.models.card import PreparedModel
from report import print_table, write_result
from stream_runs import Run, embeddings, fresh, run_by_turns


def main() -> None:
    arguments = _arguments()
    rounds = run_by_turns(arguments.images, arguments.rounds, _drain)
    _report(rounds, arguments.images)


def _drain(spark: SparkSession, config: StreamConfig, model: PreparedModel, follow: bool) -> Run:
    new = fresh(config)
    table = new.table.path
    command = [sys.executable, "-m", "embedstream", "index", f"--table={table}", "--of-stream"]
    index: Any = nullcontext()
    if follow:
        index = FollowerProcess(INDEX, command, table=table, stop_s=60)
    create_table(spark, new.table, model_ids=list_ids([model]))
    started, cpu = time.perf_counter(), _cpu_seconds()
    with index:
        query = start_stream(spark, new, [model], until="drained").query
        query.awaitTermination()
        seconds = time.perf_counter() - started
        used = _cpu_seconds() - cpu
    made = embeddings(table)
    return {"images_per_s": made / seconds, "cpu_ms_per_image": 1000 * used / made}


def _cpu_seconds() -> float:
    """Of this process and all below it; the broker is not among them."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    times = [one.cpu_times() for one in processes if one.is_running()]
    return sum(one.user + one.system for one in times)


def _report(rounds: list[dict[bool, Run]], images: int) -> None:
    ratios = [one[True]["images_per_s"] / one[False]["images_per_s"] for one in rounds]
    cpu = [one[False]["cpu_ms_per_image"] / one[True]["cpu_ms_per_image"] for one in rounds]
    rows = [
        (name, *(median(one[follow][key] for one in rounds) for key in rounds[0][follow]))
        for name, follow in (("with the index", True), ("without", False))
    ]
    print_table(
        f"{images} images, {len(rounds)} rounds; with / without: images/s {median(ratios):.3f} "
        f"({min(ratios):.3f} to {max(ratios):.3f}), CPU {median(cpu):.3f}",
        ["", "images/s", "CPU ms an image"],
        rows,
    )
    write_result(
        "index-follow",
        {
            "images": images,
            "ratio": median(ratios),
            "ratios": ratios,
            "cpu_ratio": median(cpu),
            "rounds": [{"with": one[True], "without": one[False]} for one in rounds],
        },
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=240, help="in one drain")
    parser.add_argument("--rounds", type=int, default=4, help="an even number")
    return parser.parse_args()


if __name__ == "__main__":
    main()
