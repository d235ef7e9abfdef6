"""The contract of a modality: how content of one kind becomes samples for a model.

Images, text and audio each have one object with these functions (`modalities.py`), and one contract
test runs on all of them. Nothing outside `media` and `models` knows which modality it carries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from embedstream_core.records import Media
from embedstream_core.settings import DecodeSettings, ModalityName

__all__ = ["Allocate", "Array", "Arrays", "Header", "Modality", "Sample"]

Array = npt.NDArray[Any]

Arrays = tuple[Array, ...]
"""The inputs of one forward pass; all have the same first dimension, the parts of the batch."""

Allocate: TypeAlias = Callable[[tuple[int, ...], npt.DTypeLike], Array]
"""Returns memory for an array of that shape and dtype; its values are undefined."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Content ready for a model, and what its row says of it.

    `parts` are what the model embeds one by one: the pixels of an image, uint8 of shape (crop_px,
    crop_px, 3); the token ids of a text, int64 of shape (tokens,); the windows of a clip, float32
    of shape (samples,). The embedding of a sample is the mean of its parts' vectors, weighted by
    their lengths.

    Raises:
        ValueError: there is no part, or an empty one: no vector could be made of it.
    """

    parts: Arrays
    media: Media

    def __post_init__(self) -> None:
        if not self.parts or not all(map(len, self.parts)):
            raise ValueError(
                f"{self.media.type}: a sample has at least one part, and none is empty"
            )

    @property
    def size(self) -> int:
        """The bytes of its parts in memory."""
        return sum(part.nbytes for part in self.parts)


class Header(Protocol):
    """What is known of some content before it is decoded."""

    @property
    def elements(self) -> int:
        """The pixels, characters or audio samples that decoding holds in memory."""


HeaderT = TypeVar("HeaderT", bound=Header)
PreprocessingT = TypeVar("PreprocessingT", contravariant=True)


class Modality(Protocol[HeaderT, PreprocessingT]):
    """A kind of content. Its functions keep no state: many threads call them at once."""

    @property
    def name(self) -> ModalityName:
        """The name in cards, rows and messages."""

    def identify(self, content: bytes, settings: DecodeSettings) -> HeaderT:
        """Read the header and apply the limits; nothing is decoded.

        Raises:
            ItemError: empty, over a limit, of a format that is not allowed, or not of this kind.
        """

    def decode(
        self,
        content: bytes,
        header: HeaderT,
        preprocessings: Sequence[PreprocessingT],
        settings: DecodeSettings,
    ) -> list[Sample]:
        """Decode once, and make a sample for each preprocessing, in order.

        Raises:
            ItemError: the content is broken, or is not what its header says.
            MemoryError: this process has too little.
        """

    def collate(self, parts: Sequence[Array], allocate: Allocate = np.empty) -> Arrays:
        """Return the inputs of one forward pass; parts of different lengths are padded.

        All of them are in memory from `allocate`.
        """

    def describe(self, header: HeaderT) -> Media:
        """Return what the row says of the content, as far as its header tells."""

    def make_probes(self, preprocessing: PreprocessingT) -> list[Sample]:
        """Return two samples, always the same, that every encoder must distinguish.

        Their parts have the size of usual content: they also time forward passes.
        """
