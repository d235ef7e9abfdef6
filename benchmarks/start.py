"""How long until the first row, at a start and after a quiet time.

    python benchmarks/start.py [--turns 5] [--quiet-s 300]

At a start: from starting `embedstream run` to the first row visible in the table, against what it
cannot do without, each by hand in a process of its own: importing torch and loading ResNet-50 from
its file, and starting Spark up to its first job. All take turns, after one that fills the file
cache; `--no-warm-up` leaves that out where other benchmarks have just run. The CPU seconds are of
all processes until then. The archive of Spark's classes is made first if there is none.

After a quiet time: one image's time from its append in Kafka to its visible commit, when the stream
was quiet for `--quiet-s`, against the median of images sent to it while it was warm. Spark ends
Python workers that were idle for a minute, so the quiet one pays for a new one.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml
from torchvision.models import resnet50

from commits import await_rows, latencies
from embedstream.config.sections import StreamConfig
from embedstream.kafka.admin import create_topic
from embedstream.spark.class_archive import find_class_archive
from embedstream.spark.jars import find_jars_folder
from embedstream.spark.java import find_java
from embedstream.stream.job import start_stream, stop_stream
from embedstream.stream.rehearsal import build_class_archive
from images import jpegs
from processes import ProcessTree, count_cpu_s
from report import bars, print_table, write_result
from stream_runs import (
    APPEND_TIME,
    CORES,
    Workplace,
    fill,
    opened,
    producer,
    settings,
    workplace,
)
from turns import Ratio, Turn, add_turns, order_turns

TIMEOUT_S = 300.0
WARM_IMAGES = 3
PAUSE_S = 2.0

LOAD_BY_HAND = """\
import sys
import torch
from torchvision.models import resnet50
model = resnet50()
model.load_state_dict(torch.load(sys.argv[1], weights_only=True))
model.eval()
print("done", flush=True)
input()
"""

SPARK_BY_HAND = f"""\
from pyspark.sql import SparkSession
builder = SparkSession.builder.master("local[{CORES}]").config("spark.ui.enabled", False)
spark = builder.config("spark.driver.host", "127.0.0.1").getOrCreate()
spark.range(1).count()
print("done", flush=True)
input()
"""

BY_HAND = {"torch and model by hand": LOAD_BY_HAND, "Spark by hand": SPARK_BY_HAND}
OWN = "embedstream run"

Start = dict[str, Turn]
"""A start and its parts by hand, by their names."""


def main() -> None:
    arguments = _arguments()
    folder = find_jars_folder()
    if not find_class_archive(folder, find_java()).exists():
        build_class_archive(folder)
    with workplace(APPEND_TIME) as place:
        weights = place.folder / "resnet50.pt"
        torch.save(resnet50().state_dict(), weights)
        fill(place.servers, "images", list(jpegs(2 * CORES)))
        names = [*BY_HAND, OWN]
        if arguments.warm_up:
            _start_all(place, weights, names)
        starts = [
            _start_all(place, weights, order) for order in order_turns(names, arguments.turns)
        ]
        quiet = _quiet(place, str(weights), arguments)
    _report(starts, quiet, arguments)


def _start_all(place: Workplace, weights: Path, names: Sequence[str]) -> Start:
    """What one start took, and its parts by hand, one after the other."""
    return {
        name: _start(place, weights) if name == OWN else _start_by_hand(name, weights)
        for name in names
    }


def _start_by_hand(name: str, weights: Path) -> Turn:
    """Until it prints its line; what it does at its end does not count."""
    started = time.perf_counter()
    command = [sys.executable, "-c", BY_HAND[name], str(weights)]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        turn = _end_turn(started, process)
        process.communicate("\n")
    if line.strip() != "done":
        raise SystemExit(f"{name} failed")
    return turn


def _end_turn(started: float, process: subprocess.Popen[Any]) -> Turn:
    """What a process and all below it took since it was started."""
    seconds = time.perf_counter() - started
    return Turn(1, seconds, count_cpu_s({}, ProcessTree(process.pid).read_times()))


def _start(place: Workplace, weights: Path) -> Turn:
    config = settings(place, "images", encoder="resnet50", weights=str(weights))
    file = place.folder / "start.yaml"
    file.write_text(yaml.safe_dump(_plain(config)))
    command = [sys.executable, "-m", "embedstream", "run", str(file), "--available-now"]
    with (place.folder / "start.log").open("ab") as log:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            table = Path(config.table.path)
            await_rows(table, 1, timeout_s=TIMEOUT_S, alive=lambda: process.poll() is None)
            return _end_turn(started, process)
        finally:
            process.wait(TIMEOUT_S)


def _plain(config: StreamConfig) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude_unset=True)


def _quiet(place: Workplace, weights: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds from append to commit of one image at a time, warm and after a quiet time."""
    create_topic(place.servers, "quiet", partitions=CORES)
    config = settings(place, "quiet", encoder="resnet50", weights=weights)
    table = Path(config.table.path)
    contents = iter(jpegs(WARM_IMAGES + 2, seed=1))
    with opened(config, lasting=True) as (spark, model):
        query = start_stream(spark, config, [model]).query
        for rows in range(1, WARM_IMAGES + 2):
            _send(place.servers, next(contents))
            await_rows(table, rows, timeout_s=TIMEOUT_S, alive=lambda: query.isActive)
            time.sleep(PAUSE_S)
        time.sleep(arguments.quiet_s)
        _send(place.servers, next(contents))
        await_rows(table, WARM_IMAGES + 2, timeout_s=TIMEOUT_S, alive=lambda: query.isActive)
        stop_stream(query, timeout_s=TIMEOUT_S)
    # The very first image found no worker either.
    _, *warm, quiet = latencies(table)
    return {"warm": median(warm), f"after {arguments.quiet_s:g} quiet seconds": quiet}


def _send(servers: str, content: bytes) -> None:
    with producer(servers) as client:
        client.send("quiet", value=content)


def _report(starts: list[Start], quiet: dict[str, float], arguments: argparse.Namespace) -> None:
    seconds = {name: median(each[name].seconds for each in starts) for name in starts[0]}
    cpu_s = {name: median(each[name].cpu_s for each in starts) for name in starts[0]}
    of_by_hand = Ratio.of(
        [each[OWN].seconds / sum(each[part].seconds for part in BY_HAND) for each in starts]
    )
    of_its_cpu = Ratio.of(
        [each[OWN].cpu_s / sum(each[part].cpu_s for part in BY_HAND) for each in starts]
    )
    print_table(
        "ResNet-50: from nothing to the first row",
        ["", "s", "of both by hand", "CPU s", "of both by hand"],
        [
            *((name, seconds[name], "", cpu_s[name], "") for name in BY_HAND),
            (OWN, seconds[OWN], of_by_hand, cpu_s[OWN], of_its_cpu),
        ],
    )
    print_table("ResNet-50: one image, append to visible commit", ["", "s"], [*quiet.items()])
    write_result(
        "start",
        {
            "start_s": seconds,
            "start_of_by_hand": of_by_hand,
            "start_cpu_s": cpu_s,
            "start_cpu_of_by_hand": of_its_cpu,
            "starts": starts,
            "one_image_s": quiet,
        },
    )
    labelled = {f"embedstream, one image, {name}": each for name, each in quiet.items()}
    bars("start", "Starts with ResNet-50", "seconds", {**seconds, **labelled})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add_turns(parser)
    parser.add_argument("--warm-up", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--quiet-s", type=float, default=300)
    return parser.parse_args()


if __name__ == "__main__":
    main()
