"""The input and output of the pipeline: items, deletions, embeddings and failures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from embedstream_core.errors import Code, Stage

__all__ = ["Deletion", "Embedding", "Entry", "Failure", "Item", "Media", "Outcome", "Vectors"]

Vectors = npt.NDArray[np.float32]
"""Of shape (samples, dimension)."""


@dataclass(frozen=True, slots=True)
class Item:
    """Something to embed; exactly one of its bytes, `content`, and its reference, `uri`, is set.

    `media_type` is the MIME type that the message itself declares: `text/plain` for a text in JSON.
    `position` names it in the log: topic-partition-offset.
    """

    image_id: str
    content: bytes | None = None
    uri: str | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)
    media_type: str | None = None
    position: str | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Deletion:
    """A message without a value, or one that says so: what was sent with its key is deleted."""

    image_id: str
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Media:
    """What a row says of its content; None where it does not apply.

    `type` is a MIME type. `width` and `height` are an image's own, in pixels, before any scaling
    and after its EXIF orientation. `truncated` says whether the model got only the beginning.
    """

    type: str
    width: int | None = None
    height: int | None = None
    duration_s: float | None = None
    characters: int | None = None
    truncated: bool | None = None


@dataclass(frozen=True, slots=True)
class Embedding:
    """The outcome of an item that was embedded; `vector` is float32 of shape (dimension,)."""

    vector: npt.NDArray[np.float32]
    media: Media
    content_sha256: str
    model_id: str = ""


@dataclass(frozen=True, slots=True)
class Failure:
    """The outcome of an item without a vector, or of a deletion, whose code is `deleted`.

    `content_sha256` and `media` are set if its bytes were read; `media.type` is then what they seem
    to be. `model_id` is None until an encoder is chosen.
    """

    code: Code
    stage: Stage
    message: str
    content_sha256: str | None = None
    media: Media | None = None
    model_id: str | None = None


Outcome = Embedding | Failure

Entry = Item | Deletion | Failure
"""The pipeline's input; a failure is that of a message that could not be read as an item."""
