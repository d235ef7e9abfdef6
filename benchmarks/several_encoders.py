"""The cost of two image encoders in one pipeline: processor time beyond their forward passes.

    python benchmarks/several_encoders.py [--images 128] [--turns 5]

One process, without Spark, with one thread for decoding and one for the forward passes, as a task
has it on one core. In each turn the same 500x375 JPEGs are decoded alone for the first encoder,
embedded alone by each encoder, and go through a pipeline with each encoder and with both. The
ratio is of CPU time within a turn: the pipeline with both to the sum of both forward passes and one
decode.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import median

import torch

from embedstream_core.engine.engine import Engine
from embedstream_core.media.image.fast_jpeg import render_quickly
from embedstream_core.media.image.modality import ImageModality
from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.media.modality import Sample
from embedstream_core.models.prepare import ModelSpec, load_prepared, prepare_model
from embedstream_core.pipeline.pipeline import Pipeline
from embedstream_core.records import Embedding, Item
from embedstream_core.settings import DecodeSettings, PipelineLimits
from images import jpegs
from report import print_table, write_result
from turns import Ratio, add_turns

ENCODERS = {"resnet50": "random", "efficientnet_lite0": "default"}
BOTH = "pipeline, both"
_MODALITY = ImageModality(render_quickly)

Parts = dict[str, float]


def main() -> None:
    arguments = _arguments()
    contents = list(jpegs(arguments.images))
    engines = {name: _start(name, weights) for name, weights in ENCODERS.items()}
    _measure(contents[:16], engines)
    turns = [_measure(contents, engines) for _ in range(arguments.turns)]
    ratio = Ratio.of([_find_ratio(one) for one in turns])
    medians = {name: median(one[name] for one in turns) for name in turns[0]}
    title = "CPU ms an image, 500x375 JPEG, float32"
    rows = [*medians.items(), ("both / (forward passes + one decode)", ratio)]
    print_table(title, ["", "CPU ms"], rows)
    write_result(
        "several-encoders",
        {
            "images": arguments.images,
            "cpu_ms": medians,
            "both_of_sum": ratio,
            "turns": turns,
        },
    )


def _start(name: str, weights: str) -> Engine:
    prepared = prepare_model(ModelSpec(name, weights))
    model = load_prepared(prepared)
    return Engine.start(
        model, device=torch.device("cpu"), cpu_threads=1, model_id=prepared.card.model_id
    )


def _measure(contents: Sequence[bytes], engines: Mapping[str, Engine]) -> Parts:
    """CPU milliseconds an image of each part."""
    samples = {name: _decode(contents, engine) for name, engine in engines.items()}
    parts: dict[str, Callable[[], object]] = {
        "decode": partial(_decode, contents, engines[next(iter(ENCODERS))]),
        **{
            f"forward, {name}": partial(engine.embed, samples[name], "image")
            for name, engine in engines.items()
        },
        **{
            f"pipeline, {name}": partial(_embed, contents, [engine])
            for name, engine in engines.items()
        },
        BOTH: partial(_embed, contents, [*engines.values()]),
    }
    measured = {}
    for name, run in parts.items():
        started = time.process_time()
        run()
        measured[name] = 1000 * (time.process_time() - started) / len(contents)
    return measured


def _decode(contents: Sequence[bytes], engine: Engine) -> list[Sample]:
    preprocessing = engine.inputs["image"]
    assert isinstance(preprocessing, ImagePreprocessing)
    settings = DecodeSettings()
    samples = []
    for content in contents:
        header = _MODALITY.identify(content, settings)
        samples += _MODALITY.decode(content, header, (preprocessing,), settings)
    return samples


def _embed(contents: Sequence[bytes], engines: Sequence[Engine]) -> None:
    items = [Item(str(index), content) for index, content in enumerate(contents)]
    limits = PipelineLimits(fetch_threads=1, decode_threads=1)
    pipeline = Pipeline(engines, fetch=_refuse, limits=limits)
    for outcomes in pipeline.run([items]):
        for entry in outcomes:
            assert len(entry) == len(engines)
            assert all(isinstance(one, Embedding) for one in entry)


def _refuse(uri: str) -> bytes:
    raise AssertionError(f"there are no references, such as {uri}")


def _find_ratio(measured: Parts) -> float:
    forwards = sum(measured[f"forward, {name}"] for name in ENCODERS)
    return measured[BOTH] / (forwards + measured["decode"])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=128)
    add_turns(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
