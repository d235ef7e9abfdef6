"""The hardware's limit: forward passes on all cores, and decoding on one, without Spark.

With F forward passes a second on all cores and d seconds to decode an image on one, no pipeline on
these cores does more than 1 / (1/F + d/cores) images a second.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import torch

from embedstream_core.engine.engine import Engine
from embedstream_core.media.image.decode import open_image
from embedstream_core.media.image.fast_jpeg import render_quickly
from embedstream_core.media.modality import Sample
from embedstream_core.models.prepare import ModelSpec, load_prepared, prepare_model
from embedstream_core.records import Media
from embedstream_core.settings import DecodeSettings
from protocol import CORES, Backend, Precision, Run, serve


@contextmanager
def prepare(images: Path, precision: Precision, backend: Backend) -> Iterator[Run]:
    prepared = prepare_model(ModelSpec("resnet50", "random"))
    preprocessing = prepared.card.image
    engine = Engine.start(
        load_prepared(prepared),
        device=torch.device("cpu"),
        precision=precision,
        backend=backend,
        cpu_threads=CORES,
    )
    contents = pq.read_table(images, columns=["content"])["content"].to_pylist()

    def run() -> tuple[int, float]:
        started = time.perf_counter()
        samples = []
        for content in contents:
            opened = open_image(content, DecodeSettings())
            parts = tuple(render_quickly(content, opened, preprocessing))
            samples.append(Sample(parts, Media("image/jpeg")))
        decoded = time.perf_counter()
        engine.embed(samples, "image")
        ended = time.perf_counter()
        return len(contents), (ended - decoded) + (decoded - started) / CORES

    yield run


if __name__ == "__main__":
    serve(prepare)
