"""From a message's append in Kafka to its row's visible Delta commit, at two loads.

    python benchmarks/latency.py [--seconds 20] [--encoder efficientnet_lite0] [--checksum]

The capacity is measured first, by draining a backlog with a warm stream: rows over the time that
its micro-batches took. Then a stream with the default trigger runs while a producer sends images
evenly at 20 % and at 70 % of the capacity; the first `--warm-s` seconds of each load do not count.
Kafka's brokers stamp the messages on append; a commit's time is that of its file in the Delta log.
The CPU time of Spark and its workers, per image of these seconds, depends less on what else runs.
With `--checksum` Delta is patched as in delta_checksum.py.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession

from commits import await_rows, latencies, percentiles
from delta_checksum import use_patched_delta
from embedstream.config.sections import StreamConfig
from embedstream.kafka.admin import create_topic
from embedstream.stream.job import start_stream, stop_stream
from embedstream_core.models.card import PreparedModel
from images import jpegs
from micro_batch import use_checksum
from report import lines, print_table, write_result
from stream_runs import (
    APPEND_TIME,
    CORES,
    Drained,
    Workplace,
    drain,
    fill,
    fresh,
    opened,
    producer,
    read_spark_cpu_s,
    settings,
    workplace,
)

DISTINCT = 200
LOADS = (0.2, 0.7)
CATCH_UP_S = 300.0


@dataclass(frozen=True, slots=True)
class Measured:
    """Of one load: the latency of each image, and the CPU time of Spark and its workers."""

    seconds: list[float]
    cpu_s_per_image: float


def main() -> None:
    arguments = _arguments()
    contents = list(jpegs(DISTINCT))
    with workplace(APPEND_TIME) as place:
        fill(place.servers, "warm", contents[: 32 * CORES])
        fill(place.servers, "backlog", list(islice(cycle(contents), arguments.backlog)))
        create_topic(place.servers, "paced", partitions=CORES)
        config = settings(place, "backlog", encoder=arguments.encoder, weights=arguments.weights)
        if arguments.checksum:
            config = use_patched_delta(config, place.folder)
        with opened(config, lasting=True) as (spark, model):
            use_checksum(spark, arguments.checksum)
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
) -> dict[float, Measured]:
    """The figures of each load, from one stream that runs throughout."""
    paced = fresh(config, "paced")
    table = Path(paced.table.path)
    query = start_stream(spark, paced, [model]).query
    sent, spans, cpu_s = 0, {}, {}
    for load in LOADS:
        sent += _send(place.servers, contents, load * capacity, arguments.warm_s)
        began, before = time.time(), read_spark_cpu_s(spark)
        count = _send(place.servers, contents, load * capacity, arguments.seconds)
        spans[load] = (began, time.time())
        cpu_s[load] = (read_spark_cpu_s(spark) - before) / count
        sent += count
        await_rows(table, sent, timeout_s=CATCH_UP_S, alive=lambda: query.isActive)
    stop_stream(query, timeout_s=CATCH_UP_S)
    return {
        load: Measured(latencies(table, since=since, until=until), cpu_s[load])
        for load, (since, until) in spans.items()
    }


def _send(servers: str, contents: Sequence[bytes], images_per_s: float, seconds: float) -> int:
    """Send evenly for so long, to the partitions in turns; how many were sent."""
    count = max(1, int(seconds * images_per_s))
    started = time.monotonic()
    with producer(servers) as client:
        for index, content in enumerate(islice(cycle(contents), count)):
            time.sleep(max(0.0, started + index / images_per_s - time.monotonic()))
            client.send("paced", key=b"%d" % index, value=content, partition=index % CORES)
    return count


def _report(
    capacity: float, measured: Mapping[float, Measured], arguments: argparse.Namespace
) -> None:
    rows: dict[str, dict[str, Any]] = {
        f"{load:.0%} of capacity": {
            "images_per_s": load * capacity,
            "images": len(found.seconds),
            **percentiles(found.seconds),
            "cpu_s_per_image": found.cpu_s_per_image,
        }
        for load, found in measured.items()
    }
    print_table(
        f"{arguments.encoder}, append to visible commit, capacity {capacity:.3g} images/s",
        ["load", "images/s", "images", "p50 s", "p95 s", "p99 s", "CPU s an image"],
        [(name, *row.values()) for name, row in rows.items()],
    )
    sizes = {"encoder": arguments.encoder, "seconds": arguments.seconds}
    result = "latency-checksum" if arguments.checksum else "latency"
    write_result(result, {**sizes, "capacity_images_per_s": capacity, "loads": rows})
    lines(
        result,
        f"{arguments.encoder}: append to visible commit",
        ("seconds", "share of the images"),
        {
            f"{load:.0%} of capacity": (sorted(found.seconds), _shares(len(found.seconds)))
            for load, found in measured.items()
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
    parser.add_argument("--weights")
    parser.add_argument("--checksum", action="store_true", help="patch Delta, for comparison")
    return parser.parse_args()


if __name__ == "__main__":
    main()
