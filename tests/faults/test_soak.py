"""A driver under faults for many minutes: as fast at the end as at the beginning, and no larger."""

from __future__ import annotations

import json
import logging
import os
import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import pyarrow as pa
import pytest
from deltalake import DeltaTable
from pyspark.sql import SparkSession

from broker_faults import broker, come_back, kill, standing_still
from drivers import DrivenStream, processes_of
from embedstream.kafka.dev_broker import Broker
from oracle import check_outcomes
from streams import Topic, image

__all__ = ["broker"]

pytestmark = [pytest.mark.kafka, pytest.mark.spark, pytest.mark.long]

MINUTES = float(os.getenv("EMBEDSTREAM_SOAK_MINUTES") or 20)
RESULTS = os.getenv("EMBEDSTREAM_SOAK_RESULTS")
"""A folder for the samples and their plot."""

SAMPLE_S = 5.0
FAULT_S = (15.0, 45.0)
AHEAD = 200
"""Messages in wait, so that there is always work."""

# What was loaded and compiled by then stays.
WARM_SHARE = 0.25

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """The rows in the table at one moment, and the largest usage of each kind of process."""

    second: float
    rows: int
    resident_mib: dict[str, float]
    open_files: dict[str, int]
    threads: dict[str, int]


@pytest.mark.timeout(MINUTES * 60 + 900)
def test_twenty_minutes_of_faults(
    spark: SparkSession, topic: Topic, broker: Broker, chance: random.Random, tmp_path: Path
) -> None:
    stream = DrivenStream.of(spark, topic, tmp_path)
    with stream.run("kafka.max_offsets_per_trigger=64") as driver, printed(driver) as output:
        samples, faults = endure(stream, driver, broker, chance)
        driver.terminate()
        driver.wait(120)
    assert driver.returncode == 0, output
    stream.finish()
    keep(samples, faults)

    rows = check_outcomes(stream.table, topic.positions())
    broken = {row["image_id"] for row in rows.values() if row["error"] is not None}
    assert all(name.startswith("broken-") for name in broken), broken
    assert len(broken) == 5 * sum(name == "broken images" for _, name in faults)
    check_flat(samples)


@contextmanager
def printed(driver: subprocess.Popen[str]) -> Iterator[list[str]]:
    """All lines that it prints: a pipe that nobody reads would stop it once it is full."""
    assert driver.stdout is not None
    lines: list[str] = []
    reader = threading.Thread(target=lines.extend, args=(driver.stdout,))
    reader.start()
    yield lines
    reader.join(60)


def endure(
    stream: DrivenStream, driver: subprocess.Popen[str], broker: Broker, chance: random.Random
) -> tuple[list[Sample], list[tuple[float, str]]]:
    """Cause random faults until the time is over; return the samples, and when each fault was."""
    provoke: dict[str, Callable[[], None]] = {
        "worker killed": lambda: kill_worker(driver, chance),
        "broker killed": lambda: restart(broker),
        "broker stopped": lambda: stop_for(broker, chance.uniform(2, 8)),
        "broken images": lambda: send_broken(stream.topic),
        "table compacted": lambda: compact(stream.table),
    }
    stream.send(AHEAD)
    stream.wait_for_batches(1, driver)
    began = time.monotonic()
    samples: list[Sample] = []
    faults: list[tuple[float, str]] = []
    due = chance.uniform(*FAULT_S)
    while (second := time.monotonic() - began) < 60 * MINUTES:
        assert driver.poll() is None, "the driver has ended"
        samples.append(sampled(second, stream, driver))
        stream.send(max(0, AHEAD + samples[-1].rows - len(stream.topic.positions())))
        if second >= due:
            name = chance.choice([*provoke])
            LOG.info("%.0f s, %d rows: %s", second, samples[-1].rows, name)
            provoke[name]()
            faults.append((second, name))
            due = second + chance.uniform(*FAULT_S)
        time.sleep(SAMPLE_S)
    return samples, faults


def kill_worker(driver: subprocess.Popen[str], chance: random.Random) -> None:
    workers = [one for one in processes_of(driver) if kind_of(one) == "worker"]
    if workers:
        chance.choice(workers).kill()


