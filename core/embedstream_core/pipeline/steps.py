"""What a pipeline does with one content: decode it, and embed its picture with others.

`PlainSteps` does just that. `SharedSteps` wraps it where images of the same bytes are to be decoded
and embedded once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from embedstream_core.boundary import attempt
from embedstream_core.errors import Code, Stage
from embedstream_core.media.image.decode import Picture
from embedstream_core.pipeline.embedding_cache import Known
from embedstream_core.records import Embedding, Failure, Outcome

__all__ = ["Found", "PlainSteps", "SharedSteps", "Steps"]

Found: TypeAlias = "Picture | Outcome | Future[Outcome]"
"""What became of a content: a picture for the model, an outcome, or another item's, once there."""


class Steps(Protocol):
    """Threads share `decode`; `embed` is called from one thread."""

    def decode(self, content: bytes, sha256: str) -> Found:
        """Decode the bytes with that hash; a refusal is a Failure."""

    def embed(self, pictures: Sequence[Picture], hashes: Sequence[str]) -> list[Outcome]:
        """Embed pictures, with the hashes of their contents; return one outcome each, in order."""


class PlainSteps:
    """Decodes and embeds each content that comes."""

    def __init__(
        self,
        decode: Callable[[bytes], Picture],
        forward: Callable[[Sequence[Picture]], npt.NDArray[np.float32]],
    ) -> None:
        """`forward` returns float32 of shape (pictures, dimension)."""
        self._decode = decode
        self._forward = forward

    def decode(self, content: bytes, sha256: str) -> Picture | Failure:
        return attempt(partial(self._decode, content), Stage.DECODE, content_sha256=sha256)

    def embed(self, pictures: Sequence[Picture], hashes: Sequence[str]) -> list[Outcome]:
        rows = zip(self._forward(pictures), pictures, hashes, strict=True)
        return [_outcome(*row) for row in rows]


class SharedSteps:
    """Decodes and embeds equal contents once.

    What is known needs neither; a repetition of what is under way gets the outcome of the first, be
    it a failure. Only embeddings are remembered. Made for one run: what an interrupted run has
    under way stays without an outcome.
    """

    def __init__(self, steps: Steps, known: Known) -> None:
        self._steps = steps
        self._known = known
        self._under_way: dict[str, Future[Outcome]] = {}

    def decode(self, content: bytes, sha256: str) -> Found:
        own: Future[Outcome] = Future()
        # setdefault is one step: of equal contents one is first. What is known is looked up after
        # it, because a content is under way until its embedding is known.
        first = self._under_way.setdefault(sha256, own)
        if first is not own:
            return first
        found = self._known.get(sha256) or self._steps.decode(content, sha256)
        if isinstance(found, Embedding | Failure):
            self._settle(sha256, found)
        return found

    def embed(self, pictures: Sequence[Picture], hashes: Sequence[str]) -> list[Outcome]:
        # Another process may have embedded some since they were read ahead.
        known = {sha256: one for sha256 in hashes if (one := self._known.get(sha256))}
        left = [row for row in zip(pictures, hashes, strict=True) if row[1] not in known]
        fresh = self._embed(left) if left else []
        outcomes = {**known, **dict(zip((sha256 for _, sha256 in left), fresh, strict=True))}
        for sha256, outcome in outcomes.items():
            self._settle(sha256, outcome)
        return [outcomes[sha256] for sha256 in hashes]

    def _embed(self, rows: Sequence[tuple[Picture, str]]) -> list[Outcome]:
        pictures, hashes = zip(*rows, strict=True)
        outcomes = self._steps.embed(pictures, hashes)
        self._known.put([one for one in outcomes if isinstance(one, Embedding)])
        return outcomes

    def _settle(self, sha256: str, outcome: Outcome) -> None:
        self._under_way.pop(sha256).set_result(outcome)


def _outcome(vector: npt.NDArray[np.float32], picture: Picture, sha256: str) -> Outcome:
    norm = float(np.linalg.norm(vector.astype(np.float64)))
    if not np.isfinite(norm) or norm == 0:
        return Failure(
            Code.EMBEDDING_INVALID,
            Stage.EMBED,
            f"the embedding's norm is {norm}",
            content_sha256=sha256,
        )
    return Embedding(vector, width=picture.width, height=picture.height, content_sha256=sha256)
