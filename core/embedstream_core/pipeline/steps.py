"""The steps of a pipeline: route, decode and embed an item for each encoder that accepts it."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import partial
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from embedstream_core.boundary import attempt
from embedstream_core.engine.engine import Engine
from embedstream_core.engine.transfer import Finish
from embedstream_core.errors import Code, Stage
from embedstream_core.media.detect import detect_type, find_modality
from embedstream_core.media.modalities import Inputs, Preprocessing
from embedstream_core.media.modality import Sample
from embedstream_core.pipeline.embedding_cache import EmbeddingCache
from embedstream_core.pipeline.watchdog import Watchdog
from embedstream_core.pipeline.work_record import WorkRecord
from embedstream_core.records import (
    Deletion,
    Embedding,
    Entry,
    Failure,
    Item,
    Media,
    Outcome,
)
from embedstream_core.settings import ModalityName

__all__ = ["Decode", "Outcomes", "Pending", "Prepared", "Routes", "Started", "Steps", "count_bytes"]

Outcomes: TypeAlias = tuple[Outcome, ...]
"""The outcomes of one entry: one for each encoder that accepts it, or the only failure.

A deletion has one, whatever the encoders are."""

Decode: TypeAlias = Callable[[bytes, ModalityName], list[Sample]]
"""Decodes for each preprocessing of `Routes.inputs`, in order; raises ItemError or MemoryError."""


_DELETED = Failure(Code.DELETED, Stage.MESSAGE, "the message says that its key is deleted")


@dataclass(eq=False, slots=True)
class Pending:
    """An item that waits for engines: its samples and its outcomes, by the engine's number.

    `result` is set when the last outcome is.
    """

    sha256: str
    modality: ModalityName
    samples: dict[int, Sample]
    outcomes: dict[int, Outcome]
    result: Future[Outcomes] = field(default_factory=Future)


Prepared: TypeAlias = "Pending | Future[Outcomes]"
"""To be embedded, or outcomes: its own, or those of another item with equal bytes."""


@dataclass(frozen=True, slots=True)
class Started:
    """Samples of one modality that an engine was given, and whose outcomes are due.

    `left` are those that are not cached; `finish` returns their vectors, and is None without any.
    """

    number: int
    waiting: Sequence[Pending]
    left: Sequence[Pending]
    finish: Finish | None


def count_bytes(prepared: Prepared) -> int:
    """Return the size of the samples that wait for engines."""
    if not isinstance(prepared, Pending):
        return 0
    # Engines with equal preprocessings share a sample.
    samples = {id(sample): sample for sample in prepared.samples.values()}
    return sum(sample.size for sample in samples.values())


class Routes:
    """Which engines take an item.

    Engines that accept different modalities share a topic: the bytes decide where an item goes.
    """

    def __init__(self, engines: Sequence[Engine]) -> None:
        self._engines = engines
        self._accepting: dict[ModalityName, dict[int, int]] = defaultdict(dict)
        inputs: dict[ModalityName, list[Preprocessing]] = defaultdict(list)
        for number, engine in enumerate(engines):
            for modality, preprocessing in engine.inputs.items():
                if preprocessing not in inputs[modality]:
                    inputs[modality].append(preprocessing)
                position = inputs[modality].index(preprocessing)
                self._accepting[modality][number] = position
        self.inputs: Inputs = {modality: tuple(found) for modality, found in inputs.items()}
        self._is_uniform = all(one.inputs.keys() == engines[0].inputs.keys() for one in engines)

    def choose(self, item: Item, content: bytes) -> ModalityName | Failure:
        """Return the modality of an item's bytes, or a failure if no engine accepts it."""
        if not item.media_type and len(self.inputs) == 1:
            return next(iter(self.inputs))
        kind = item.media_type or detect_type(content)
        modality = find_modality(kind)
        if modality is not None and modality in self.inputs:
            return modality
        accepted = " and ".join(self.inputs)
        if not content:
            message = f"the message has no bytes; the encoders accept {accepted}"
            return Failure(Code.MEDIA_EMPTY, Stage.DECODE, message)
        message = f"the message holds {kind}; the encoders accept {accepted}"
        return Failure(Code.MEDIA_UNSUPPORTED, Stage.DECODE, message, media=Media(kind))

    def share(self, ended: Failure | Deletion) -> Future[Outcomes]:
        """Return the outcomes of an entry that reaches no engine.

        A failure has one for each engine if all accept the same modalities, since then each was to
        embed the item; otherwise one that names no model. A deletion always has one of that kind.
        """
        result: Future[Outcomes] = Future()
        if isinstance(ended, Deletion):
            result.set_result((_DELETED,))
        else:
            models = [one.model_id for one in self._engines] if self._is_uniform else [None]
            result.set_result(tuple(replace(ended, model_id=one) for one in models))
        return result

    def find_engines(self, modality: ModalityName) -> dict[int, int]:
        """Return the engines that accept a modality, with the position of their preprocessing."""
        return self._accepting[modality]


