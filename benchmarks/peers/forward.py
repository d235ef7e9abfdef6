"""What the machine does: ResNet-50's forward pass alone on all cores, without decoding or Spark.

Figures from machines with the same number of cores differ by this first. Random pixels serve as
well as an image's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.media.modality import Sample
from embedstream_core.records import Media
from limit import start_engine
from protocol import Backend, Precision, Run, serve

IMAGES = 32


@contextmanager
def prepare(contents: Path, precision: Precision, backend: Backend) -> Iterator[Run]:
    engine, preprocessing = start_engine("resnet50", precision, backend)
    assert isinstance(preprocessing, ImagePreprocessing)
    shape = (preprocessing.crop_px, preprocessing.crop_px, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    samples = [Sample((pixels,), Media("image/jpeg"))] * IMAGES
    yield lambda: len(engine.embed(samples, "image"))


if __name__ == "__main__":
    serve(prepare)
