"""A stream in which half of the images repeat, with `pipeline.dedupe` on against off.

    python benchmarks/dedupe.py [--images 200] [--turns 5] [--encoder efficientnet_lite0]

Every picture is sent twice, in a random order, both times to the same partition, as messages with
the same key are. Both settings drain the same topic in turns; each turn has a topic of pictures
that no turn before it had, for what an executor knows outlives a stream.
"""

from __future__ import annotations

import argparse
import random

from images import jpegs
from report import bars, print_turns, write_result
from stream_runs import CORES, drain, fill, opened, settings, workplace
from turns import Turns, add_turns, take_turns

SETTINGS = ("off", "on")


def main() -> None:
    arguments = _arguments()
    with workplace() as place:
        topics = [f"images-{number}" for number in range(arguments.turns + 1)]
        for seed, topic in enumerate(topics):
            fill(place.servers, topic, _twice(list(jpegs(arguments.images // 2, seed=seed))))
        configs = {
            value: settings(
                place,
                topics[0],
                encoder=arguments.encoder,
                weights=arguments.weights,
                pipeline={"dedupe": value},
            )
            for value in SETTINGS
        }
        with opened(configs["off"]) as (spark, model):
            taken = take_turns(
                lambda value, number: (
                    drain(spark, configs[value], model, topic=topics[number]).turn
                ),
                SETTINGS,
                arguments.turns,
            )
    _report(Turns(taken["on"], taken["off"]), arguments)


def _twice(contents: list[bytes]) -> list[bytes]:
    """Each content twice; `fill` deals the result to the partitions in turns."""
    choose = random.Random(0)
    decks = [contents[first::CORES] * 2 for first in range(CORES)]
    for deck in decks:
        choose.shuffle(deck)
    return [content for dealt in zip(*decks, strict=False) for content in dealt]


def _report(turns: Turns, arguments: argparse.Namespace) -> None:
    title = f"{arguments.encoder}, half of the images repeat"
    print_turns(title, "images", {"dedupe on": turns}, "dedupe off")
    sizes = {"encoder": arguments.encoder, "images": arguments.images}
    write_result("dedupe", {**sizes, **turns.as_json()})
    rates = {"off": turns.others.items_per_s, "on": turns.items_per_s}
    labelled = {f"embedstream, dedupe {value}": rates[value] for value in SETTINGS}
    bars("dedupe", title, "images/s", labelled)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=200, help="in one pass, repeats included")
    add_turns(parser)
    parser.add_argument("--encoder", default="efficientnet_lite0")
    parser.add_argument("--weights")
    return parser.parse_args()


if __name__ == "__main__":
    main()
