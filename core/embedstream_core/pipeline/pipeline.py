"""From items to outcomes: fetch, decode and embed, overlapped, with bounds and in order."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from itertools import chain, count
from threading import Semaphore

import torch

from embedstream_core.engine.engine import Engine
from embedstream_core.media.image.gpu_jpeg import BatchDecoder
from embedstream_core.media.modalities import Inputs
from embedstream_core.media.modality import Sample
from embedstream_core.media.sandbox import SandboxedDecoder
from embedstream_core.pipeline.decode_threads import InProcessDecoder
from embedstream_core.pipeline.decoded_budget import DecodedBudget
from embedstream_core.pipeline.embedding_cache import EmbeddingCache
from embedstream_core.pipeline.jpeg_batches import open_batch_decoder
from embedstream_core.pipeline.steps import (
    Outcomes,
    Pending,
    Prepared,
    Routes,
    Started,
    Steps,
    count_bytes,
)
from embedstream_core.pipeline.watchdog import Watchdog
from embedstream_core.pipeline.work_record import WorkRecord
from embedstream_core.records import Entry, Failure, Item
from embedstream_core.settings import DecodeSettings, Isolation, ModalityName, PipelineLimits

__all__ = ["Pipeline"]


@dataclass(slots=True)
class _InputBatch:
    """An input batch in progress: the outcomes so far, and how many entries have none."""

    outcomes: list[Outcomes | None]
    missing: int


@dataclass(frozen=True, slots=True)
class _Slot:
    """An entry that was read ahead, and its place in its input batch; `size` is in bytes."""

    batch: _InputBatch
    index: int
    size: int
    prepared: Future[Prepared]

    def fill_from(self, result: Future[Outcomes]) -> bool:
        """Take over the outcomes, and return whether they are there yet."""
        if result.done():
            self.batch.outcomes[self.index] = result.result()
            self.batch.missing -= 1
        return result.done()


@dataclass(slots=True)
class _Queue:
    """What waits for an engine and a modality; `start` is the position of the first entry."""

    start: int = 0
    waiting: list[Pending] = field(default_factory=list)
    parts: int = 0
    bytes: int = 0

    def add(self, position: int, pending: Pending, sample: Sample) -> None:
        if not self.waiting:
            self.start, self.parts, self.bytes = position, 0, 0
        self.waiting.append(pending)
        self.parts += len(sample.parts)
        self.bytes += sample.size


@dataclass(frozen=True)
class Pipeline:
    """Embeds input batches of items with one or several engines.

    Each item is fetched and decoded once. It goes to all engines that accept its modality; where
    these differ, the item's bytes decide (see `Routes`). An exception that one item causes while it
    is fetched or decoded becomes that item's failure (see `boundary`). Model batches are cut across
    input batches. With engines that have several in flight, the outcomes of one come when a later
    one was started, or the input has ended.

    fetch: turns a reference into bytes or raises an ItemError; threads share it.
    embedding_caches: one for each engine, or none (see `Steps`).
    isolation: decodes in a child process within these limits; without it this process decodes.
    watchdog: limits the time of decoding in this process and of each forward pass.
    batch_decoder: decodes common JPEGs; without it `decode_settings.device` decides which does.
    record: gets what the runs took; read it when a run has ended.
    """

    engines: Sequence[Engine]
    _: KW_ONLY
    fetch: Callable[[str], bytes]
    decode_settings: DecodeSettings = field(default_factory=DecodeSettings)
    limits: PipelineLimits = field(default_factory=PipelineLimits)
    embedding_caches: Sequence[EmbeddingCache] = ()
    isolation: Isolation | None = None
    # A watchdog that is not open does nothing.
    watchdog: Watchdog = field(default_factory=Watchdog)
    record: WorkRecord = field(default_factory=WorkRecord)
    batch_decoder: BatchDecoder | None = None

    def run(self, batches: Iterable[Sequence[Entry]]) -> Iterator[list[Outcomes]]:
        """Yield one list per input batch, in order, with the outcomes of each entry.

        Raises:
            SystemicError: no single item is to blame; the caller must run the batches again.
        """
        # On a Spark worker, torch computes with the cores of a task.
        decode_threads = self.limits.decode_threads or torch.get_num_threads()
        routes = Routes(self.engines)
        decoder = self._open_decoder(routes.inputs, decode_threads)
        threads = self.limits.fetch_threads + decode_threads
        # The threads that wait for a batch of JPEGs are no reason to fetch more at a time.
        fetches = Semaphore(threads)

        def fetch(uri: str) -> bytes:
            with fetches:
                return self.fetch(uri)

        steps = Steps(
            self.engines,
            routes,
            fetch,
            decoder.decode,
            caches=self.embedding_caches,
            watchdog=self.watchdog,
            record=self.record,
            forward_timeout_s=self.limits.forward_timeout_s,
        )
        if isinstance(decoder, InProcessDecoder):
            threads += decoder.waiting
        pool = ThreadPoolExecutor(threads, thread_name_prefix="prepare")
        opened: deque[_InputBatch] = deque()
        budget = DecodedBudget(self.limits.bytes)

        def prepare(entry: Entry, position: int) -> Prepared:
            prepared = steps.prepare(entry)
            budget.reserve(position, count_bytes(prepared))
            return prepared

        positions = count()

        def submit(entry: Entry) -> Future[Prepared]:
            return pool.submit(prepare, entry, next(positions))

        def take(slot: _Slot) -> Prepared:
            if not slot.prepared.done():
                with self.record.measure("wait"):
                    wait([slot.prepared])
            prepared = slot.prepared.result()
            budget.release(count_bytes(prepared))
            return prepared

        try:
            slots = self._read_ahead(submit, batches, opened)
            yield from self._embed(steps, ((slot, take(slot)) for slot in slots), opened)
        finally:
            budget.close()
            pool.shutdown(wait=True, cancel_futures=True)
            decoder.close()

    def _open_decoder(self, inputs: Inputs, threads: int) -> SandboxedDecoder | InProcessDecoder:
        measure = partial(self.record.measure, "decode")
        if self.isolation:
            return SandboxedDecoder(
                inputs, self.decode_settings, isolation=self.isolation, measure=measure
            )
        return InProcessDecoder(
            inputs=inputs,
            settings=self.decode_settings,
            limits=self.limits,
            threads=threads,
            watchdog=self.watchdog,
            measure=measure,
            batch_decoder=self.batch_decoder
            or open_batch_decoder(self.decode_settings, [one.device for one in self.engines]),
        )

    def _embed(
        self,
        steps: Steps,
        slots: Iterator[tuple[_Slot, Prepared]],
        opened: deque[_InputBatch],
    ) -> Iterator[list[Outcomes]]:
        """Collect what waits for each engine and modality, and embed it when it is enough.

        An engine computes what was started while this thread prepares the next model batch.
        """
        queues: dict[tuple[int, ModalityName], _Queue] = defaultdict(_Queue)
        started: deque[tuple[int, Started]] = deque()
        waiting: list[tuple[_Slot, Future[Outcomes]]] = []
        # None marks the end of the input.
        for position, entry in enumerate(chain(slots, [None])):
            is_any_done = False
            if entry is not None:
                slot, prepared = entry
                if isinstance(prepared, Pending):
                    waiting.append((slot, prepared.result))
                    for number, sample in prepared.samples.items():
                        queues[number, prepared.modality].add(position, prepared, sample)
                else:
                    waiting.append((slot, prepared))
                    is_any_done = prepared.done()
            if self._embed_due(steps, queues, started, None if entry is None else position):
                is_any_done = True
            if is_any_done:
                waiting = [one for one in waiting if not one[0].fill_from(one[1])]
            while opened and opened[0].missing == 0:
                yield [outcomes for outcomes in opened.popleft().outcomes if outcomes is not None]

    def _embed_due(
        self,
        steps: Steps,
        queues: Mapping[tuple[int, ModalityName], _Queue],
        started: deque[tuple[int, Started]],
        position: int | None,
    ) -> bool:
        """Start the queues that are due at a position, or all at None, the end of the input.

        Finish the oldest when the engines have enough in flight, or when it is `limits.rows`
        entries old, and all at the end; return whether any was finished. `started` has the position
        of each start; no variable may keep its elements, which hold samples.
        """
        is_any_finished = False
        for (number, modality), queue in queues.items():
            if queue.waiting and (
                position is None or self._is_due(queue, position, number, modality)
            ):
                waiting, queue.waiting = queue.waiting, []
                started.append((position or 0, steps.start(number, waiting)))
                if len(started) == max(engine.in_flight for engine in self.engines):
                    steps.finish(started.popleft()[1])
                    is_any_finished = True
        # What reaches no engine must not pile up behind a model batch that none follows.
        while started and (position is None or position - started[0][0] >= self.limits.rows):
            steps.finish(started.popleft()[1])
            is_any_finished = True
        return is_any_finished

    def _is_due(self, queue: _Queue, position: int, number: int, modality: ModalityName) -> bool:
        """Return whether a queue holds enough for its engine, or has waited long enough."""
        engine = self.engines[number]
        # Samples are collected beyond one model batch to save padding, as far as memory allows.
        is_large = queue.parts >= engine.batch_sizes[modality] and queue.bytes > self.limits.bytes
        # A rare modality, or few samples among repetitions, must not hold up the others.
        others = position + 1 - queue.start - len(queue.waiting)
        is_old = others >= self.limits.rows
        return is_large or is_old or len(queue.waiting) >= engine.count_collected(modality)

    def _read_ahead(
        self,
        submit: Callable[[Entry], Future[Prepared]],
        batches: Iterable[Sequence[Entry]],
        opened: deque[_InputBatch],
    ) -> Iterator[_Slot]:
        """Keep as many entries in progress as the limits allow; yield them in order."""
        ahead: deque[_Slot] = deque()
        total = 0
        given = iter(batches)
        while True:
            with self.record.measure("wait"):
                entries = next(given, None)
            if entries is None:
                break
            batch = _InputBatch([None] * len(entries), missing=len(entries))
            opened.append(batch)
            for index, entry in enumerate(entries):
                size = 0
                if not isinstance(entry, Failure):
                    # A character of text counts as a byte.
                    texts = chain.from_iterable(entry.attributes.items())
                    size = sum(map(len, texts))
                if isinstance(entry, Item):
                    size += len(entry.content or b"")
                while ahead and total + size > self.limits.bytes:
                    total -= ahead[0].size
                    yield ahead.popleft()
                ahead.append(_Slot(batch, index, size, submit(entry)))
                total += size
                while len(ahead) >= self.limits.rows or total > self.limits.bytes:
                    total -= ahead[0].size
                    yield ahead.popleft()
        yield from ahead
