"""The cost of embedstream apart from decoding: images/s with an encoder that computes nothing.

    python benchmarks/overhead.py [--images 1000] [--turns 5] [--task-only]

The same 500x375 JPEGs go, in turns and on two cores, through decoding alone (threads, no Spark),
through embedstream over a DataFrame, and from Kafka to Delta, also in larger micro-batches than the
default. Two profiles then show where the time goes: Spark's `durationMs` of the last stream's
micro-batches, and the CPU time of the parts of a worker's task, each alone on the same images in
one thread without Spark, from one Arrow batch to the next. `--task-only` prints the last one, in
seconds, and nothing else.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import cycle, islice
from statistics import median

import numpy as np
import pyarrow as pa
import torch

import free
from embedstream.config.sections import EncoderConfig, StreamConfig
from embedstream.table.rows import Origin, build_outcome_batch
from embedstream.worker.model import prepare
from embedstream_core.engine.engine import Engine
from embedstream_core.media.image.fast_jpeg import render_quickly
from embedstream_core.media.image.modality import ImageModality
from embedstream_core.media.modality import Sample
from embedstream_core.messages.parse import Message, MessageReader
from embedstream_core.models.card import PreparedModel
from embedstream_core.models.prepare import load_prepared
from embedstream_core.records import Embedding, Item
from embedstream_core.settings import DecodeSettings
from images import jpegs, write_images
from processes import measure
from report import bars, print_table, print_turns, write_result
from stream_runs import (
    CORES,
    Drained,
    drain,
    fill,
    opened,
    over_dataframe,
    settings,
    workplace,
)
from turns import Turn, Turns, add_turns, take_turns

DISTINCT = 500
BATCH = 256
"""Messages in an Arrow batch, as `pipeline.arrow_batch_rows` has it."""

BOUND = "decoding alone"
LARGER = 16_384
"""Messages in a micro-batch, eight times as many as by default on two cores."""
DIMENSION = 2048
"""Floats of ResNet-50, for the rows of an encoder of a usual size."""

TASK_PASSES = 9
"""Passes over a batch once warm, of which the median counts."""

_MODALITY = ImageModality(render_quickly)

Seconds = dict[str, float]


def main() -> None:
    arguments = _arguments()
    contents = _contents(arguments.images)
    if arguments.task_only:
        _print_task(_pieces(contents[:BATCH]))
        return
    with workplace() as place:
        images = write_images(place.folder / "images.parquet", contents)
        fill(place.servers, "images", contents)
        config = settings(place, "images")
        streams = {
            "Kafka to Delta": config,
            f"Kafka to Delta, {LARGER:,} a micro-batch": _larger(config),
        }
        drained: dict[str, Drained] = {}
        with opened(config) as (spark, model):

            def stream(name: str) -> Turn:
                drained[name] = drain(spark, streams[name], model)
                return drained[name].turn

            runs: dict[str, Callable[[], Turn]] = {
                BOUND: partial(_decode_all, contents),
                "embedstream, DataFrame": partial(over_dataframe, spark, config, model, images),
                **{f"embedstream, {name}": partial(stream, name) for name in streams},
            }
            taken = take_turns(lambda name, _: runs[name](), list(runs), arguments.turns)
            pieces = _pieces(contents[:BATCH])
    durations = {name: _durations(stream) for name, stream in drained.items()}
    turns = {name: Turns(own, taken[BOUND]) for name, own in taken.items() if name != BOUND}
    _report(turns, durations, pieces, arguments)


def _larger(config: StreamConfig) -> StreamConfig:
    kafka = config.kafka.model_copy(update={"max_offsets_per_trigger": LARGER})
    return config.model_copy(update={"kafka": kafka})


def _contents(count: int) -> list[bytes]:
    """Messages repeat pictures, so that making them does not take longer than the benchmark."""
    return list(islice(cycle(list(jpegs(min(count, DISTINCT)))), count))


def _decode_all(contents: Sequence[bytes]) -> Turn:
    with measure() as spent, ThreadPoolExecutor(CORES) as pool:
        for _ in pool.map(_decode, contents):
            pass
    return spent.on(len(contents))


def _decode(content: bytes) -> Sample:
    settings = DecodeSettings()
    header = _MODALITY.identify(content, settings)
    (sample,) = _MODALITY.decode(content, header, (free.PREPROCESSING,), settings)
    return sample


def _pieces(contents: Sequence[bytes]) -> Seconds:
    """CPU milliseconds an image for each piece of a worker's task, one after the other."""
    model = prepare(EncoderConfig(name=free.NAME, weights="random"))
    threads = torch.get_num_threads()
    engine = Engine.start(
        load_prepared(model),
        device=torch.device("cpu"),
        precision="float32",
        cpu_threads=1,
    )
    passes = [_task(contents, engine, model) for _ in range(TASK_PASSES + 1)][1:]
    torch.set_num_threads(threads)
    return {
        name: 1000 * median(each[name] for each in passes) / len(contents) for name in passes[0]
    }


