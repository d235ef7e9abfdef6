"""Items in, outcomes out: fetch, decode, batch and forward, overlapped, bounded and in order."""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch

from embedstream_core.boundary import attempt
from embedstream_core.decode import (
    Picture,
    Pixels,
    Preprocessing,
    open_image,
)
from embedstream_core.engine import Engine
from embedstream_core.errors import Code, Stage
from embedstream_core.isolated import IsolatedDecoder
from embedstream_core.known import Known
from embedstream_core.quick_jpeg import render_quickly
from embedstream_core.records import Embedding, Entry, Failure, Item, Outcome
from embedstream_core.settings import DecodeLimits, Fidelity, PipelineLimits
from embedstream_core.watchdog import Watchdog

__all__ = ["Pipeline", "PipelineLimits"]


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
    prepared: Future[_Prepared]


@dataclass(slots=True)
class _Content:
    """The bytes of one image, or of several that are alike, and the slots that await its outcome.

    Only the thread that runs the pipeline touches the slots and the outcome. `sha256` is empty
    where the bytes could not be had.
    """

    sha256: str = ""
    slots: list[_Slot] = field(default_factory=list)
    outcome: Outcome | None = None

    def take(self, slot: _Slot) -> None:
        if self.outcome is None:
            self.slots.append(slot)
        else:
            slot.batch.settle(slot.index, self.outcome)

    def settle(self, outcome: Outcome) -> None:
        self.outcome = outcome
        for slot in self.slots:
            slot.batch.settle(slot.index, outcome)
        # They lead back here; kept, they would hold their pixels until the next garbage collection.
        self.slots.clear()


@dataclass(frozen=True, slots=True)
class _Prepared:
    """An item before the model: `found` is None where another item brings its outcome."""

    content: _Content
    found: Picture | Outcome | None


_Arrival = tuple[_Batch, int, Entry]
_Submit = Callable[[Entry], Future[_Prepared]]
_UnderWay = dict[str, _Content]


