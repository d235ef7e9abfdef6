"""The inputs of a training: labelled images from Parquet files, or vectors computed from them."""

from __future__ import annotations

import tempfile
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, count, islice
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import torch
from torch import nn

from embedstream_core.errors import ItemError, SetupError
from embedstream_core.media.image.decode import open_image
from embedstream_core.media.image.fast_jpeg import render_quickly
from embedstream_core.media.image.opened_image import Pixels
from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.settings import DecodeSettings

__all__ = ["Example", "Features", "LabelledImages", "Source", "collate", "repeat", "shuffle"]

# The bounds of what one process holds in memory, whatever the size of its files.
_READ_ROWS = 64
_READ_BYTES = 2**20
_SHUFFLED_ROWS = 2048
_SHUFFLED_BYTES = 256 * 2**20
_DECODED_AHEAD = 64


class Example(NamedTuple):
    """An image's bytes and the index of its class; a null image has empty bytes."""

    content: bytes
    label: int


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """The images of Parquet files with the columns `content`, bytes, and `label`, an int.

    Memory is bounded whatever the files hold: a random order shuffles the files, and their rows
    within a window of 2,048 rows or 256 MiB. Inputs are uint8 of shape (crop_px, crop_px, 3).
    """

    files: tuple[Path, ...]
    preprocessing: ImagePreprocessing
    settings: DecodeSettings
    threads: int = 1

    @property
    def rows(self) -> int:
        """The number of rows from the files' metadata, undecodable images included."""
        return sum(pq.read_metadata(path).num_rows for path in self.files)

    def read(
        self, random: np.random.Generator | None, skipped: Counter[str]
    ) -> Iterator[tuple[Pixels, int]]:
        """Yield each image with its label, in a random order or in a fixed one.

        An image that cannot be decoded is counted in `skipped`, by its error code.
        """
        if random is None:
            examples = _read_files(self.files)
        else:
            order = random.permutation(len(self.files))
            examples = shuffle(_read_files([self.files[index] for index in order]), random)

        def decode(content: bytes) -> Pixels:
            opened = open_image(content, self.settings)
            fidelity = self.settings.fidelity
            return render_quickly(content, opened, self.preprocessing, fidelity=fidelity)[0]

        ahead: deque[tuple[Future[Pixels], int]] = deque()
        with ThreadPoolExecutor(self.threads, thread_name_prefix="decode") as pool:
            while True:
                for example in islice(examples, _DECODED_AHEAD - len(ahead)):
                    ahead.append((pool.submit(decode, example.content), example.label))
                if not ahead:
                    return
                decoding, label = ahead.popleft()
                try:
                    pixels = decoding.result()
                except ItemError as error:
                    skipped[error.code.value] += 1
                else:
                    yield pixels, label


@dataclass(frozen=True, slots=True)
class Features:
    """A source of vectors: one for each image, in a temporary file until the process ends."""

    vectors: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    unreadable: Counter[str]

    @classmethod
    @torch.inference_mode()
    def compute(
        cls,
        encoder: nn.Module,
        source: Source,
        *,
        dimension: int,
        batch_size: int,
        device: torch.device,
    ) -> Features:
        """Apply an encoder to each image of a source."""
        rows, skipped = source.rows, Counter[str]()
        with tempfile.TemporaryFile() as file:
            vectors = np.memmap(file, np.float32, mode="w+", shape=(max(1, rows), dimension))
        labels = np.zeros(rows, np.int64)
        done = 0
        encoder.eval()
        for images, image_labels in collate(source.read(None, skipped), batch_size, device):
            end = done + len(images)
            vectors[done:end] = encoder(images).float().cpu().numpy()
            labels[done:end] = image_labels.cpu().numpy()
            done = end
        return cls(vectors[:done], labels[:done], skipped)

    @property
    def rows(self) -> int:
        """The number of images, undecodable ones included."""
        return len(self.labels) + self.unreadable.total()

    def read(
        self, random: np.random.Generator | None, skipped: Counter[str]
    ) -> Iterator[tuple[npt.NDArray[np.float32], int]]:
        """Yield each vector with its label, and count the undecodable images."""
        skipped.update(self.unreadable)
        count = len(self.labels)
        for index in range(count) if random is None else random.permutation(count):
            yield self.vectors[index], int(self.labels[index])


Source: TypeAlias = LabelledImages | Features
"""The inputs of one process. Each reading yields at most `rows`, and counts the rest as skipped."""


def collate(
    inputs: Iterable[tuple[npt.NDArray[Any], int]], size: int, device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield model batches of at most `size` inputs with their labels, on the device."""
    remaining = iter(inputs)
    while model_batch := list(islice(remaining, size)):
        arrays, labels = zip(*model_batch, strict=True)
        yield torch.from_numpy(np.stack(arrays)).to(device), torch.tensor(labels).to(device)


def repeat(
    source: Source, random: np.random.Generator, skipped: Counter[str]
) -> Iterator[tuple[npt.NDArray[Any], int]]:
    """Read a share again and again, counting skipped images once; refuse one without images."""
    for reading in count():
        empty = True
        for read in source.read(random, skipped if reading == 0 else Counter()):
            empty = False
            yield read
        if empty:
            raise SetupError(
                f"none of the {source.rows} images of one process can be decoded "
                f"({dict(skipped)}): check the column of images, or use fewer processes"
            )


def shuffle(
    examples: Iterable[Example],
    random: np.random.Generator,
    *,
    rows: int = _SHUFFLED_ROWS,
    bytes: int = _SHUFFLED_BYTES,  # noqa: A002 - as in PipelineLimits
) -> Iterator[Example]:
    """Yield the examples in a random order, within a window of `rows` or `bytes`."""
    window: list[Example] = []
    size = 0
    for example in chain(examples, [None]):
        if example is not None:
            window.append(example)
            size += len(example.content)
        while window and (example is None or len(window) >= rows or size >= bytes):
            index = random.integers(len(window))
            window[index], window[-1] = window[-1], window[index]
            size -= len(window[-1].content)
            yield window.pop()


def _read_files(files: Iterable[Path]) -> Iterator[Example]:
    for path in files:
        # Without these options, pyarrow would read whole column chunks.
        with pq.ParquetFile(path, buffer_size=_READ_BYTES, pre_buffer=False) as file:
            for arrow_batch in file.iter_batches(_READ_ROWS, columns=["content", "label"]):
                for row in arrow_batch.to_pylist():
                    yield Example(row["content"] or b"", row["label"])
