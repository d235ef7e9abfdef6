"""The steps of a pipeline: fetch and decode an item, and embed its image together with others.

`CachedSteps` wraps `PlainSteps` so that images of the same bytes are decoded and embedded once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from typing import TypeAlias

import numpy as np

from embedstream_core.boundary import attempt
from embedstream_core.engine.engine import Engine
from embedstream_core.errors import Code, Stage
from embedstream_core.media.image.opened_image import Picture
from embedstream_core.pipeline.embedding_cache import EmbeddingCache
from embedstream_core.pipeline.watchdog import Watchdog
from embedstream_core.records import Embedding, Entry, Failure, Outcome

__all__ = ["CachedSteps", "Decoded", "PlainSteps", "Steps", "prepare"]

Decoded: TypeAlias = "Picture | Outcome | Future[Outcome]"
"""An image for the model, an outcome, or the future outcome of another item with equal bytes."""


@dataclass(frozen=True)
class PlainSteps:
    """Decodes and embeds each item. Many threads call `decode`, one calls `embed`."""

    decode_image: Callable[[bytes], Picture]
    engine: Engine
    _: KW_ONLY
    watchdog: Watchdog
    forward_timeout_s: float

    def decode(self, content: bytes, sha256: str) -> Picture | Failure:
        """Decode the bytes with that hash; return a Failure if they are refused."""
        return attempt(partial(self.decode_image, content), Stage.DECODE, content_sha256=sha256)

    def embed(self, pictures: Sequence[Picture], hashes: Sequence[str]) -> list[Outcome]:
        """Embed images, with the hashes of their bytes; return one outcome each, in order."""
        with self.watchdog.watch("a forward pass", timeout_s=self.forward_timeout_s):
            vectors = self.engine.embed([picture.pixels for picture in pictures])
        outcomes: list[Outcome] = []
        for vector, picture, sha256 in zip(vectors, pictures, hashes, strict=True):
            norm = float(np.linalg.norm(vector.astype(np.float64)))
            if np.isfinite(norm) and norm > 0:
                outcomes.append(Embedding(vector, picture.width, picture.height, sha256))
            else:
                message = f"the embedding's norm is {norm}"
                outcomes.append(Failure(Code.EMBEDDING_INVALID, Stage.EMBED, message, sha256))
        return outcomes


@dataclass(frozen=True)
class CachedSteps:
    """Decodes and embeds equal bytes once, with a cache of embeddings.

    A repetition of an item that is in progress gets the outcome of the first one, even a failure.
    Only embeddings are cached. Each run needs steps of its own: an item in progress when a run is
    interrupted never gets an outcome.
    """

    steps: PlainSteps
    cache: EmbeddingCache
    in_progress: dict[str, Future[Outcome]] = field(default_factory=dict, init=False)

    def decode(self, content: bytes, sha256: str) -> Decoded:
        """Look up the bytes with that hash, or decode them."""
        own: Future[Outcome] = Future()
        # setdefault is atomic, so one of equal items is the first. The cache is read after it,
        # because an item stays in progress until its embedding is cached.
        first = self.in_progress.setdefault(sha256, own)
        if first is not own:
            return first
        found = self.cache.get(sha256) or self.steps.decode(content, sha256)
        if isinstance(found, Embedding | Failure):
            self.in_progress.pop(sha256).set_result(found)
        return found

    def embed(self, pictures: Sequence[Picture], hashes: Sequence[str]) -> list[Outcome]:
        """Embed images whose bytes differ; return one outcome each, in order."""
        # Another process may have embedded some of them since they were read ahead.
        outcomes: dict[str, Outcome] = {
            sha256: found for sha256 in hashes if (found := self.cache.get(sha256))
        }
        rest = {
            sha256: picture
            for sha256, picture in zip(hashes, pictures, strict=True)
            if sha256 not in outcomes
        }
        if rest:
            embedded = self.steps.embed([*rest.values()], [*rest])
            self.cache.put([one for one in embedded if isinstance(one, Embedding)])
            outcomes |= zip(rest, embedded, strict=True)
        for sha256, outcome in outcomes.items():
            self.in_progress.pop(sha256).set_result(outcome)
        return [outcomes[sha256] for sha256 in hashes]


Steps: TypeAlias = PlainSteps | CachedSteps


def prepare(fetch: Callable[[str], bytes], steps: Steps, entry: Entry) -> tuple[Decoded, str]:
    """Fetch and decode an entry; return the result and the sha256 of its bytes, "" without any."""
    if isinstance(entry, Failure):
        return entry, ""
    content: bytes | Failure | None = entry.content
    if content is None:
        content = attempt(partial(fetch, entry.uri or ""), Stage.FETCH)
    if isinstance(content, Failure):
        return content, ""
    sha256 = hashlib.sha256(content).hexdigest()
    return steps.decode(content, sha256), sha256
