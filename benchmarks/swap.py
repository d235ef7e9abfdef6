"""The pause when a running stream takes another model, at a steady load.

    python benchmarks/swap.py [--swaps 4] [--images-per-s 8]

`embedstream run` reads a topic to which a producer sends images evenly. Its configuration is
changed between EfficientNet-Lite0 and the same with vectors of length 1, and a SIGHUP makes the
stream take it. The time of a commit is that of its file in the Delta log, and its model the one of
its rows: the pause is the time between the last commit of one model and the first of the next,
beyond the usual time between two commits, which is the median of all others.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count, pairwise
from pathlib import Path
from statistics import median

import yaml

from commits import list_models
from embedstream.config.sections import StreamConfig
from embedstream.kafka.admin import create_topic
from images import jpegs
from report import print_table, write_result
from stream_runs import CORES, Workplace, producer, settings, workplace

DISTINCT = 100
TOPIC = "steady"
USUAL = 8
"""Commits before the first swap, and between two."""

_TIMEOUT_S = 300.0


def main() -> None:
    arguments = _arguments()
    with workplace() as place:
        create_topic(place.servers, TOPIC, partitions=CORES)
        config = settings(place, TOPIC, encoder="efficientnet_lite0")
        encoder = config.encoder
        others = [encoder.model_copy(update={"normalize": one}) for one in ("l2", "none")]
        with _sending(place, arguments.images_per_s), _running(place, config) as stream:
            table = Path(config.table.path)
            _await_commits(table, stream, models=1)
            for swap in range(arguments.swaps):
                changed = config.model_copy(update={"encoder": others[swap % len(others)]})
                _write(place, changed)
                stream.send_signal(signal.SIGHUP)
                _await_commits(table, stream, models=swap + 2)
            commits = list_models(table)
    _report(commits, arguments)


@contextmanager
def _sending(place: Workplace, images_per_s: float) -> Iterator[None]:
    """Send evenly, to the partitions in turns."""
    contents = list(jpegs(DISTINCT))
    stop = threading.Event()

    def send() -> None:
        started = time.monotonic()
        with producer(place.servers) as client:
            for index in count():
                if stop.wait(max(0.0, started + index / images_per_s - time.monotonic())):
                    return
                client.send(
                    TOPIC,
                    key=b"%d" % index,
                    value=contents[index % DISTINCT],
                    partition=index % CORES,
                )

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextmanager
def _running(place: Workplace, config: StreamConfig) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "embedstream", "run", str(_write(place, config))]
    log = place.folder / "run.log"
    with log.open("wb") as output:
        stream = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield stream
    finally:
        stream.terminate()
        stream.wait()
        print(log.read_text(), file=sys.stderr)


def _write(place: Workplace, config: StreamConfig) -> Path:
    path = place.folder / "stream.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_unset=True)))
    return path


def _await_commits(table: Path, stream: subprocess.Popen[bytes], *, models: int) -> None:
    """Wait for so many spans of one model, and for usual commits in the last one."""
    deadline = time.monotonic() + _TIMEOUT_S
    while time.monotonic() < deadline and stream.poll() is None:
        commits = list_models(table)
        switches = _find_switches(commits)
        last = switches[-1] if switches else 0
        if len(switches) + 1 >= models and len(commits) - last > USUAL:
            return
        # Rarely, for it takes some time of the same cores.
        time.sleep(2)
    raise SystemExit("the stream took no other model; its output says why")


def _find_switches(commits: Sequence[tuple[float, str]]) -> list[int]:
    """Return the first commit of each model but the first."""
    models = [model for _, model in commits]
    return [index for index in range(1, len(models)) if models[index] != models[index - 1]]


def _report(commits: Sequence[tuple[float, str]], arguments: argparse.Namespace) -> None:
    switches = _find_switches(commits)
    gaps = [later - earlier for (earlier, _), (later, _) in pairwise(commits)]
    swaps = [gaps[index - 1] for index in switches]
    usual_s = median(gap for index, gap in enumerate(gaps, 1) if index not in switches)
    pauses = [gap - usual_s for gap in swaps]
    print_table(
        f"EfficientNet-Lite0, two cores, {arguments.images_per_s:g} images/s",
        ["swap", "s between commits", "s usually", "pause, s"],
        [(index, gap, usual_s, gap - usual_s) for index, gap in enumerate(swaps, 1)],
    )
    sizes = {"images_per_s": arguments.images_per_s, "usual_commits": len(gaps) - len(swaps)}
    write_result("swap", {**sizes, "usual_s": usual_s, "swaps_s": swaps, "pauses_s": pauses})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--swaps", type=int, default=4)
    parser.add_argument("--images-per-s", type=float, default=8)
    return parser.parse_args()


if __name__ == "__main__":
    main()