@dataclass(frozen=True)
class Steps:
    """Prepares and embeds items. Many threads call `prepare`, one calls `start` and `finish`.

    With `caches`, one for each engine, items of equal bytes are decoded and embedded once: a
    repetition of an item in progress gets the outcomes of the first one, even failures, and an
    earlier one's embeddings come from the caches. Each run needs steps of its own: an item in
    progress when a run is interrupted never gets outcomes.
    """

    engines: Sequence[Engine]
    routes: Routes
    fetch: Callable[[str], bytes]
    decode: Decode
    _: KW_ONLY
    caches: Sequence[EmbeddingCache]
    watchdog: Watchdog
    record: WorkRecord
    forward_timeout_s: float
    in_progress: dict[tuple[str, ModalityName], Future[Outcomes]] = field(
        default_factory=dict, init=False
    )

    def prepare(self, entry: Entry) -> Prepared:
        """Fetch, route and decode an entry."""
        if not isinstance(entry, Item):
            return self.routes.share(entry)
        content = entry.content
        if content is None:
            fetch = partial(self.fetch, entry.uri or "")
            with self.record.measure("fetch"):
                fetched = attempt(fetch, Stage.FETCH, position=entry.position)
            if isinstance(fetched, Failure):
                return self.routes.share(fetched)
            content = fetched
        sha256 = hashlib.sha256(content).hexdigest()
        choose = partial(self.routes.choose, entry, content)
        modality = attempt(choose, Stage.DECODE, position=entry.position)
        if isinstance(modality, Failure):
            return self.routes.share(replace(modality, content_sha256=sha256))
        pending = Pending(sha256, modality, {}, {})
        if self.caches:
            # setdefault is atomic, so one of equal items is the first. The caches are read after
            # it, because an item stays in progress until its embeddings are cached.
            first = self.in_progress.setdefault((sha256, modality), pending.result)
            if first is not pending.result:
                first.add_done_callback(self._count_hits)
                return first
        numbers = self.routes.find_engines(modality)
        self._look_up(pending, numbers)
        if missing := numbers.keys() - pending.outcomes.keys():
            decode = partial(self.decode, content, modality)
            samples = attempt(decode, Stage.DECODE, content_sha256=sha256, position=entry.position)
            if not isinstance(samples, Failure):
                pending.samples.update({one: samples[numbers[one]] for one in missing})
                return pending
            kind = entry.media_type or attempt(partial(detect_type, content), Stage.DECODE)
            media = Media(kind) if isinstance(kind, str) else None
            for number in missing:
                model_id = self.engines[number].model_id
                pending.outcomes[number] = replace(samples, media=media, model_id=model_id)
        self._settle(pending)
        return pending.result

    def start(self, number: int, waiting: Sequence[Pending]) -> Started:
        """Start to embed, with one engine, samples of one modality.

        What is started is finished in the same order.
        """
        if self.caches:
            # Another process may have embedded some of them since they were read ahead.
            for pending in waiting:
                self._look_up(pending, [number])
        left = [pending for pending in waiting if number not in pending.outcomes]
        if not left:
            return Started(number, waiting, left, None)
        samples = [pending.samples[number] for pending in left]
        watch = partial(self.watchdog.watch, "a forward pass", timeout_s=self.forward_timeout_s)
        with self.record.measure("forward"):
            finish = self.engines[number].submit(samples, left[0].modality, watch=watch)
        return Started(number, waiting, left, finish)

    def finish(self, started: Started) -> None:
        """Wait for the vectors, and add the outcomes."""
        number = started.number
        if started.finish is not None:
            with self.record.measure("forward"):
                vectors = started.finish()
            for pending, vector in zip(started.left, vectors, strict=True):
                pending.outcomes[number] = self._make_outcome(number, pending, vector)
            if self.caches:
                made = [pending.outcomes[number] for pending in started.left]
                self.caches[number].put([one for one in made if isinstance(one, Embedding)])
        for pending in started.waiting:
            del pending.samples[number]
            if not pending.samples:
                self._settle(pending)

    def _make_outcome(
        self, number: int, pending: Pending, vector: npt.NDArray[np.float32]
    ) -> Outcome:
        media, model_id = pending.samples[number].media, self.engines[number].model_id
        norm = float(np.linalg.norm(vector.astype(np.float64)))
        if np.isfinite(norm) and norm > 0:
            return Embedding(vector, media, pending.sha256, model_id)
        message = f"the embedding's norm is {norm}"
        return Failure(
            Code.EMBEDDING_INVALID, Stage.EMBED, message, pending.sha256, media, model_id
        )

    def _look_up(self, pending: Pending, numbers: Iterable[int]) -> None:
        """Add the cached embeddings of these engines."""
        if not self.caches:
            return
        for number in numbers:
            found = self.caches[number].get(pending.sha256)
            # A text and an image may have equal bytes.
            if found and find_modality(found.media.type) == pending.modality:
                model_id = self.engines[number].model_id
                pending.outcomes[number] = replace(found, model_id=model_id)
                self.record.add_cache_hits(1)

    def _count_hits(self, shared: Future[Outcomes]) -> None:
        """Count the embeddings that an item shares with an equal one."""
        embeddings = sum(isinstance(one, Embedding) for one in shared.result())
        self.record.add_cache_hits(embeddings)

    def _settle(self, pending: Pending) -> None:
        self.in_progress.pop((pending.sha256, pending.modality), None)
        outcomes = pending.outcomes
        pending.result.set_result(tuple(outcomes[number] for number in sorted(outcomes)))
