"""The hardware's limit: forward passes on all cores, and decoding on one, without Spark.

With F forward passes a second on all cores and d seconds to decode an image or a clip on one, no
pipeline on these cores does more than 1 / (1/F + d/cores) of them a second. Here it is for an
encoder of images or audio.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from active_clock import read_active_s
from embedstream_core.engine.engine import Engine
from embedstream_core.media.image.fast_jpeg import render_quickly
from embedstream_core.media.image.modality import ImageModality
from embedstream_core.media.modalities import MODALITIES, Preprocessing
from embedstream_core.media.modality import Modality
from embedstream_core.models.prepare import ModelSpec, load_prepared, prepare_model
from embedstream_core.settings import DecodeSettings
from protocol import CORES, WEIGHTS, Backend, Precision, Run, serve


def start_engine(
    encoder: str, precision: Precision, backend: Backend
) -> tuple[Engine, Preprocessing]:
    """Load an encoder with one input on all cores."""
    model = load_prepared(prepare_model(ModelSpec(encoder, WEIGHTS[encoder])))
    (preprocessing,) = model.inputs
    engine = Engine.start(
        model,
        device=torch.device("cpu"),
        precision=precision,
        backend=backend,
        cpu_threads=CORES,
    )
    return engine, preprocessing


@contextmanager
def prepare(images: Path, precision: Precision, backend: Backend) -> Iterator[Run]:
    engine, preprocessing = start_engine(encoder, precision, backend)
    name = preprocessing.modality
    modality: Modality[Any, Any] = (
        ImageModality(render_quickly) if name == "image" else MODALITIES[name]
    )
    settings = DecodeSettings()
    contents = pq.read_table(images, columns=["content"])["content"].to_pylist()

    def run() -> tuple[int, float]:
        started = read_active_s()
        samples = []
        for content in contents:
            header = modality.identify(content, settings)
            samples += modality.decode(content, header, (preprocessing,), settings)
        decoded = read_active_s()
        engine.embed(samples, name)
        ended = read_active_s()
        return len(contents), (ended - decoded) + (decoded - started) / CORES

    yield run


if __name__ == "__main__":
    # What remains is the protocol's.
    encoder = sys.argv.pop()
    serve(prepare)
