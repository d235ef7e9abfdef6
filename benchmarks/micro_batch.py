"""What a micro-batch of five messages takes in a warm stream, and what each measure saves.

    python benchmarks/micro_batch.py [--turns 4] [--bursts 20] [--encoder efficientnet_lite0]

Bursts of five images, one after another with a pause, in one session. In each turn every variant
has a stream of its own; every other turn is in reversed order. Beside the latency it reports what
depends less on the load of the machine: CPU seconds of Spark and its workers, Spark's jobs and
tasks, and the processes that the JVM started.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from statistics import median, quantiles
from typing import Any
from unittest.mock import patch

from kafka import KafkaProducer
from pyspark.sql import SparkSession

import free
from commits import await_rows, latencies
from embedstream.config.sections import StreamConfig
from embedstream.kafka.admin import create_topic
from embedstream.stream.job import start_stream, stop_stream
from embedstream_core.models.card import PreparedModel
from images import jpegs
from report import print_table, write_result
from stream_runs import (
    APPEND_TIME,
    CORES,
    Workplace,
    fresh,
    opened,
    read_spark_cpu_s,
    settings,
    workplace,
)
from turns import order_turns

__all__ = [
    "AS_IT_COMES",
    "BEFORE",
    "CHECKSUM",
    "NO_STATE_AHEAD",
    "TIMEOUT_S",
    "Variant",
    "apply_variant",
    "measure_variants",
    "parse",
    "send_bursts",
    "use_checksum",
]

BURST = 5
WARM_BURSTS = 3
TIMEOUT_S = 300.0
COMPUTING_AHEAD = "embedstream.stream.maintenance.compute_state_ahead"
CHECKPOINT_WRITER = "spark.sql.streaming.checkpointFileManagerClass"
HADOOPS_NEWER_INTERFACE = (
    "org.apache.spark.sql.execution.streaming.checkpointing.FileContextBasedCheckpointFileManager"
)

Figures = dict[str, list[float]]
"""One value of each figure per turn."""


@dataclass(frozen=True, slots=True)
class Variant:
    """A stream with something taken away; `checksum` needs the Delta of delta_checksum.py."""

    name: str
    kafka: Mapping[str, str] = field(default_factory=dict)
    session: Mapping[str, str] = field(default_factory=dict)
    computes_ahead: bool = True
    checksum: bool = False


AS_IT_COMES = Variant("as it comes")
NO_STATE_AHEAD = Variant("log's state not computed ahead", computes_ahead=False)
CHECKSUM = Variant("state from Delta's checksum", computes_ahead=False, checksum=True)
_LONG_WAIT = {"kafka.fetch.max.wait.ms": "500"}
_PROCESSES = {CHECKPOINT_WRITER: HADOOPS_NEWER_INTERFACE}
BEFORE = Variant("none of the three", kafka=_LONG_WAIT, session=_PROCESSES, computes_ahead=False)
_VARIANTS = (
    AS_IT_COMES,
    Variant("Kafka's default wait", kafka=_LONG_WAIT),
    NO_STATE_AHEAD,
    Variant("Spark's default checkpoint writer", session=_PROCESSES),
    BEFORE,
)


def main() -> None:
    measure_variants(_VARIANTS, parse(__doc__), result="micro-batch")


def measure_variants(
    variants: Sequence[Variant],
    arguments: argparse.Namespace,
    *,
    result: str,
    change: Callable[[StreamConfig, Path], StreamConfig] = lambda config, folder: config,
) -> None:
    """Measure the variants by turns and report them; `change` gets the settings and a folder."""
    figures: dict[str, Figures] = {variant.name: {} for variant in variants}
    with workplace(APPEND_TIME) as place:
        config = settings(place, "bursts", encoder=arguments.encoder)
        with opened(change(config, place.folder), lasting=True) as (spark, model):
            measured = chain.from_iterable(order_turns(variants, arguments.turns))
            turns = [*[variants[0]] * arguments.warm_turns, *measured]
            for number, variant in enumerate(turns):
                found = _run_turn(spark, config, model, place, variant, number, arguments)
                text = ", ".join(f"{name} {value:.3g}" for name, value in found.items())
                print(f"turn {number + 1} of {len(turns)}, {variant.name}: {text}", flush=True)
                for name, value in found.items() if number >= arguments.warm_turns else ():
                    figures[variant.name].setdefault(name, []).append(value)
    _report(figures, arguments, result)


def _run_turn(
    spark: SparkSession,
    config: StreamConfig,
    model: PreparedModel,
    place: Workplace,
    variant: Variant,
    number: int,
    arguments: argparse.Namespace,
) -> dict[str, float]:
    """Run a stream into a table of its own, and return its figures per micro-batch."""
    topic = f"bursts-{number}"
    create_topic(place.servers, topic, partitions=CORES)
    new = fresh(config, topic)
    table = Path(new.table.path)
    with apply_variant(spark, new, variant) as changed:
        query = start_stream(spark, changed, [model]).query
        send_bursts(place.servers, topic, table, range(WARM_BURSTS), arguments.pause_s)
        warm = len(_list_micro_batches(query))
        since, before, events = time.time(), _count(spark), _Processes(spark)
        measured = range(WARM_BURSTS, WARM_BURSTS + arguments.bursts)
        send_bursts(place.servers, topic, table, measured, arguments.pause_s)
        after, processes = _count(spark), events.stop(place.folder / "processes.jfr")
        progress = _list_micro_batches(query)[warm:]
        stop_stream(query, timeout_s=TIMEOUT_S)
    # A burst may be split between two.
    each = {name: (after[name] - before[name]) / len(progress) for name in before}
    return {
        "latency, s": median(latencies(table, since=since)),
        "micro-batch, s": median(one.durationMs["triggerExecution"] / 1000 for one in progress),
        **each,
        "processes": processes / len(progress),
    }


def _list_micro_batches(query: Any) -> list[Any]:
    """Return the progress of those that had messages."""
    return [each for each in query.recentProgress if each.numInputRows]


@contextmanager
def apply_variant(
    spark: SparkSession, config: StreamConfig, variant: Variant
) -> Iterator[StreamConfig]:
    """Yield the configuration of a variant's stream, which must start in the block."""
    use_checksum(spark, variant.checksum)
    spark.conf.unset(CHECKPOINT_WRITER)
    for name, value in variant.session.items():
        spark.conf.set(name, value)
    kafka = config.kafka.model_copy(update={"options": dict(variant.kafka)})
    with nullcontext() if variant.computes_ahead else patch(COMPUTING_AHEAD):
        yield config.model_copy(update={"kafka": kafka})


