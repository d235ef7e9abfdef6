"""The metrics of a real run over time: how they are recorded, and how promtool replays them."""

from __future__ import annotations

import os
import signal
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from drivers import processes_of, running, wait_until
from small import tiny_picture, write_config
from streams import Topic, image

__all__ = ["BROKEN_S", "HEALTHY_S", "SCRAPE_S", "STALLED_S", "record", "replay", "split"]

SCRAPE_S = 2.0
HEALTHY_S, BROKEN_S, STALLED_S = 40, 40, 40

_HEAD = "# scraped at "
_KEPT = ("embedstream_", "process_start_time_seconds", "# HELP embedstream_", "# TYPE embedstream_")


def record(topic: Topic, folder: Path) -> str:
    """Run a stream in which the producer breaks, and then the workers stop; return its metrics.

    For 40 seconds all messages are images, for 40 half of them are none, and for 40 the workers are
    suspended while messages come.
    """
    config = write_config(topic, folder, monitor={"listen": "127.0.0.1:0"})
    with running(config) as driver:
        url = _await_address(driver.stdout or ())
        wait_until(lambda: "embedstream_ready 1.0" in _scrape(url), driver=driver)
        parts: list[str] = []
        numbers, start = count(), time.monotonic()
        with _suspended_later(driver) as suspend:
            while (elapsed := time.monotonic() - start) < HEALTHY_S + BROKEN_S + STALLED_S:
                if elapsed >= HEALTHY_S + BROKEN_S:
                    suspend()
                is_broken = HEALTHY_S <= elapsed < HEALTHY_S + BROKEN_S
                contents = [tiny_picture(), b"none" if is_broken else tiny_picture()]
                topic.send(image(str(next(numbers)), content) for content in contents * 2)
                kept = [line for line in _scrape(url).splitlines() if line.startswith(_KEPT)]
                # Help and types once are enough.
                kept = [line for line in kept if not parts or not line.startswith("#")]
                parts.append("\n".join([f"{_HEAD}{time.time():.1f}", *kept]))
                due = start + len(parts) * SCRAPE_S
                time.sleep(max(0.0, due - time.monotonic()))
    return "\n".join(parts) + "\n"


def _await_address(lines: Iterable[str]) -> str:
    said = []
    for line in lines:
        said.append(line)
        if line.startswith("monitor: "):
            return line.split()[1]
    raise AssertionError("".join(said))


def _scrape(url: str) -> str:
    with urllib.request.urlopen(f"{url.rstrip('/')}/metrics", timeout=20) as response:
        text: str = response.read().decode()
    return text


@contextmanager
def _suspended_later(driver: Any) -> Iterator[Any]:
    workers: list[Any] = []

    def suspend() -> None:
        if not workers:
            found = processes_of(driver)
            workers.extend(one for one in found if "embedstream.worker.daemon" in one.cmdline())
            assert workers
            for one in workers:
                one.suspend()

    try:
        yield suspend
    finally:
        for one in workers:
            os.kill(one.pid, signal.SIGCONT)


@dataclass(frozen=True)
class Scrape:
    """The series of a scrape with their values, and when it was, in seconds since 1970."""

    at: float
    values: dict[str, float]


def split(recording: str) -> list[Scrape]:
    scrapes = []
    for part in recording.split(_HEAD)[1:]:
        head, *lines = part.splitlines()
        pairs = [line.rsplit(" ", 1) for line in lines if line and not line.startswith("#")]
        scrapes.append(Scrape(float(head), {name: float(value) for name, value in pairs}))
    return scrapes


def replay(scrapes: Sequence[Scrape], *, step_s: int) -> list[dict[str, str]]:
    """Series for promtool, as if the scrapes had been `step_s` apart.

    Times are moved and stretched too: the first scrape is at 0.
    """
    start = scrapes[0].at
    stretch = step_s / SCRAPE_S
    values: dict[str, list[str]] = defaultdict(list)
    for number, scrape in enumerate(scrapes):
        for name, value in scrape.values.items():
            if "timestamp_seconds" in name or name.startswith("process_start"):
                value = (value - start) * stretch
            elif name.startswith("embedstream_lag_seconds"):
                value *= stretch
            row = values[name]
            row += ["_"] * (number - len(row))
            row.append(f"{value:.10g}")
    return [{"series": _add_labels(name), "values": " ".join(row)} for name, row in values.items()]


def _add_labels(series: str) -> str:
    name, _, labels = series.partition("{")
    return f'{name}{{job="embedstream",instance="a"{"," + labels if labels else "}"}'
