"""Images, texts or clips a second of embedstream, of its peers, and of the hardware's limit.

    python benchmarks/throughput.py [--modality text] [--items 250] [--turns 5] [--only …]

Every system embeds the same contents on two cores: 500x375 JPEGs with ResNet-50, texts of 5 to 200
words with all-MiniLM-L6-v2, or clips of 1 to 30 seconds with `speech-embedding`. The limit is
decoding plus forward passes without Spark (`peers/limit.py`), and for texts the `encode` of
sentence-transformers.

After one warm-up pass, a turn is a pass of the system and a pass of the limit. Both are cut into
slices of `--slice-s` seconds that alternate: while one runs, all processes of the other are
stopped. So both see the same changes of the machine's speed, and the fixed costs of a pass, such as
the start of Ray's actors, count once in each. A system's share of the limit is the median over the
turns, of the items a second and of the items a CPU second of all processes of the system.

What the machine does is measured first: ResNet-50's forward pass alone in both precisions.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedstream_core.settings import ModalityName
from images import jpegs, write_images
from machine import describe_machine
from report import bars, print_table, print_turns, start_log, write_result
from running import Running, add_slices, compare
from sounds import sounds
from systems import FORWARD, SYSTEMS, running
from texts import texts


@dataclass(frozen=True, slots=True)
class Contents:
    """What is embedded; `own` names the system of embedstream that the others are compared with."""

    noun: str
    make: Callable[[int], Iterator[bytes]]
    count: int
    description: str
    own: str


CONTENTS: Mapping[ModalityName, Contents] = {
    "image": Contents("images", jpegs, 250, "ResNet-50, {precision}, 500x375 JPEG", "dataframe"),
    "text": Contents(
        "texts", texts, 400, "all-MiniLM-L6-v2, {precision}, texts of 5 to 200 words", "featurize"
    ),
    "audio": Contents(
        "clips", sounds, 60, "speech-embedding, clips of 1 to 30 seconds", "featurize"
    ),
}


def main() -> None:
    arguments = _arguments()
    log = start_log("throughput")
    with tempfile.TemporaryDirectory() as folder:
        made = list(CONTENTS[arguments.modality].make(arguments.items))
        path = write_images(Path(folder) / "contents.parquet", made)
        forward = _measure_machine(path, log, arguments)
        measured: dict[str, dict[str, Any]] = {}
        limit_system = SYSTEMS[arguments.modality]["limit"]
        with running(limit_system, path, arguments.precision, log) as limit:
            limit.run()
            for name in arguments.only:
                measured[name] = _measure(name, path, limit, log, arguments)
                # An hour's work is kept also when a later system fails.
                _write(measured, forward, arguments)
    _report(measured, arguments)


def _measure_machine(contents: Path, log: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    with (
        running(FORWARD, contents, "float32", log) as float32,
        running(FORWARD, contents, "bfloat16", log) as bfloat16,
    ):
        for system in (float32, bfloat16):
            system.run()
        turns = compare(bfloat16, float32, turns=arguments.turns, slice_s=arguments.slice_s)
    described = describe_machine()
    title = f"{described['processor']}, {' '.join(described['flags'])}: {FORWARD.label} alone"
    print_turns(title, "images", {"bfloat16": turns}, "float32")
    return {"own": "bfloat16", "other": "float32", **turns.as_json()}


def _measure(
    name: str, contents: Path, limit: Running, log: Path, arguments: argparse.Namespace
) -> dict[str, Any]:
    system = SYSTEMS[arguments.modality][name]
    with running(system, contents, arguments.precision, log) as own:
        first = own.run()
        turns = compare(own, limit, turns=arguments.turns, slice_s=arguments.slice_s)
    pairs = zip(turns.other, turns.own, strict=True)
    print_table(
        system.label,
        ["limit", "system", "limit, CPU ms", "system, CPU ms"],
        [(limit.items_per_s, own.items_per_s, limit.cpu_ms, own.cpu_ms) for limit, own in pairs],
    )
    return {
        "label": system.label,
        "versions": own.versions,
        "first_pass_s": first.seconds,
        **turns.as_json(),
    }


def _report(measured: dict[str, dict[str, Any]], arguments: argparse.Namespace) -> None:
    contents = CONTENTS[arguments.modality]
    own = measured[contents.own]["ratio"] if contents.own in measured else None
    rows = [
        (
            each["label"],
            each["items_per_s"],
            each["ratio"],
            own.over(each["ratio"]) if own and own is not each["ratio"] else "",
            each["cpu_ms"],
            each["cpu_ratio"],
        )
        for each in measured.values()
    ]
    columns = [
        "system",
        f"{contents.noun}/s",
        "relative to the limit",
        "embedstream is x times as fast",
        "CPU ms",
        "the same by CPU time",
    ]
    title = contents.description.format(precision=arguments.precision)
    print_table(f"{title}, two cores", columns, rows)
    shares = {each["label"]: each["ratio"] for each in measured.values()}
    bars(_name(arguments), title, "share of the limit", shares)


def _write(
    measured: dict[str, dict[str, Any]], forward: dict[str, Any], arguments: argparse.Namespace
) -> None:
    noun = CONTENTS[arguments.modality].noun
    result = {
        "precision": arguments.precision,
        noun: arguments.items,
        "turns": arguments.turns,
        "slice_s": arguments.slice_s,
        "forward_pass": forward,
        "systems": measured,
    }
    write_result(_name(arguments), result)


def _name(arguments: argparse.Namespace) -> str:
    """The result's name; images were measured before the others."""
    is_image = arguments.modality == "image"
    return f"throughput-{arguments.precision if is_image else arguments.modality}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--modality", choices=tuple(CONTENTS), default="image")
    parser.add_argument("--items", "--images", type=int, help="in one pass")
    add_slices(parser)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    known = {name for systems in SYSTEMS.values() for name in systems} - {"limit"}
    parser.add_argument("--only", nargs="+", choices=sorted(known))
    arguments = parser.parse_args()
    systems = SYSTEMS[arguments.modality]
    arguments.only = arguments.only or [name for name in systems if name != "limit"]
    if missing := set(arguments.only) - systems.keys():
        parser.error(f"--modality {arguments.modality} has no {', '.join(sorted(missing))}")
    arguments.items = arguments.items or CONTENTS[arguments.modality].count
    return arguments


if __name__ == "__main__":
    main()
