"""From items to outcomes: fetch, decode and embed, overlapped, with bounds and in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass, field
from itertools import chain

import torch

from embedstream_core.engine.engine import Engine
from embedstream_core.media.image.opened_image import Picture
from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.media.sandbox import SandboxedDecoder
from embedstream_core.pipeline.decode_threads import InProcessDecoder
from embedstream_core.pipeline.embedding_cache import EmbeddingCache
from embedstream_core.pipeline.steps import CachedSteps, Decoded, PlainSteps, Steps, prepare
from embedstream_core.pipeline.watchdog import Watchdog
from embedstream_core.records import Entry, Failure, Outcome
from embedstream_core.settings import DecodeSettings, Fidelity, PipelineLimits

__all__ = ["Pipeline"]


@dataclass(slots=True)
class _InputBatch:
    """An input batch in progress: the outcomes so far, and how many are missing."""

    outcomes: list[Outcome | None]
    missing: int


@dataclass(frozen=True, slots=True)
class _Slot:
    """An entry that was read ahead, and its place in its input batch; `size` is in bytes."""

    batch: _InputBatch
    index: int
    size: int
    prepared: Future[tuple[Decoded, str]]

    def fill(self, outcome: Outcome) -> None:
        self.batch.outcomes[self.index] = outcome
        self.batch.missing -= 1


@dataclass(frozen=True)
class Pipeline:
    """Embeds input batches of items with one engine.

    An exception that one item causes while it is fetched or decoded becomes that item's failure
    (see `boundary`). Model batches are cut across input batches.

    fetch: turns a reference into bytes or raises an ItemError; threads share it.
    embedding_cache: images of the same bytes are decoded and embedded once (see `CachedSteps`).
    isolated: decodes in a child process; without it this process decodes.
    watchdog: limits the time of decoding in this process and of each forward pass.
    """

    engine: Engine
    preprocessing: ImagePreprocessing
    _: KW_ONLY
    fetch: Callable[[str], bytes]
    decode_limits: DecodeSettings = field(default_factory=DecodeSettings)
    fidelity: Fidelity = "exact"
    limits: PipelineLimits = field(default_factory=PipelineLimits)
    embedding_cache: EmbeddingCache | None = None
    isolated: SandboxedDecoder | None = None
    # A watchdog that is not open does nothing.
    watchdog: Watchdog = field(default_factory=Watchdog)

    def run(self, batches: Iterable[Sequence[Entry]]) -> Iterator[list[Outcome]]:
        """Yield one list of outcomes per input batch, in order; failures pass through.

        Raises:
            SystemicError: no single item is to blame; the caller must run the batches again.
        """
        # On a Spark worker, torch computes with the cores of a task.
        decode_threads = self.limits.decode_threads or torch.get_num_threads()
        decoder = InProcessDecoder(
            preprocessing=self.preprocessing,
            decode_limits=self.decode_limits,
            fidelity=self.fidelity,
            limits=self.limits,
            threads=decode_threads,
            watchdog=self.watchdog,
        )
        plain = PlainSteps(
            (self.isolated or decoder).decode,
            self.engine,
            watchdog=self.watchdog,
            forward_timeout_s=self.limits.forward_timeout_s,
        )
        cache = self.embedding_cache
        steps = plain if cache is None else CachedSteps(plain, cache)
        threads = self.limits.fetch_threads + decode_threads
        pool = ThreadPoolExecutor(threads, thread_name_prefix="prepare")
        opened: deque[_InputBatch] = deque()

        def submit(entry: Entry) -> Future[tuple[Decoded, str]]:
            return pool.submit(prepare, self.fetch, steps, entry)

        try:
            yield from self._embed(steps, self._read_ahead(submit, batches, opened), opened)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            decoder.close()

    def _embed(
        self, steps: Steps, slots: Iterator[_Slot], opened: deque[_InputBatch]
    ) -> Iterator[list[Outcome]]:
        for_model: list[tuple[_Slot, Picture, str]] = []
        for_repetition: list[tuple[_Slot, Future[Outcome]]] = []
        # None marks the end of the input.
        for slot in chain(slots, [None]):
            if slot is not None:
                decoded, sha256 = slot.prepared.result()
                if isinstance(decoded, Picture):
                    for_model.append((slot, decoded, sha256))
                elif isinstance(decoded, Future):
                    for_repetition.append((slot, decoded))
                else:
                    slot.fill(decoded)
            is_full = len(for_model) == self.engine.batch_size
            if for_model and (is_full or len(for_repetition) >= self.limits.rows or slot is None):
                outcomes = steps.embed(
                    [picture for _, picture, _ in for_model],
                    [sha256 for _, _, sha256 in for_model],
                )
                for (embedded, _, _), outcome in zip(for_model, outcomes, strict=True):
                    embedded.fill(outcome)
                for_model.clear()
            waiting, for_repetition = for_repetition, []
            for repeated, first in waiting:
                if first.done():
                    repeated.fill(first.result())
                else:
                    for_repetition.append((repeated, first))
            while opened and opened[0].missing == 0:
                yield [outcome for outcome in opened.popleft().outcomes if outcome is not None]

    def _read_ahead(
        self,
        submit: Callable[[Entry], Future[tuple[Decoded, str]]],
        batches: Iterable[Sequence[Entry]],
        opened: deque[_InputBatch],
    ) -> Iterator[_Slot]:
        """Keep as many entries in progress as the limits allow; yield them in order."""
        ahead: deque[_Slot] = deque()
        total = 0
        for entries in batches:
            batch = _InputBatch([None] * len(entries), missing=len(entries))
            opened.append(batch)
            for index, entry in enumerate(entries):
                size = 0
                if not isinstance(entry, Failure):
                    # A character of text counts as a byte.
                    texts = chain.from_iterable(entry.attributes.items())
                    size = len(entry.content or b"") + sum(map(len, texts))
                while ahead and total + size > self.limits.bytes:
                    total -= ahead[0].size
                    yield ahead.popleft()
                ahead.append(_Slot(batch, index, size, submit(entry)))
                total += size
                while len(ahead) >= self.limits.rows or total > self.limits.bytes:
                    total -= ahead[0].size
                    yield ahead.popleft()
        yield from ahead
