"""The inputs of the published jobs, and the check that two systems made the same embeddings."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from images import jpegs

__all__ = [
    "DATA",
    "Agreement",
    "PublishedData",
    "compare_embeddings",
    "read_embeddings",
    "write_data",
]

_FILES = 8
"""Files of the input: Daft's is a folder of several too, and each reader takes whole files."""


@dataclass(frozen=True, slots=True)
class PublishedData:
    """A job's images of `size` pixels, its usual number of them, and its batch.

    `write_rows` takes the folder and the JPEGs and yields rows; `save` writes the weights.
    """

    description: str
    size: tuple[int, int]
    items: int
    batch: int
    write_rows: Callable[[Path, Iterator[bytes]], Iterator[dict[str, str]]]
    save: Callable[[Path], None]


def write_data(name: str, folder: Path, items: int) -> None:
    """Write a job's Parquet files, its images where they are files, and its seeded weights."""
    data = DATA[name]
    rows = list(data.write_rows(folder, jpegs(items, size=data.size)))
    (folder / "input").mkdir()
    for number in range(_FILES):
        # Dealt in turns, so that all files hold images of all scenes.
        if some := rows[number::_FILES]:
            pq.write_table(pa.Table.from_pylist(some), folder / "input" / f"{number}.parquet")
    torch.manual_seed(0)
    data.save(folder)


def _write_files(folder: Path, contents: Iterator[bytes]) -> Iterator[dict[str, str]]:
    (folder / "images").mkdir()
    for number, content in enumerate(contents):
        path = folder / "images" / f"{number:05}.jpg"
        path.write_bytes(content)
        yield {"image_url": path.as_uri()}


def _encode(folder: Path, contents: Iterator[bytes]) -> Iterator[dict[str, str]]:
    for number, content in enumerate(contents):
        yield {"url": f"picture-{number:05}", "image": base64.b64encode(content).decode()}


def _save_resnet18(folder: Path) -> None:
    from torchvision.models import resnet18

    torch.save(resnet18(weights=None).state_dict(), folder / "model.pt")


def _save_vit(folder: Path) -> None:
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    # The configuration's defaults are those of ViT-B/16 at 224 pixels.
    ViTModel(ViTConfig()).save_pretrained(folder / "model")
    processor = ViTImageProcessor(image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5])
    processor.save_pretrained(folder / "model")


DATA: Mapping[str, PublishedData] = {
    # The average size of ImageNet's pictures. The published batch is 100.
    "image_classification": PublishedData(
        description="ResNet-18, float32, 500x375 JPEG by reference",
        size=(500, 375),
        items=400,
        batch=100,
        write_rows=_write_files,
        save=_save_resnet18,
    ),
    # With the published batch of 1024, all images would be one batch, and a core would be idle.
    "large_image_embedding": PublishedData(
        description="ViT-B/16, float32, 2048x1536 JPEG in base64",
        size=(2048, 1536),
        items=64,
        batch=16,
        write_rows=_encode,
        save=_save_vit,
    ),
}


@dataclass(frozen=True, slots=True)
class Agreement:
    """How alike the embeddings of two systems are.

    `least` is the smallest cosine of an item's two vectors. Those of a network with seeded weights
    all point nearly the same way, so `least_centered` is the smallest after the mean of one
    system's vectors has been subtracted from both, and `found` is the share of items whose nearest
    vector of the other system is the same item's.
    """

    least: float
    least_centered: float
    found: float


def read_embeddings(folder: Path) -> dict[str, NDArray[np.float32]]:
    """Read what a system wrote into Parquet files: vectors by the images' names.

    Raises:
        ValueError: an image has two vectors.
    """
    embeddings: dict[str, NDArray[np.float32]] = {}
    for path in sorted(folder.rglob("*.parquet")):
        table = pq.read_table(path)
        (key,) = set(table.column_names) - {"embedding"}
        vectors = _unwrap(table["embedding"]).to_pylist()
        for name, vector in zip(table[key].to_pylist(), vectors, strict=True):
            if name in embeddings:
                raise ValueError(f"{name} has two embeddings in {folder}")
            embeddings[name] = np.asarray(vector, np.float32)
    return embeddings


def _unwrap(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Convert Ray's and Daft's extension types to plain lists."""
    chunks = [
        chunk.storage if isinstance(chunk, pa.ExtensionArray) else chunk for chunk in column.chunks
    ]
    return pc.cast(pa.chunked_array(chunks), pa.list_(pa.float32()))


def compare_embeddings(
    one: Mapping[str, NDArray[np.float32]], other: Mapping[str, NDArray[np.float32]]
) -> Agreement:
    """Compare the embeddings of two systems.

    Raises:
        ValueError: they have not embedded the same images.
    """
    if one.keys() != other.keys():
        raise ValueError(f"{len(one.keys() ^ other.keys())} images have only one embedding")
    keys = sorted(one)
    ours = np.stack([one[key] for key in keys]).astype(np.float64)
    theirs = np.stack([other[key] for key in keys]).astype(np.float64)
    centered = _cosines(ours - ours.mean(0), theirs - ours.mean(0))
    found = centered.argmax(1) == np.arange(len(keys))
    return Agreement(
        least=float(np.diag(_cosines(ours, theirs)).min()),
        least_centered=float(np.diag(centered).min()),
        found=float(found.mean()),
    )


def _cosines(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths = np.linalg.norm(ours, axis=1)[:, None] * np.linalg.norm(theirs, axis=1)
    cosines: NDArray[np.float64] = ours @ theirs.T / lengths
    return cosines
