"""The hardware's limit: forward passes on all cores, and decoding on one, without Spark.

With F forward passes a second on all cores and d seconds to decode an image or a clip on one, no
pipeline on these cores does more than 1 / (1/F + d/cores) of them a second. Here it is for an
encoder of images or audio.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from embedstream_core.engine.engine import Engine
from embedstream_core.media.image.fast_jpeg import render_quickly
from embedstream_core.media.image.modality import ImageModality
from embedstream_core.media.modalities import MODALITIES
from embedstream_core.media.modality import Modality
from embedstream_core.models.prepare import ModelSpec, load_prepared, prepare_model
from embedstream_core.settings import DecodeSettings
from protocol import CORES, WEIGHTS, Backend, Precision, Run, serve


@contextmanager
def prepare(images: Path, precision: Precision, backend: Backend) -> Iterator[Run]:
    prepared = prepare_model(ModelSpec(encoder, WEIGHTS[encoder]))
    model = load_prepared(prepared)
    (preprocessing,) = model.inputs
    name = preprocessing.modality
    modality: Modality[Any, Any] = (
        ImageModality(render_quickly) if name == "image" else MODALITIES[name]
    )
    settings = DecodeSettings()
    engine = Engine.start(
        model,
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
            header = modality.identify(content, settings)
            samples += modality.decode(content, header, (preprocessing,), settings)
        decoded = time.perf_counter()
        engine.embed(samples, name)
        ended = time.perf_counter()
        return len(contents), (ended - decoded) + (decoded - started) / CORES

    yield run


if __name__ == "__main__":
    # What remains is the protocol's.
    encoder = sys.argv.pop()
    serve(prepare)