def _task(contents: Sequence[bytes], engine: Engine, model: PreparedModel) -> Seconds:
    """CPU seconds of each piece, for one batch."""
    clock = _Clock()
    messages = _messages(contents)
    with clock.piece("messages from Arrow"):
        columns = [messages.column(name).to_pylist() for name in ("offset", "key", "value")]
    with clock.piece("parse"):
        items = [_parse(*row) for row in zip(*columns, strict=True)]
        origins = [Origin.of(item, "") for item in items]
    with clock.piece("hash"):
        hashes = [hashlib.sha256(content).hexdigest() for content in contents]
    with clock.piece("decode"):
        samples = [_decode(content) for content in contents]
    with clock.piece("forward"):
        vectors = engine.embed(samples, "image")
    outcomes = [
        (Embedding(np.resize(vector, DIMENSION), sample.media, sha256, model.card.model_id),)
        for vector, sample, sha256 in zip(vectors, samples, hashes, strict=True)
    ]
    with clock.piece(f"outcomes of {DIMENSION:,} floats to Arrow"):
        build_outcome_batch(messages, origins, outcomes)
    return clock.seconds


def _messages(contents: Sequence[bytes]) -> pa.RecordBatch:
    count = len(contents)
    columns = {
        "topic": pa.array(["images"] * count),
        "partition": pa.array([0] * count, pa.int32()),
        "offset": pa.array(range(count), pa.int64()),
        "timestamp": pa.array([0] * count, pa.timestamp("us", "UTC")),
        "key": pa.array([b"picture-%d" % index for index in range(count)], pa.binary()),
        "value": pa.array(contents, pa.binary()),
    }
    return pa.RecordBatch.from_pydict(columns)


def _parse(offset: int, key: bytes, value: bytes) -> Item:
    message = Message(value=value, position=f"images-0-{offset}", key=key)
    item = MessageReader().read(message, accepts=("image",))
    assert isinstance(item, Item)
    return item


class _Clock:
    """The CPU seconds of named pieces."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def piece(self, name: str) -> Iterator[None]:
        started = time.process_time()
        yield
        self.seconds[name] = time.process_time() - started


def _durations(drained: Drained) -> dict[str, float]:
    """Seconds of each phase, over all micro-batches of the query."""
    total: Counter[str] = Counter()
    for batch in drained.progress:
        total.update(dict(batch.durationMs))
    phases = sorted(total.items(), key=lambda phase: -phase[1])
    return {
        "whole query": drained.turn.seconds,
        **{name: milliseconds / 1000 for name, milliseconds in phases},
    }


def _report(
    turns: dict[str, Turns],
    durations: dict[str, Seconds],
    pieces: Seconds,
    arguments: argparse.Namespace,
) -> None:
    print_turns("An encoder that costs nothing, 500x375 JPEG, two cores", "images", turns, BOUND)
    _print_profile("The last stream by Spark's own account, s", "phase", durations)
    _print_task(pieces)
    write_result(
        "overhead",
        {
            "images": arguments.images,
            "systems": {name: each.as_json() for name, each in turns.items()},
            "stream_s": durations,
            "task_cpu_ms_an_image": pieces,
        },
    )
    bound = next(iter(turns.values())).others
    rates = {name: each.items_per_s for name, each in {BOUND: bound, **turns}.items()}
    bars("overhead", "An encoder that costs nothing", "images/s", rates)


def _print_task(pieces: Seconds) -> None:
    title = "A task's pieces, one thread, no Spark, CPU ms an image"
    print_table(title, ["piece", ""], [*pieces.items()])


def _print_profile(title: str, kind: str, profile: dict[str, Seconds]) -> None:
    names = next(iter(profile.values()))
    rows = [(name, *(each.get(name, 0.0) for each in profile.values())) for name in names]
    print_table(title, [kind, *profile], rows)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=1000, help="in one pass")
    add_turns(parser)
    parser.add_argument("--task-only", action="store_true", help="only the parts of a task")
    return parser.parse_args()


if __name__ == "__main__":
    main()
