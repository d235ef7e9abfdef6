"""The input and output of the pipeline: items, embeddings and failures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from embedstream_core.errors import Code, Stage

__all__ = ["Embedding", "Entry", "Failure", "Item", "Outcome", "Vectors"]

Vectors = npt.NDArray[np.float32]
"""Of shape (samples, dimension)."""


@dataclass(frozen=True, slots=True)
class Item:
    """One image to embed; exactly one of its bytes, `content`, and its reference, `uri`, is set."""

    image_id: str
    content: bytes | None = None
    uri: str | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Embedding:
    """The outcome of an item that was embedded.

    `vector` is a float32 array of shape (dimension,). `width` and `height` are the image's own, in
    pixels, before any scaling and after its EXIF orientation.
    """

    vector: npt.NDArray[np.float32]
    width: int
    height: int
    content_sha256: str


@dataclass(frozen=True, slots=True)
class Failure:
    """The outcome of an item without a vector; `content_sha256` is set if its bytes were read."""

    code: Code
    stage: Stage
    message: str
    content_sha256: str | None = None


Outcome = Embedding | Failure

Entry = Item | Failure
"""The pipeline's input: an item, or the failure of a message that could not be read as one."""
