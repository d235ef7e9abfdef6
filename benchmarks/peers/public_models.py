"""The models of the published jobs, and what both published scripts of a job do to an image.

`JOBS` is shared by `public_daft.py` and `public_ray.py`; `public_data.py` writes the weights, which
embedstream reads too. Nothing here is copied from the scripts that it follows.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

__all__ = ["JOBS", "PublishedJob", "clear", "count_rows", "embed"]

os.environ.setdefault("HF_HUB_OFFLINE", "1")

Preprocess = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""Pixels of shape (height, width, 3) to the network's input of shape (3, 224, 224)."""


@dataclass(frozen=True, slots=True)
class PublishedJob:
    """What is the same in both scripts of a job; `key` is the column that names an image."""

    key: str
    floats: int
    load: Callable[[Path], nn.Module]
    build_preprocess: Callable[[], Preprocess]


def _load_resnet18(folder: Path) -> nn.Module:
    from torchvision.models import resnet18

    network = resnet18(weights=None)
    network.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
    network.fc = nn.Identity()
    return network.eval()


@cache
def _build_torchvision_transforms() -> Preprocess:
    from torchvision import transforms
    from torchvision.models import ResNet18_Weights

    composed = transforms.Compose([transforms.ToTensor(), ResNet18_Weights.DEFAULT.transforms()])
    return lambda pixels: composed(pixels).numpy()


class _Pooled(nn.Module):
    def __init__(self, vit: nn.Module) -> None:
        super().__init__()
        self.vit = vit

    def forward(self, images: Tensor) -> Tensor:
        vectors: Tensor = self.vit(images).pooler_output
        return vectors


def _load_vit(folder: Path) -> nn.Module:
    from transformers import ViTModel

    return _Pooled(ViTModel.from_pretrained(folder / "model")).eval()


@cache
def _build_processor() -> Preprocess:
    from transformers import ViTImageProcessor

    # The values that the published scripts state.
    processor: Any = ViTImageProcessor(
        size={"height": 224, "width": 224},
        resample=2,
        rescale_factor=1 / 255,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return lambda pixels: np.asarray(processor(images=pixels)["pixel_values"][0])


JOBS: Mapping[str, PublishedJob] = {
    "image_classification": PublishedJob(
        key="image_url",
        floats=512,
        load=_load_resnet18,
        build_preprocess=_build_torchvision_transforms,
    ),
    "large_image_embedding": PublishedJob(
        key="url",
        floats=768,
        load=_load_vit,
        build_preprocess=_build_processor,
    ),
}


@torch.inference_mode()
def embed(network: nn.Module, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Embed a batch of preprocessed images."""
    vectors: Tensor = network(torch.from_numpy(np.array(images)))
    return vectors.numpy()


def clear(output: Path) -> str:
    """Remove what an earlier pass wrote."""
    shutil.rmtree(output, ignore_errors=True)
    return str(output)


def count_rows(output: Path) -> int:
    return sum(pq.read_metadata(path).num_rows for path in output.rglob("*.parquet"))