def restart(broker: Broker) -> None:
    kill(broker)
    time.sleep(2)
    come_back(broker)


def stop_for(broker: Broker, seconds: float) -> None:
    with standing_still(broker):
        time.sleep(seconds)


def send_broken(topic: Topic) -> None:
    first = sum(topic.end_offsets().values())
    topic.send(image(f"broken-{first + number}", b"no image") for number in range(5))


def compact(table: Path) -> None:
    DeltaTable(table).optimize.compact()


def sampled(second: float, stream: DrivenStream, driver: subprocess.Popen[str]) -> Sample:
    actions = pa.table(DeltaTable(stream.table).get_add_actions())
    rows = sum(actions["num_records"].to_pylist())
    seen = list(seen_processes(driver))
    return Sample(
        second,
        rows,
        *(
            {kind: max(usage[name] for of, usage in seen if of == kind) for kind, _ in seen}
            for name in ("rss", "files", "threads")
        ),
    )


def seen_processes(driver: subprocess.Popen[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    for process in processes_of(driver):
        try:
            usage = {
                "rss": process.memory_info().rss / 2**20,
                "files": process.num_fds(),
                "threads": process.num_threads(),
            }
            yield kind_of(process), usage
        except psutil.Error:
            # It has ended since.
            continue


def kind_of(process: psutil.Process) -> str:
    try:
        command = process.cmdline()
        if any("SparkSubmit" in part for part in command):
            return "JVM"
        if "embedstream.worker.daemon" in command:
            parent = process.parent()
            return "daemon" if parent is None or "java" in parent.name() else "worker"
        # The JVM forks others for an instant, such as chmod.
        return "driver" if "embedstream" in command else "other"
    except psutil.Error:
        return "ended"


def check_flat(samples: list[Sample]) -> None:
    warm = [one for one in samples if one.second >= WARM_SHARE * samples[-1].second]
    third = len(warm) // 3
    first, last = warm[:third], warm[-third:]
    assert rate(last) > 0.8 * rate(first)
    for kind in ("driver", "JVM", "worker"):
        assert middle(last, "resident_mib", kind) < 1.2 * middle(first, "resident_mib", kind), kind
        assert middle(last, "open_files", kind) <= 1.1 * middle(first, "open_files", kind) + 5, kind
        assert middle(last, "threads", kind) <= 1.1 * middle(first, "threads", kind) + 5, kind


def rate(samples: list[Sample]) -> float:
    return (samples[-1].rows - samples[0].rows) / (samples[-1].second - samples[0].second)


def middle(samples: list[Sample], of: str, kind: str) -> float:
    return float(median(getattr(one, of)[kind] for one in samples if kind in getattr(one, of)))


def keep(samples: list[Sample], faults: list[tuple[float, str]]) -> None:
    if RESULTS is None:
        return
    results = {"samples": [asdict(one) for one in samples], "faults": faults}
    Path(RESULTS, "soak.json").write_text(json.dumps(results) + "\n")
    plot(samples, faults, Path(RESULTS, "soak.png"))


def plot(samples: list[Sample], faults: list[tuple[float, str]], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    minutes = [one.second / 60 for one in samples]
    figure, panels = plt.subplots(4, 1, figsize=(9, 10), sharex=True)
    panels[0].plot(minutes, [one.rows for one in samples])
    panels[0].set_ylabel("rows in the table")
    names = sorted({name for _, name in faults})
    for number, name in enumerate(names):
        at = [second / 60 for second, other in faults if other == name]
        top = [samples[-1].rows * (0.95 - 0.07 * number)] * len(at)
        panels[0].plot(at, top, "|", markersize=9, label=name)
    panels[0].legend(frameon=False, loc="lower right", fontsize=8)
    for panel, of in zip(panels[1:], ("resident_mib", "open_files", "threads"), strict=True):
        for kind in ("driver", "JVM", "worker"):
            panel.plot(minutes, [getattr(one, of).get(kind) for one in samples], label=kind)
        panel.set_ylabel(of.replace("_", " ").replace("mib", "MiB"))
        panel.set_ylim(bottom=0)
        panel.legend(frameon=False, fontsize=8)
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("minutes")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
