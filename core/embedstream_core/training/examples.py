"""Labelled pictures from Parquet files: read as a stream, shuffled within bounds, decoded ahead."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from embedstream_core.errors import ItemError
from embedstream_core.media.image.decode import DecodeLimits, Pixels, Preprocessing, open_image
from embedstream_core.media.image.fast_jpeg import render_quickly
from embedstream_core.settings import Fidelity

__all__ = ["Example", "Pictures", "Source", "shuffled"]

# What one process holds in memory of its files, whatever their size.
_READ_ROWS = 64
_READ_BYTES = 2**20
_SHUFFLED_ROWS = 2048
_SHUFFLED_BYTES = 256 * 2**20
_DECODED_AHEAD = 64


class Example(NamedTuple):
    """An image's bytes and the index of its class; what has no bytes is an empty image."""

    content: bytes
    label: int


class Source(Protocol):
    """What a process trains on, as often as it wants."""

    @property
    def rows(self) -> int:
        """At least as many as one reading gives."""

    def read(
        self, random: np.random.Generator | None, skipped: Counter[str]
    ) -> Iterator[tuple[npt.NDArray[Any], int]]:
        """Each input with the index of its class: in an order of `random`'s, or in a fixed one.

        What gives no input is counted in `skipped`, by the code of its error.
        """


@dataclass(frozen=True, slots=True)
class Pictures:
    """The pictures of Parquet files with the columns `content`, bytes, and `label`, an int.

    Memory is bounded whatever the files hold: a random order is one of the files, and within a
    window of 2,048 rows or 256 MiB. Inputs are uint8 of shape (crop_px, crop_px, 3).
    """

    files: tuple[Path, ...]
    preprocessing: Preprocessing
    limits: DecodeLimits
    fidelity: Fidelity = "exact"
    threads: int = 1

    @property
    def rows(self) -> int:
        """Rows of the files, those that hold no picture included; no row is read."""
        return sum(pq.read_metadata(path).num_rows for path in self.files)

    def read(
        self, random: np.random.Generator | None, skipped: Counter[str]
    ) -> Iterator[tuple[Pixels, int]]:
        """Each picture with its label; never raises for bad bytes, which are counted."""
        return self._decoded(self._examples(random), skipped)

    def _examples(self, random: np.random.Generator | None) -> Iterator[Example]:
        if random is None:
            return _rows(self.files)
        order = random.permutation(len(self.files))
        return shuffled(_rows([self.files[index] for index in order]), random)

    def _decoded(
        self, examples: Iterable[Example], skipped: Counter[str]
    ) -> Iterator[tuple[Pixels, int]]:
        ahead: deque[tuple[Future[Pixels], int]] = deque()
        with ThreadPoolExecutor(self.threads, thread_name_prefix="decode") as pool:
            for example in examples:
                ahead.append((pool.submit(self._decode, example.content), example.label))
                if len(ahead) > _DECODED_AHEAD:
                    yield from _settled(*ahead.popleft(), skipped)
            while ahead:
                yield from _settled(*ahead.popleft(), skipped)

    def _decode(self, content: bytes) -> Pixels:
        opened = open_image(content, self.limits)
        picture = render_quickly(content, opened, self.preprocessing, fidelity=self.fidelity)
        return picture.pixels


def shuffled(
    examples: Iterable[Example],
    random: np.random.Generator,
    *,
    rows: int = _SHUFFLED_ROWS,
    bytes: int = _SHUFFLED_BYTES,  # noqa: A002 - as in PipelineLimits
) -> Iterator[Example]:
    """The same in another order, within a window of so many rows or bytes."""
    window: list[Example] = []
    size = 0
    for example in examples:
        window.append(example)
        size += len(example.content)
        while len(window) >= rows or size >= bytes:
            taken = _taken(window, random)
            size -= len(taken.content)
            yield taken
    while window:
        yield _taken(window, random)


def _taken(window: list[Example], random: np.random.Generator) -> Example:
    index = random.integers(len(window))
    window[index], window[-1] = window[-1], window[index]
    return window.pop()


def _rows(files: Iterable[Path]) -> Iterator[Example]:
    for path in files:
        # Whole column chunks would be read otherwise.
        with pq.ParquetFile(path, buffer_size=_READ_BYTES, pre_buffer=False) as file:
            for batch in file.iter_batches(_READ_ROWS, columns=["content", "label"]):
                for row in batch.to_pylist():
                    yield Example(row["content"] or b"", row["label"])


def _settled(
    picture: Future[Pixels], label: int, skipped: Counter[str]
) -> Iterator[tuple[Pixels, int]]:
    try:
        yield picture.result(), label
    except ItemError as error:
        skipped[error.code.value] += 1
