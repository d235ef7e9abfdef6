"""Items in, outcomes out: fetch, decode, batch and forward, overlapped, bounded and in order."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from embedstream_core.boundary import attempt
from embedstream_core.engine.engine import Engine
from embedstream_core.errors import Stage
from embedstream_core.media.image.decode import Picture, Preprocessing
from embedstream_core.media.sandbox import IsolatedDecoder
from embedstream_core.pipeline.decode_threads import InProcessDecoder
from embedstream_core.pipeline.embedding_cache import Known
from embedstream_core.pipeline.steps import Found, PlainSteps, SharedSteps, Steps
from embedstream_core.pipeline.watchdog import Watchdog
from embedstream_core.records import Entry, Failure, Item, Outcome
from embedstream_core.settings import DecodeLimits, Fidelity, PipelineLimits

__all__ = ["Pipeline", "PipelineLimits"]


@dataclass(slots=True)
class _Batch:
    """One input batch on its way: the outcomes so far, and how many are still to come."""

    outcomes: list[Outcome | None]
    missing: int

    def finished(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome is not None]


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What was found of an item, and the sha256 of its content where there is one."""

    found: Found
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class _Slot:
    """An item that was read ahead, and its place in its batch; `size` in bytes."""

    batch: _Batch
    index: int
    size: int
    prepared: Future[_Prepared]

    def settle(self, outcome: Outcome) -> None:
        self.batch.outcomes[self.index] = outcome
        self.batch.missing -= 1


_Arrival = tuple[_Batch, int, Entry]
_Submit = Callable[[Entry], Future[_Prepared]]


class Pipeline:
    """Featurizes batches of items with one engine.

    One outcome per item, in order, one output batch per input batch. Whatever one item raises while
    it is fetched or decoded becomes that item's failure (see `boundary`). Model batches are cut
    across input batches.

    With `known`, images of the same bytes are decoded and embedded once (see `SharedSteps`).
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

    def run(self, batches: Iterable[Sequence[Entry]]) -> Iterator[list[Outcome]]:
        """Featurize; a failure that comes in (a message that could not be read) passes through.

        Raises:
            SystemicError: no single item is to blame, the work so far is to be done again.
        """
        here = self._open_decoder()
        steps: Steps = PlainSteps((self._isolated or here).decode, self._forward)
        if self._known is not None:
            steps = SharedSteps(steps, self._known)
        threads = self._limits.fetch_threads + self._decode_threads
        pool = ThreadPoolExecutor(threads, thread_name_prefix="prepare")
        try:
            yield from self._run(
                steps, lambda entry: pool.submit(self._prepare, steps, entry), batches
            )
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            here.close()

    def _run(
        self, steps: Steps, submit: _Submit, batches: Iterable[Sequence[Entry]]
    ) -> Iterator[list[Outcome]]:
        opened: deque[_Batch] = deque()
        # For the model, and for the outcome of another item.
        waiting: list[tuple[_Slot, Picture, str]] = []
        held: list[tuple[_Slot, Future[Outcome]]] = []
        for slot in self._read_ahead(submit, _arrivals(batches, opened)):
            prepared = slot.prepared.result()
            if isinstance(prepared.found, Picture):
                waiting.append((slot, prepared.found, prepared.sha256))
            elif isinstance(prepared.found, Future):
                held.append((slot, prepared.found))
            else:
                slot.settle(prepared.found)
            if len(waiting) == self._engine.batch_size or len(held) >= self._limits.rows:
                _embed(steps, waiting)
            held = _settle_done(held)
            yield from _finished(opened)
        _embed(steps, waiting)
        _settle_done(held)
        yield from _finished(opened)

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

    def _prepare(self, steps: Steps, entry: Entry) -> _Prepared:
        if isinstance(entry, Failure):
            return _Prepared(entry)
        content = attempt(lambda: self._content(entry), Stage.FETCH)
        if isinstance(content, Failure):
            return _Prepared(content)
        sha256 = hashlib.sha256(content).hexdigest()
        return _Prepared(steps.decode(content, sha256), sha256)

    def _content(self, item: Item) -> bytes:
        if item.content is not None:
            return item.content
        if item.uri is None:
            raise ValueError(f"item '{item.image_id}' has neither content nor uri")
        return self._fetch(item.uri)

    def _open_decoder(self) -> InProcessDecoder:
        return InProcessDecoder(
            self._preprocessing,
            self._decode_limits,
            fidelity=self._fidelity,
            threads=self._decode_threads,
            pixels=self._limits.pixels,
            timeout_s=self._limits.decode_timeout_s,
            watchdog=self._watchdog,
        )

    def _forward(self, pictures: Sequence[Picture]) -> npt.NDArray[np.float32]:
        timeout_s = self._limits.forward_timeout_s
        watchdog = self._watchdog
        with watchdog.watch("a forward pass", timeout_s=timeout_s) if watchdog else nullcontext():
            return self._engine.embed([picture.pixels for picture in pictures])


def _embed(steps: Steps, waiting: list[tuple[_Slot, Picture, str]]) -> None:
    """Embed what waits for the model, and wait no more."""
    if waiting:
        slots, pictures, hashes = zip(*waiting, strict=True)
        for slot, outcome in zip(slots, steps.embed(pictures, hashes), strict=True):
            slot.settle(outcome)
        waiting.clear()


def _settle_done(
    held: list[tuple[_Slot, Future[Outcome]]],
) -> list[tuple[_Slot, Future[Outcome]]]:
    """Settle what has its outcome by now; return the rest."""
    left = []
    for slot, outcome in held:
        if outcome.done():
            slot.settle(outcome.result())
        else:
            left.append((slot, outcome))
    return left


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
