"""A stream in which half of the images repeat, with `pipeline.dedupe` on against off.

    python benchmarks/dedupe.py [--images 200] [--rounds 2] [--encoder efficientnet_lite0]

Every picture is sent twice, in a random order, both times to the same partition, as messages with
the same key are. Both settings drain the same topic in turns, `off` first; each round has a topic
of pictures that no round before it had, for what an executor knows outlives a stream. The ratio is
the median over the rounds.
"""

from __future__ import annotations

import argparse
import random
from statistics import median

from images import jpegs
from report import bars, print_table, write_result
from stream_runs import CORES, drain, fill, opened, settings, workplace

SETTINGS = ("off", "on")


def main() -> None:
    arguments = _arguments()
    with workplace() as place:
        topics = [f"images-{number}" for number in range(arguments.rounds + 1)]
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
            _, *rounds = [
                {
                    value: drain(spark, config, model, topic=topic).images_per_s
                    for value, config in configs.items()
                }
                for topic in topics
            ]
    _report(rounds, arguments)


def _twice(contents: list[bytes]) -> list[bytes]:
    """Each content twice; `fill` deals the result to the partitions in turns."""
    choose = random.Random(0)
    decks = [contents[first::CORES] * 2 for first in range(CORES)]
    for deck in decks:
        choose.shuffle(deck)
    return [content for dealt in zip(*decks, strict=False) for content in dealt]


def _report(rounds: list[dict[str, float]], arguments: argparse.Namespace) -> None:
    rates = {value: median(each[value] for each in rounds) for value in SETTINGS}
    ratio = median(each["on"] / each["off"] for each in rounds)
    print_table(
        f"{arguments.encoder}, half of the images repeat",
        ["pipeline.dedupe", "images/s", "times as fast"],
        [("off", rates["off"], 1.0), ("on", rates["on"], ratio)],
    )
    sizes = {"encoder": arguments.encoder, "images": arguments.images}
    write_result("dedupe", {**sizes, "images_per_s": rates, "ratio": ratio, "rounds": rounds})
    labelled = {f"embedstream, dedupe {value}": rates[value] for value in SETTINGS}
    bars("dedupe", f"{arguments.encoder}, half of the images repeat", "images/s", labelled)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=200, help="in one pass, repeats included")
    parser.add_argument("--rounds", type=int, default=2, help="passes once warm")
    parser.add_argument("--encoder", default="efficientnet_lite0")
    parser.add_argument("--weights", default="default")
    return parser.parse_args()


if __name__ == "__main__":
    main()
