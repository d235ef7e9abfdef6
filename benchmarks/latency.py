"""From a message's append in Kafka to its row's visible Delta commit, at two loads.

    python benchmarks/latency.py [--seconds 20] [--encoder efficientnet_lite0]

The capacity is measured first, by draining a backlog with a warm stream: rows over the time that
its micro-batches took. Then a stream with the default trigger runs while a producer sends images
evenly at 20 % and at 70 % of the capacity; the first `--warm-s` seconds of each load do not count.
Kafka's brokers stamp the messages on append; a commit's time is that of its file in the Delta log.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession

from commits import await_rows, latencies, percentiles
from embedstream.config.sections import StreamConfig
from embedstream.kafka.admin import create_topic
from embedstream.stream.job import start_stream, stop_stream
from embedstream_core.models.card import PreparedModel
from images import jpegs
from report import lines, print_table, write_result
from stream_runs import (
    CORES,
    Drained,
    Workplace,
    drain,
    fill,
    fresh,
    opened,
    producer,
    settings,
    workplace,
)

DISTINCT = 200
LOADS = (0.2, 0.7)
CATCH_UP_S = 300.0
APPEND_TIME = {"log.message.timestamp.type": "LogAppendTime"}


def main() -> None:
    arguments = _arguments()
    contents = list(jpegs(DISTINCT))
    with workplace(APPEND_TIME) as place:
        fill(place.servers, "warm", contents[: 32 * CORES])
        fill(place.servers, "backlog", list(islice(cycle(contents), arguments.backlog)))
        create_topic(place.servers, "paced", partitions=CORES)
        config = settings(place, "backlog", encoder=arguments.encoder, weights=arguments.weights)
        with opened(config, lasting=True) as (spark, model):
            drain(spark, config, model, topic="warm")
            capacity = _capacity(drain(spark, config, model))
            measured = _loads(spark, config, model, place, contents, capacity, arguments)
    _report(capacity, measured, arguments)


def _capacity(drained: Drained) -> float:
    busy_ms: float = sum(batch.durationMs["triggerExecution"] for batch in drained.progress)
    return 1000 * drained.embeddings / busy_ms


def _loads(
    spark: SparkSession,
    config: StreamConfig,
    model: PreparedModel,
    place: Workplace,
    contents: Sequence[bytes],
    capacity: float,
    arguments: argparse.Namespace,
) -> dict[float, list[float]]:
    """The latencies at each load, from one stream that runs throughout."""
    paced = fresh(config, "paced")
    table = Path(paced.table.path)
    query = start_stream(spark, paced, [model]).query
    sent, spans = 0, {}
    for load in LOADS:
        began = time.time()
        sent += _send(place.servers, contents, load * capacity, arguments)
        spans[load] = (began + arguments.warm_s, time.time())
        await_rows(table, sent, timeout_s=CATCH_UP_S, alive=lambda: query.isActive)
    stop_stream(query, timeout_s=CATCH_UP_S)
    return {
        load: latencies(table, since=since, until=until) for load, (since, until) in spans.items()
    }


def _send(
    servers: str, contents: Sequence[bytes], images_per_s: float, arguments: argparse.Namespace
) -> int:
    """Send evenly for the time of one load, to the partitions in turns; how many were sent."""
    count = max(1, int((arguments.warm_s + arguments.seconds) * images_per_s))
    started = time.monotonic()
    with producer(servers) as client:
        for index, content in enumerate(islice(cycle(contents), count)):
            time.sleep(max(0.0, started + index / images_per_s - time.monotonic()))
            client.send("paced", key=b"%d" % index, value=content, partition=index % CORES)
    return count


def _report(
    capacity: float, measured: Mapping[float, Sequence[float]], arguments: argparse.Namespace
) -> None:
    rows: dict[str, dict[str, Any]] = {
        f"{load:.0%} of capacity": {
            "images_per_s": load * capacity,
            "images": len(seconds),
            **percentiles(seconds),
        }
        for load, seconds in measured.items()
    }
    print_table(
        f"{arguments.encoder}, append to visible commit, capacity {capacity:.3g} images/s",
        ["load", "images/s", "images", "p50 s", "p95 s", "p99 s"],
        [(name, *row.values()) for name, row in rows.items()],
    )
    sizes = {"encoder": arguments.encoder, "seconds": arguments.seconds}
    write_result("latency", {**sizes, "capacity_images_per_s": capacity, "loads": rows})
    lines(
        "latency",
        f"{arguments.encoder}: append to visible commit",
        ("seconds", "share of the images"),
        {
            f"{load:.0%} of capacity": (sorted(seconds), _shares(len(seconds)))
            for load, seconds in measured.items()
        },
    )


def _shares(count: int) -> list[float]:
    return [(index + 1) / count for index in range(count)]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=20, help="that count, of each load")
    parser.add_argument("--warm-s", type=float, default=5, help="before them, that do not count")
    parser.add_argument("--backlog", type=int, default=500, help="images drained for the capacity")
    parser.add_argument("--encoder", default="efficientnet_lite0")
    parser.add_argument("--weights", default="default")
    return parser.parse_args()


if __name__ == "__main__":
    main()
