"""Images a second and peak memory with more rows and with more executors.

    python benchmarks/scale.py [--rows 125]

A real cluster of executors with one core each, on this machine (`local-cluster`), drains topics of
1x, 4x and 16x the rows into Delta tables, with an encoder that costs nothing; then two executors do
the 4x again. Every session is warmed with the smallest topic. Memory is the resident size of
each process, sampled while a stream runs, and a figure is the peak of the largest process of its
kind; Python workers are forked, so what they share with the daemon counts in each.
"""

from __future__ import annotations

import argparse
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import psutil
import pyspark
from pyspark.sql import SparkSession

from embedstream.config.sections import StreamConfig
from embedstream_core.models.card import PreparedModel
from images import jpegs
from report import bars, print_table, write_result
from stream_runs import Workplace, drain, fill, opened, settings, workplace

DISTINCT = 250
FACTORS = (1, 4, 16)
EXECUTOR_MIB = 1024
PARTITIONS = 4
SAMPLE_S = 0.2

KINDS = ("driver, Python", "driver, JVM", "executor, JVM", "Python daemon", "Python worker")

Measured = dict[str, Any]


def main() -> None:
    arguments = _arguments()
    pictures = list(jpegs(min(DISTINCT, arguments.rows)))
    with workplace() as place, _spark_home(place.folder):
        for factor in FACTORS:
            count = factor * arguments.rows
            values = list(islice(cycle(pictures), count))
            fill(place.servers, _topic(factor), values, partitions=PARTITIONS)
        one = _on_executors(1, FACTORS, place)
        two = _on_executors(2, FACTORS[1:2], place)
    _report([*one, *two], arguments)


@contextmanager
def _spark_home(folder: Path) -> Iterator[None]:
    """Executors write below Spark's own folder, so it is given another, of links."""
    home = folder / "spark"
    home.mkdir()
    for entry in Path(pyspark.__file__).parent.iterdir():
        if entry.name != "work":
            (home / entry.name).symlink_to(entry)
    before = os.environ.get("SPARK_HOME")
    os.environ["SPARK_HOME"] = str(home)
    try:
        yield
    finally:
        del os.environ["SPARK_HOME"]
        if before is not None:
            os.environ["SPARK_HOME"] = before


def _topic(factor: int) -> str:
    return f"rows-{factor}"


def _on_executors(executors: int, factors: tuple[int, ...], place: Workplace) -> list[Measured]:
    config = settings(
        place,
        _topic(1),
        master=f"local-cluster[{executors},1,{EXECUTOR_MIB}]",
        options={
            "spark.executor.memory": f"{EXECUTOR_MIB}m",
            "spark.driver.host": "127.0.0.1",
            # Begin once all are there.
            "spark.scheduler.minRegisteredResourcesRatio": "1.0",
        },
    )
    with opened(config) as (spark, model):
        drain(spark, config, model)
        return [_measure(executors, factor, spark, config, model) for factor in factors]


def _measure(
    executors: int, factor: int, spark: SparkSession, config: StreamConfig, model: PreparedModel
) -> Measured:
    with _peak_memory() as peaks:
        drained = drain(spark, config, model, topic=_topic(factor))
    return {
        "executors": executors,
        "rows": drained.embeddings,
        "images_per_s": drained.images_per_s,
        "peak_mib": {kind: round(peaks.get(kind, 0) / 2**20) for kind in KINDS},
    }


@contextmanager
def _peak_memory() -> Iterator[dict[str, int]]:
    """The largest resident size of a process of each kind, in bytes."""
    peaks: dict[str, int] = {}
    stopped = threading.Event()

    def sample() -> None:
        while not stopped.wait(SAMPLE_S):
            for kind, size in _sizes():
                peaks[kind] = max(size, peaks.get(kind, 0))

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        yield peaks
    finally:
        stopped.set()
        sampler.join()


def _sizes() -> Iterator[tuple[str, int]]:
    own = psutil.Process()
    yield "driver, Python", own.memory_info().rss
    for process in own.children(recursive=True):
        try:
            kind = _kind(process)
            if kind is not None:
                yield kind, process.memory_info().rss
        except psutil.Error:
            # It ended meanwhile.
            continue


def _kind(process: psutil.Process) -> str | None:
    command = " ".join(process.cmdline())
    # Its command names the Python daemon too, as a setting.
    if "org.apache.spark.deploy.SparkSubmit" in command:
        return "driver, JVM"
    if "CoarseGrainedExecutorBackend" in command:
        return "executor, JVM"
    if "embedstream.worker.daemon" not in command:
        return None
    parent = process.parent()
    forked = parent is not None and "java" not in parent.name()
    return "Python worker" if forked else "Python daemon"


def _report(measured: list[Measured], arguments: argparse.Namespace) -> None:
    print_table(
        "An encoder that costs nothing, one core an executor",
        ["executors", "rows", "images/s", *(f"{kind} MiB" for kind in KINDS)],
        [
            (str(each["executors"]), each["rows"], each["images_per_s"], *each["peak_mib"].values())
            for each in measured
        ],
    )
    one, two = measured[1]["images_per_s"], measured[-1]["images_per_s"]
    print_table("Two executors for one", ["", "times as fast"], [("throughput", two / one)])
    write_result("scale", {"rows": arguments.rows, "two_for_one": two / one, "measured": measured})
    bars("scale", "Peak memory of a Python worker", "MiB", _by_load(measured, "Python worker"))


def _by_load(measured: list[Measured], kind: str) -> Mapping[str, float]:
    return {
        f"embedstream, {each['rows']} rows, {each['executors']} executors": each["peak_mib"][kind]
        for each in measured
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=125, help="of the smallest topic")
    return parser.parse_args()


if __name__ == "__main__":
    main()
