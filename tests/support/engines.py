"""A small network of images, its engine, and pipelines of one engine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from embedstream_core.engine.engine import Engine
from embedstream_core.media.image.opened_image import Pixels
from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.media.modality import Sample
from embedstream_core.models.loaded import LoadedModel
from embedstream_core.pipeline.pipeline import Pipeline
from embedstream_core.records import Entry, Media, Outcome, Vectors

__all__ = ["MeanColour", "embed_pixels", "run_only", "start_engine"]


class MeanColour(nn.Module):
    """Records the size of each model batch; black has no direction."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(images))
        return images.mean((2, 3))


def start_engine(network: nn.Module, preprocessing: ImagePreprocessing, **options: Any) -> Engine:
    """Start a network of images; it runs on the CPU unless `device` says otherwise."""
    loaded = LoadedModel(network, (preprocessing,))
    return Engine.start(loaded, **{"device": torch.device("cpu"), **options})


def embed_pixels(engine: Engine, pictures: Sequence[Pixels]) -> Vectors:
    """Embed decoded images."""
    media = Media("image/png")
    return engine.embed([Sample((pixels,), media) for pixels in pictures], "image")


def run_only(pipeline: Pipeline, batches: Iterable[Sequence[Entry]]) -> Iterator[list[Outcome]]:
    """Run a pipeline of one engine; yield the only outcome of each entry."""
    run = pipeline.run(batches)
    try:
        for outcomes in run:
            yield [one for (one,) in outcomes]
    finally:
        # Closing the outer generator closes the run, as closing the run itself would.
        run.close()  # type: ignore[attr-defined]
