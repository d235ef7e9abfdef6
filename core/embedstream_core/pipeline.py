"""Items in, outcomes out: fetch, decode, batch and forward, overlapped, bounded and in order."""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from embedstream_core.backends import Pixels
from embedstream_core.decode import (
    DecodeLimits,
    Fidelity,
    Picture,
    Preprocessing,
    open_image,
    render,
)
from embedstream_core.engine import Engine
from embedstream_core.errors import Code, ItemError, Stage
from embedstream_core.records import Embedding, Failure, Item, Outcome

__all__ = ["Pipeline", "PipelineLimits"]

Entry = Item | Failure


@dataclass(frozen=True, slots=True)
class PipelineLimits:
    """What may be under way at once, so that memory is bounded whatever comes.

    `rows` and `bytes` bound what is read ahead of the model, `pixels` what is being decoded;
    a single item over a bound passes alone.
    """

    fetch_threads: int = 16
    decode_threads: int = 1
    rows: int = 256
    bytes: int = 64 * 2**20
    pixels: int = 100_000_000


@dataclass(frozen=True, slots=True)
class _Prepared:
    picture: Picture
    content_sha256: str


@dataclass(slots=True)
class _Batch:
    """One input batch on its way: the outcomes so far, and how many are still to come."""

    outcomes: list[Outcome | None]
    missing: int

    def settle(self, index: int, outcome: Outcome) -> None:
        self.outcomes[index] = outcome
        self.missing -= 1

    def finished(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome is not None]


@dataclass(frozen=True, slots=True)
class _Slot:
    batch: _Batch
    index: int
    size: int
    prepared: Future[_Prepared | Failure]


_Arrival = tuple[_Batch, int, Entry]


class Pipeline:
    """Featurizes batches of items with one engine.

    One outcome per item, in order, one output batch per input batch; never raises for bad bytes.
    Model batches are cut across input batches.
    """

    def __init__(
        self,
        engine: Engine,
        preprocessing: Preprocessing,
        *,
        fetch: Callable[[str], bytes],
        decode_limits: DecodeLimits | None = None,
        fidelity: Fidelity = "exact",
        limits: PipelineLimits | None = None,
    ) -> None:
        """`fetch` turns a reference into bytes or raises an ItemError; threads share it."""
        self._engine = engine
        self._preprocessing = preprocessing
        self._fetch = fetch
        self._decode_limits = decode_limits or DecodeLimits()
        self._fidelity = fidelity
        self._limits = limits or PipelineLimits()
        self._decoding = _Gate(threads=self._limits.decode_threads, pixels=self._limits.pixels)

    def run(self, batches: Iterable[Sequence[Entry]]) -> Iterator[list[Outcome]]:
        """Featurize; a failure that comes in (a message that could not be read) passes through.

        Raises:
            SystemicError: no single item is to blame, the work so far is to be done again.
        """
        threads = self._limits.fetch_threads + self._limits.decode_threads
        pool = ThreadPoolExecutor(threads, thread_name_prefix="prepare")
        try:
            yield from self._run(pool, batches)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _run(
        self, pool: ThreadPoolExecutor, batches: Iterable[Sequence[Entry]]
    ) -> Iterator[list[Outcome]]:
        opened: deque[_Batch] = deque()
        waiting: list[tuple[_Slot, _Prepared]] = []
        for slot in self._read_ahead(pool, _arrivals(batches, opened)):
            prepared = slot.prepared.result()
            if isinstance(prepared, Failure):
                slot.batch.settle(slot.index, prepared)
            else:
                waiting.append((slot, prepared))
            if len(waiting) == self._engine.batch_size:
                self._embed(waiting)
                waiting.clear()
            yield from _finished(opened)
        if waiting:
            self._embed(waiting)
        yield from _finished(opened)

    def _read_ahead(
        self, pool: ThreadPoolExecutor, arrivals: Iterator[_Arrival]
    ) -> Iterator[_Slot]:
        """Keep as many items under way as the limits allow; hand them on in order."""
        ahead: deque[_Slot] = deque()
        size = 0
        for batch, index, entry in arrivals:
            added = len(entry.content or b"") if isinstance(entry, Item) else 0
            while ahead and size + added > self._limits.bytes:
                size -= ahead[0].size
                yield ahead.popleft()
            ahead.append(_Slot(batch, index, added, pool.submit(self._prepare, entry)))
            size += added
            while len(ahead) >= self._limits.rows or size > self._limits.bytes:
                size -= ahead[0].size
                yield ahead.popleft()
        yield from ahead

    def _prepare(self, entry: Entry) -> _Prepared | Failure:
        if isinstance(entry, Failure):
            return entry
        sha256 = None
        try:
            content = self._content(entry)
            sha256 = hashlib.sha256(content).hexdigest()
            opened = open_image(content, self._decode_limits)
            with self._decoding.admit(opened.width * opened.height):
                picture = render(opened, self._preprocessing, fidelity=self._fidelity)
            return _Prepared(picture, sha256)
        except ItemError as error:
            return Failure(error.code, error.stage, error.message, content_sha256=sha256)

    def _content(self, item: Item) -> bytes:
        if item.content is not None:
            return item.content
        if item.uri is None:
            raise ValueError(f"item '{item.image_id}' has neither content nor uri")
        return self._fetch(item.uri)

    def _embed(self, waiting: Sequence[tuple[_Slot, _Prepared]]) -> None:
        pictures: list[Pixels] = [prepared.picture.pixels for _, prepared in waiting]
        vectors = self._engine.embed(pictures)
        for (slot, prepared), vector in zip(waiting, vectors, strict=True):
            slot.batch.settle(slot.index, _outcome(vector, prepared))


class _Gate:
    """Admits work while both its threads and its pixels are within bounds, or when it is idle."""

    def __init__(self, *, threads: int, pixels: int) -> None:
        self._free_threads, self._free_pixels, self._all_pixels = threads, pixels, pixels
        self._changed = threading.Condition()

    @contextmanager
    def admit(self, pixels: int) -> Iterator[None]:
        taken = min(pixels, self._all_pixels)
        with self._changed:
            self._changed.wait_for(lambda: self._free_threads > 0 and self._free_pixels >= taken)
            self._take(threads=1, pixels=taken)
        try:
            yield
        finally:
            with self._changed:
                self._take(threads=-1, pixels=-taken)
                self._changed.notify_all()

    def _take(self, *, threads: int, pixels: int) -> None:
        self._free_threads -= threads
        self._free_pixels -= pixels


def _arrivals(batches: Iterable[Sequence[Entry]], opened: deque[_Batch]) -> Iterator[_Arrival]:
    for entries in batches:
        batch = _Batch([None] * len(entries), missing=len(entries))
        opened.append(batch)
        for index, entry in enumerate(entries):
            yield batch, index, entry


def _finished(opened: deque[_Batch]) -> Iterator[list[Outcome]]:
    while opened and opened[0].missing == 0:
        yield opened.popleft().finished()


def _outcome(vector: np.ndarray[tuple[int], np.dtype[np.float32]], prepared: _Prepared) -> Outcome:
    norm = float(np.linalg.norm(vector.astype(np.float64)))
    if not np.isfinite(norm) or norm == 0:
        return Failure(
            Code.EMBEDDING_INVALID,
            Stage.EMBED,
            f"the embedding's norm is {norm}",
            content_sha256=prepared.content_sha256,
        )
    picture = prepared.picture
    return Embedding(
        vector,
        width=picture.width,
        height=picture.height,
        content_sha256=prepared.content_sha256,
    )
