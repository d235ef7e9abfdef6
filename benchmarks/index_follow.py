"""The rate of a stream whose driver follows its table with an index, and of one without.

    python benchmarks/index_follow.py [--images 240] [--turns 5]

A topic of JPEG is drained with EfficientNet-Lite0 and 32 messages in a micro-batch, by turns with
and without the process that `index.follow` starts next to a stream. The rate is from the start of
the query to its end; the index may still have the last commits to apply then.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import nullcontext
from typing import Any

from pyspark.sql import SparkSession

from embedstream.config.sections import StreamConfig
from embedstream.follow.process import FollowerProcess
from embedstream.index.reports import INDEX
from embedstream.stream.job import list_ids, start_stream
from embedstream.table.delta import create_table
from embedstream_core.models.card import PreparedModel
from processes import measure
from report import print_turns, write_result
from stream_runs import compare_drains, embeddings, fresh
from turns import Turn, add_turns


def main() -> None:
    arguments = _arguments()
    turns = compare_drains(arguments.images, arguments.turns, _drain)
    title = f"{arguments.images} images, {arguments.turns} turns"
    print_turns(title, "images", {"with the index": turns}, "without it")
    write_result("index-follow", {"images": arguments.images, **turns.as_json()})


def _drain(spark: SparkSession, config: StreamConfig, model: PreparedModel, follow: bool) -> Turn:
    new = fresh(config)
    table = new.table.path
    command = [sys.executable, "-m", "embedstream", "index", f"--table={table}", "--of-stream"]
    index: Any = nullcontext()
    if follow:
        index = FollowerProcess(INDEX, command, table=table, stop_s=60)
    create_table(spark, new.table, model_ids=list_ids([model]))
    with index, measure() as spent:
        query = start_stream(spark, new, [model], until="drained").query
        query.awaitTermination()
    return spent.on(embeddings(table))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=240, help="in one drain")
    add_turns(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