class Pipeline:
    """Featurizes batches of items with one engine.

    One outcome per item, in order, one output batch per input batch. Whatever one item raises while
    it is fetched or decoded becomes that item's failure (see `boundary`). Model batches are cut
    across input batches.

    With `known`, images of the same bytes are decoded and embedded once: what is known needs
    neither, and a repetition of what is under way shares its outcome, be it a failure.
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
        known: Known | None = None,
        isolated: IsolatedDecoder | None = None,
        watchdog: Watchdog | None = None,
    ) -> None:
        """`fetch` turns a reference into bytes or raises an ItemError; threads share it.

        `isolated` decodes, where it is given; otherwise this process does. `watchdog` watches over
        that, and over each forward pass.
        """
        self._engine = engine
        self._preprocessing = preprocessing
        self._fetch = fetch
        self._decode_limits = decode_limits or DecodeLimits()
        self._fidelity = fidelity
        self._limits = limits or PipelineLimits()
        self._known = known
        self._isolated = isolated
        self._watchdog = watchdog
        # On a worker of Spark, torch computes with the cores of a task.
        self._decode_threads = self._limits.decode_threads or torch.get_num_threads()
        self._decoding = _Gate(threads=self._decode_threads, pixels=self._limits.pixels)
        # Of their own: malloc keeps what was freed for the thread that asked for it, so that each
        # thread that ever decoded would hold a picture's memory.
        self._decoders = ThreadPoolExecutor(self._decode_threads, thread_name_prefix="decode")

    def run(self, batches: Iterable[Sequence[Entry]]) -> Iterator[list[Outcome]]:
        """Featurize; a failure that comes in (a message that could not be read) passes through.

        Raises:
            SystemicError: no single item is to blame, the work so far is to be done again.
        """
        threads = self._limits.fetch_threads + self._decode_threads
        pool = ThreadPoolExecutor(threads, thread_name_prefix="prepare")
        under_way: _UnderWay = {}
        try:
            yield from self._run(
                lambda entry: pool.submit(self._prepare, under_way, entry), under_way, batches
            )
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _run(
        self,
        submit: _Submit,
        under_way: _UnderWay,
        batches: Iterable[Sequence[Entry]],
    ) -> Iterator[list[Outcome]]:
        opened: deque[_Batch] = deque()
        waiting: list[tuple[_Content, Picture]] = []
        for slot in self._read_ahead(submit, _arrivals(batches, opened)):
            prepared = slot.prepared.result()
            prepared.content.take(slot)
            found = self._found_by_now(prepared)
            if isinstance(found, Picture):
                waiting.append((prepared.content, found))
            elif found is not None:
                _settle(under_way, prepared.content, found)
            if self._is_full(waiting):
                self._embed(under_way, waiting)
                waiting.clear()
            yield from _finished(opened)
        if waiting:
            self._embed(under_way, waiting)
        yield from _finished(opened)

    def _found_by_now(self, prepared: _Prepared) -> Picture | Outcome | None:
        """What was found, unless another process has embedded it since: it was read far ahead."""
        if self._known is None or not isinstance(prepared.found, Picture):
            return prepared.found
        return self._known.get(prepared.content.sha256) or prepared.found

    def _is_full(self, waiting: Sequence[tuple[_Content, Picture]]) -> bool:
        """Whether the model is to run: also when too many repetitions wait for a batch to fill."""
        full = len(waiting) == self._engine.batch_size
        if full or self._known is None:
            return full
        return sum(len(content.slots) - 1 for content, _ in waiting) >= self._limits.rows

    def _read_ahead(self, submit: _Submit, arrivals: Iterator[_Arrival]) -> Iterator[_Slot]:
        """Keep as many items under way as the limits allow; hand them on in order."""
        ahead: deque[_Slot] = deque()
        size = 0
        for batch, index, entry in arrivals:
            added = _size(entry)
            while ahead and size + added > self._limits.bytes:
                size -= ahead[0].size
                yield ahead.popleft()
            ahead.append(_Slot(batch, index, added, submit(entry)))
            size += added
            while len(ahead) >= self._limits.rows or size > self._limits.bytes:
                size -= ahead[0].size
                yield ahead.popleft()
        yield from ahead

    def _prepare(self, under_way: _UnderWay, entry: Entry) -> _Prepared:
        if isinstance(entry, Failure):
            return _Prepared(_Content(), entry)
        data = attempt(lambda: self._data(entry), Stage.FETCH)
        if isinstance(data, Failure):
            return _Prepared(_Content(), data)
        content = _Content(hashlib.sha256(data).hexdigest())
        if self._known is None:
            return _Prepared(content, self._decode(data, content.sha256))
        # setdefault is one step: of equal contents one is first. What is known is looked up after
        # it, for a content is under way until its embedding is known.
        first = under_way.setdefault(content.sha256, content)
        if first is not content:
            return _Prepared(first, None)
        known = self._known.get(content.sha256)
        return _Prepared(content, known or self._decode(data, content.sha256))

    def _data(self, item: Item) -> bytes:
        if item.content is not None:
            return item.content
        if item.uri is None:
            raise ValueError(f"item '{item.image_id}' has neither content nor uri")
        return self._fetch(item.uri)

    def _decode(self, data: bytes, sha256: str) -> Picture | Failure:
        decode = self._isolated.decode if self._isolated else self._decode_here
        return attempt(lambda: decode(data), Stage.DECODE, content_sha256=sha256)

    def _decode_here(self, data: bytes) -> Picture:
        timeout_s = self._limits.decode_timeout_s
        with self._watch("reading an image's header", timeout_s):
            opened = open_image(data, self._decode_limits)
        # Waiting for a turn is no hang, so the watch begins after it.
        turn = self._decoding.admit(opened.width * opened.height)
        with turn, self._watch("decoding an image", timeout_s):
            return self._decoders.submit(
                render_quickly, data, opened, self._preprocessing, fidelity=self._fidelity
            ).result()

    def _watch(self, work: str, timeout_s: float) -> AbstractContextManager[None]:
        return self._watchdog.watch(work, timeout_s=timeout_s) if self._watchdog else nullcontext()

    def _embed(self, under_way: _UnderWay, waiting: Sequence[tuple[_Content, Picture]]) -> None:
        pictures: list[Pixels] = [picture.pixels for _, picture in waiting]
        with self._watch("a forward pass", self._limits.forward_timeout_s):
            vectors = self._engine.embed(pictures)
        outcomes = [
            _outcome(vector, picture, content.sha256)
            for vector, (content, picture) in zip(vectors, waiting, strict=True)
        ]
        if self._known is not None:
            self._known.put([outcome for outcome in outcomes if isinstance(outcome, Embedding)])
        for (content, _), outcome in zip(waiting, outcomes, strict=True):
            _settle(under_way, content, outcome)


class _Gate:
    """Admits work in the order of its arrival, while threads and pixels are within bounds.

    Each waits for a turn of its own: woken all at once, they would spend more than the decoding.
    """

    def __init__(self, *, threads: int, pixels: int) -> None:
        self._free_threads, self._free_pixels, self._all_pixels = threads, pixels, pixels
        self._waiting: deque[tuple[int, threading.Lock]] = deque()
        self._changing = threading.Lock()

    @contextmanager
    def admit(self, pixels: int) -> Iterator[None]:
        taken = min(pixels, self._all_pixels)
        turn = threading.Lock()
        turn.acquire()
        with self._changing:
            self._waiting.append((taken, turn))
            self._give_turns()
        turn.acquire()
        try:
            yield
        finally:
            with self._changing:
                self._free_threads += 1
                self._free_pixels += taken
                self._give_turns()

    def _give_turns(self) -> None:
        while self._waiting and self._free_threads > 0:
            taken, turn = self._waiting[0]
            if taken > self._free_pixels:
                return
            self._waiting.popleft()
            self._free_threads -= 1
            self._free_pixels -= taken
            turn.release()


def _arrivals(batches: Iterable[Sequence[Entry]], opened: deque[_Batch]) -> Iterator[_Arrival]:
    for entries in batches:
        batch = _Batch([None] * len(entries), missing=len(entries))
        opened.append(batch)
        for index, entry in enumerate(entries):
            yield batch, index, entry


def _size(entry: Entry) -> int:
    """What an item keeps in memory; a character of text counts as a byte."""
    if isinstance(entry, Failure):
        return 0
    texts = (len(name) + len(value) for name, value in entry.attributes.items())
    return len(entry.content or b"") + sum(texts)


def _finished(opened: deque[_Batch]) -> Iterator[list[Outcome]]:
    while opened and opened[0].missing == 0:
        yield opened.popleft().finished()


def _settle(under_way: _UnderWay, content: _Content, outcome: Outcome) -> None:
    under_way.pop(content.sha256, None)
    content.settle(outcome)


def _outcome(
    vector: np.ndarray[tuple[int], np.dtype[np.float32]], picture: Picture, sha256: str
) -> Outcome:
    norm = float(np.linalg.norm(vector.astype(np.float64)))
    if not np.isfinite(norm) or norm == 0:
        return Failure(
            Code.EMBEDDING_INVALID,
            Stage.EMBED,
            f"the embedding's norm is {norm}",
            content_sha256=sha256,
        )
    return Embedding(vector, width=picture.width, height=picture.height, content_sha256=sha256)
