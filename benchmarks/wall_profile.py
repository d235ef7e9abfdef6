"""Where a micro-batch of five messages spends its wall time, phase by phase.

    python benchmarks/wall_profile.py [--bursts 40] [--encoder efficientnet_lite0] [--before]

async-profiler, which Maven has, takes the stacks of the JVM's threads at a fixed rate, whether they
compute or wait, while bursts of five images arrive in a warm stream. A phase is known by a method
on the stack. With `--before` the stream is without the measures of micro_batch.py. One table is of
the thread that runs the micro-batches, the other of the threads that run its tasks.
"""

from __future__ import annotations

import argparse
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession

import free
from embedstream.config.sections import StreamConfig
from embedstream.kafka.admin import create_topic
from embedstream.spark.jars import download_jar
from embedstream.stream.job import start_stream, stop_stream
from micro_batch import AS_IT_COMES, BEFORE, TIMEOUT_S, apply_variant, send_bursts
from report import print_table, write_result
from stream_runs import CORES, opened, settings, workplace

PROFILER = "tools.profiler:async-profiler:4.0"
INTERVAL = "1ms"
WARM_BURSTS = 40
# Methods in which a thread waits: for a lock or another thread, a socket, or a process.
WAITS = re.compile(r"futex|epoll_wait|poll$|_read$|clock_nanosleep|waitpid|wait4")
PROCESSES = re.compile(r"util/Shell|ProcessBuilder")

Phases = Mapping[str, str]
"""A pattern of the stack of each phase; the first one that is found counts."""

MICRO_BATCH: Phases = {
    "between micro-batches": r"Thread\.sleep",
    "state of the log": r"computedState|\.transactions",
    "commit: checksum file": r"incrementallyDeriveChecksum|writeChecksum",
    "commit: log file": r"doCommit.*LogStore",
    "commit: snapshot after it": r"updateAfterCommit",
    "commit: the rest": r"OptimisticTransactionImpl\.commit|\.doCommit",
    "start of the transaction": r"startTransaction",
    "write: first stage": r"awaitShuffleMapStage",
    "write: second stage": r"writeFiles.*runJob",
    "write: planning": r"writeFiles.*QueryExecution\.",
    "write: the rest": r"writeFiles",
    "checkpoint: offsets and commits": r"HDFSMetadataLog|CheckpointFileManager",
    "latest offsets": r"latestOffset",
    "planning": r"IncrementalExecution|QueryExecution",
    "progress": r"ProgressContext|ProgressReporter|finishTrigger",
}
TASK: Phases = {
    "without a task": r"ThreadPoolExecutor\.getTask",
    "Kafka: first and last offsets": r"getAvailableOffsetRange",
    "Kafka: messages": r"InternalKafkaConsumer|KafkaDataConsumer",
    "Python": r"BasePythonRunner|PythonArrow",
    "generating and compiling code": r"CodeGenerator|codegen",
    "shuffle": r"ShuffleWriter|ShuffleBlockFetcher",
    "Parquet": r"parquet",
    "deserializing the task": r"JavaDeserializationStream",
}


def main() -> None:
    arguments = _arguments()
    with workplace() as place:
        profiler = download_jar(PROFILER, place.folder / "profiler")
        options = {"spark.driver.extraClassPath": str(profiler)}
        config = settings(place, "bursts", encoder=arguments.encoder, options=options)
        create_topic(place.servers, "bursts", partitions=CORES)
        stacks = place.folder / "stacks.txt"
        with opened(config, lasting=True) as (spark, model):
            variant = BEFORE if arguments.before else AS_IT_COMES
            with apply_variant(spark, config, variant) as changed:
                query = start_stream(spark, changed, [model]).query
                seconds = _profile(spark, config, stacks, arguments)
                stop_stream(query, timeout_s=TIMEOUT_S)
        _report(list(_read(stacks)), seconds, arguments)


def _profile(
    spark: SparkSession, config: StreamConfig, stacks: Path, arguments: argparse.Namespace
) -> float:
    """Send the bursts, write the stacks, and return the seconds that the bursts took."""
    table, servers = Path(config.table.path), config.kafka.bootstrap_servers
    jvm: Any = spark.sparkContext._jvm
    profiler = jvm.one.profiler.AsyncProfiler.getInstance()
    send_bursts(servers, "bursts", table, range(WARM_BURSTS), arguments.pause_s)
    measured = range(WARM_BURSTS, WARM_BURSTS + arguments.bursts)
    started = time.monotonic()
    profiler.execute(f"start,event=wall,interval={INTERVAL},threads")
    send_bursts(servers, "bursts", table, measured, arguments.pause_s)
    profiler.execute(f"stop,collapsed,file={stacks}")
    return time.monotonic() - started


def _read(stacks: Path) -> Iterator[tuple[str, str, int]]:
    """Yield each thread, its stack from the root, and the number of samples."""
    for line in stacks.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        thread, _, frames = stack.partition(";")
        yield thread, frames, int(count)


def _report(
    samples: list[tuple[str, str, int]], seconds: float, arguments: argparse.Namespace
) -> None:
    result = {}
    for title, threads, phases in (
        ("Thread of the micro-batches", "stream execution thread", MICRO_BATCH),
        ("Threads of the tasks", "Executor task", TASK),
    ):
        chosen = [each for each in samples if threads in each[0]]
        # A thread is sampled as often in each second, whatever it does.
        busiest = Counter[str]()
        for thread, _, count in chosen:
            busiest[thread] += count
        ms = 1000 * seconds / max(busiest.values()) / arguments.bursts
        rows = _sum_up(chosen, phases, ms)
        print_table(
            f"{title}, ms per micro-batch",
            ["phase", "ms", "of it waiting", "of it for processes"],
            [(name, *row) for name, row in sorted(rows.items(), key=lambda row: -row[1][0])],
        )
        result[title] = rows
    name = "wall-profile-before" if arguments.before else "wall-profile"
    write_result(name, {"encoder": arguments.encoder, "ms_waiting_processes": result})


def _sum_up(
    samples: list[tuple[str, str, int]], phases: Phases, ms: float
) -> dict[str, list[float]]:
    """Sum up each phase: its time, and of it what was spent waiting and on processes.

    A sample stands for `ms` milliseconds.
    """
    rows: dict[str, list[float]] = {}
    for _, frames, count in samples:
        found = (name for name, pattern in phases.items() if re.search(pattern, frames))
        row = rows.setdefault(next(found, "anything else"), [0.0, 0.0, 0.0])
        row[0] += count * ms
        row[1] += count * ms * bool(WAITS.search(frames.rpartition(";")[2]))
        row[2] += count * ms * bool(PROCESSES.search(frames))
    return rows


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--bursts", type=int, default=40)
    parser.add_argument("--pause-s", type=float, default=0.5, help="after each burst's commit")
    parser.add_argument("--encoder", default=free.NAME)
    parser.add_argument("--before", action="store_true", help="without the measures")
    return parser.parse_args()


if __name__ == "__main__":
    main()
