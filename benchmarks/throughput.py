"""Images, texts or clips a second of embedstream, of its peers, and of the hardware's limit.

    python benchmarks/throughput.py [--modality text] [--items 250] [--rounds 4] [--only …]

Every system embeds the same contents on two cores: 500x375 JPEGs with ResNet-50, texts of 5 to 200
words with all-MiniLM-L6-v2, or clips of 1 to 30 seconds with `speech-embedding`. The limit is
decoding plus forward passes without Spark (`peers/limit.py`), and for texts the `encode` of
sentence-transformers. After one warm-up pass, the system and the limit alternate, so that the
machine's drift affects both. A system's figure is the median of its rounds, its share the median of
its ratios to the limit in the same round: of the items a second, and of the milliseconds an item of
all processors, used by all processes of the system.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from embedstream_core.settings import ModalityName
from images import jpegs, write_images
from report import RESULTS, bars, print_table, write_result
from sounds import sounds
from systems import SYSTEMS, Running, running
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
    contents = CONTENTS[arguments.modality]
    RESULTS.mkdir(exist_ok=True)
    log = RESULTS / "throughput.log"
    log.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        made = list(contents.make(arguments.items))
        path = write_images(Path(folder) / "contents.parquet", made)
        limit_system = SYSTEMS[arguments.modality]["limit"]
        with running(limit_system, path, arguments.precision, log) as limit:
            limit.run()
            measured: dict[str, dict[str, Any]] = {}
            for name in arguments.only:
                measured[name] = _measure(name, path, limit, arguments, log)
                # An hour's work is kept also when a later system fails.
                _write(measured, arguments)
    _report(measured, arguments)


def _measure(
    name: str, contents: Path, limit: Running, arguments: argparse.Namespace, log: Path
) -> dict[str, Any]:
    system_of = SYSTEMS[arguments.modality][name]
    with running(system_of, contents, arguments.precision, log) as system:
        first = system.run()
        rounds = [(_pass(limit), _pass(system)) for _ in range(arguments.rounds)]
        print_table(
            system_of.label,
            ["limit", "system", "limit, CPU ms", "system, CPU ms"],
            [(bound[0], own[0], bound[1], own[1]) for bound, own in rounds],
        )
        return {
            "label": system_of.label,
            "versions": system.versions,
            "first_pass_s": first["seconds"],
            f"{CONTENTS[arguments.modality].noun}_per_s": median(own[0] for _, own in rounds),
            "share_of_limit": median(own[0] / bound[0] for bound, own in rounds),
            "cpu_ms": median(own[1] for _, own in rounds),
            "cpu_share_of_limit": median(bound[1] / own[1] for bound, own in rounds),
            "rounds": [
                {
                    "limit": bound[0],
                    "system": own[0],
                    "limit_cpu_ms": bound[1],
                    "system_cpu_ms": own[1],
                }
                for bound, own in rounds
            ],
        }


def _pass(system: Running) -> tuple[float, float]:
    """Items a second, and CPU milliseconds an item, of one pass."""
    done = system.run()
    return done["items"] / done["seconds"], 1000 * done["cpu_s"] / done["items"]


def _report(measured: dict[str, dict[str, Any]], arguments: argparse.Namespace) -> None:
    contents = CONTENTS[arguments.modality]
    own = measured.get(contents.own, {}).get("share_of_limit")
    rows = [
        (
            each["label"],
            each[f"{contents.noun}_per_s"],
            each["share_of_limit"],
            own / each["share_of_limit"] if own else "",
            each["cpu_ms"],
            each["cpu_share_of_limit"],
        )
        for each in measured.values()
    ]
    columns = [
        "system",
        f"{contents.noun}/s",
        "of the limit",
        "embedstream is so many times as fast",
        "CPU ms",
        "of the limit's",
    ]
    title = contents.description.format(precision=arguments.precision)
    print_table(f"{title}, two cores", columns, rows)
    shares = {each["label"]: each["share_of_limit"] for each in measured.values()}
    bars(_name(arguments), title, "share of the limit", shares)


def _write(measured: dict[str, dict[str, Any]], arguments: argparse.Namespace) -> None:
    noun = CONTENTS[arguments.modality].noun
    sizes = {noun: arguments.items, "rounds": arguments.rounds}
    result = {"precision": arguments.precision, **sizes, "systems": measured}
    write_result(_name(arguments), result)


def _name(arguments: argparse.Namespace) -> str:
    """The result's name; images were measured before the others."""
    is_image = arguments.modality == "image"
    return f"throughput-{arguments.precision if is_image else arguments.modality}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--modality", choices=tuple(CONTENTS), default="image")
    parser.add_argument("--items", "--images", type=int, help="in one pass")
    parser.add_argument("--rounds", type=int, default=4, help="passes of each system once warm")
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