def use_checksum(spark: SparkSession, use: bool) -> None:
    """Switch what delta_patch adds to Delta, if it is there."""
    jvm: Any = spark.sparkContext._jvm
    jvm.System.setProperty("embedstream.benchmark.checksum", str(use).lower())


def send_bursts(
    servers: str, topic: str, table: Path, numbers: Iterable[int], pause_s: float
) -> None:
    """Send bursts, counted from 0, each when the one before is in the table and after a pause."""
    contents = list(jpegs(BURST * 4))
    client = KafkaProducer(bootstrap_servers=servers, acks="all", linger_ms=20)
    for number in numbers:
        for index in range(BURST):
            content = contents[(number * BURST + index) % len(contents)]
            client.send(topic, key=b"%d" % index, value=content, partition=index % CORES)
        client.flush()
        await_rows(table, (number + 1) * BURST, timeout_s=TIMEOUT_S)
        time.sleep(pause_s)
    client.close()


def _count(spark: SparkSession) -> dict[str, float]:
    """Count what Spark and its workers have used so far, without the broker."""
    java_context: Any = spark.sparkContext._jsc.sc()
    return {
        "CPU, s": read_spark_cpu_s(spark),
        "jobs": java_context.dagScheduler().numTotalJobs(),
        "tasks": java_context.taskScheduler().nextTaskId(),
    }


class _Processes:
    """Counts the processes that the JVM starts, by its flight recorder."""

    def __init__(self, spark: SparkSession) -> None:
        context: Any = spark.sparkContext
        self._jvm = context._jvm
        self._recording = self._jvm.jdk.jfr.Recording()
        self._recording.enable("jdk.ProcessStart")
        self._recording.start()

    def stop(self, path: Path) -> int:
        self._recording.stop()
        java_path = self._jvm.java.io.File(str(path)).toPath()
        self._recording.dump(java_path)
        self._recording.close()
        return int(self._jvm.jdk.jfr.consumer.RecordingFile.readAllEvents(java_path).size())


def _report(figures: Mapping[str, Figures], arguments: argparse.Namespace, result: str) -> None:
    names = list(next(iter(figures.values())))
    print_table(
        f"{arguments.encoder}: medians of {arguments.turns} turns of {arguments.bursts} bursts of "
        f"{BURST} messages, with their quartiles",
        ["", *names],
        [(name, *(_describe(found[each]) for each in names)) for name, found in figures.items()],
    )
    write_result(result, {"encoder": arguments.encoder, "bursts": arguments.bursts, **figures})


def _describe(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.3g}"
    low, _, high = quantiles(values, n=4, method="inclusive")
    return f"{median(values):.3g} ({low:.3g} to {high:.3g})"


def parse(documentation: str | None) -> argparse.Namespace:
    """Parse the arguments of this benchmark, which delta_checksum.py shares."""
    parser = argparse.ArgumentParser(description=(documentation or "").partition("\n")[0])
    parser.add_argument("--turns", type=int, default=4, help="of each variant")
    parser.add_argument("--warm-turns", type=int, default=2, help="in which the JVM warms up")
    parser.add_argument("--bursts", type=int, default=20, help="of each turn")
    parser.add_argument("--pause-s", type=float, default=0.5, help="after each burst's commit")
    parser.add_argument("--encoder", default=free.NAME)
    return parser.parse_args()


if __name__ == "__main__":
    main()
