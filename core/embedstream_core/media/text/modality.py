"""From the bytes of a text to token ids, within limits.

| content | outcome |
| --- | --- |
| no bytes; only whitespace, control, format or zero-width characters | `text_empty` |
| characters in which the tokenizer finds no token | `text_empty` |
| bytes that are not UTF-8, unpaired surrogates included | `text_malformed` |
| more bytes or characters than the limits | `text_too_large` |
| a byte order mark of UTF-8 | dropped |
| more tokens than the model takes | cut, and recorded as truncated |
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from embedstream_core.errors import Code, ItemError, build_decode_error
from embedstream_core.media.headers import check_limit
from embedstream_core.media.modality import Allocate, Array, Arrays, Modality, Sample
from embedstream_core.media.text.preprocessing import TextPreprocessing
from embedstream_core.records import Media
from embedstream_core.settings import DecodeSettings, ModalityName

__all__ = ["TEXT", "TextHeader"]

_check_limit = partial(check_limit, modality="text")

_TYPE = "text/plain"

# Controls, formats (zero-width characters are among them) and the three kinds of separators.
_INVISIBLE = frozenset({"Cc", "Cf", "Zl", "Zp", "Zs"})

# Of 49 and 48 words, on different subjects.
_PROBES = (
    "The library opens a compressed archive, reads the names of its members and extracts those "
    "that the caller asks for. A member that is damaged raises an error which names it, and the "
    "other members can still be read after that, in any order and as often as needed.",
    "In early spring the river rises for several weeks, because the snow in the mountains melts "
    "faster than the ground can take it up. Farmers in the valley move their animals to higher "
    "meadows, and the children watch from the old stone bridge as whole trees float by.",
)


@dataclass(frozen=True, slots=True)
class TextHeader:
    """A text that was read as UTF-8 and is within the limits."""

    text: str = field(repr=False)

    @property
    def elements(self) -> int:
        """The number of its characters, which are Unicode code points."""
        return len(self.text)


class _Text:
    """The modality `text`; see `embedstream_core.media.modality`."""

    name: ModalityName = "text"

    def identify(self, content: bytes, settings: DecodeSettings) -> TextHeader:
        """Read UTF-8 strictly and apply the limits; no token is made.

        Raises:
            ItemError: the text is empty or blank, over a limit, or not UTF-8.
        """
        _check_limit(len(content), settings.max_text_bytes, f"{len(content)} bytes")
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            message = f"the text is not UTF-8: {error.reason} at byte {error.start}"
            raise build_decode_error(Code.TEXT_MALFORMED, message) from error
        _check_limit(len(text), settings.max_text_characters, f"{len(text)} characters")
        if all(unicodedata.category(character) in _INVISIBLE for character in text):
            raise _build_empty_error("characters that can be seen" if content else "bytes")
        return TextHeader(text)

    def decode(
        self,
        content: bytes,
        header: TextHeader,
        preprocessings: Sequence[TextPreprocessing],
        settings: DecodeSettings,
    ) -> list[Sample]:
        """Make the token ids for each preprocessing, whose tokenizer must be bound.

        Raises:
            ItemError: a tokenizer finds no token in the text.
        """
        return [_tokenize(header.text, preprocessing) for preprocessing in preprocessings]

    def collate(self, parts: Sequence[Array], allocate: Allocate = np.empty) -> Arrays:
        """Return `ids` and `mask`, both int64 of shape (parts, tokens of the longest).

        Ids are padded at the end with 0, which every vocabulary has: what the mask leaves out
        changes no vector, so the tokenizer's own padding token is not needed.
        """
        shape = (len(parts), max(map(len, parts)))
        ids, mask = allocate(shape, np.int64), allocate(shape, np.int64)
        ids[:], mask[:] = 0, 0
        for row, part in enumerate(parts):
            ids[row, : len(part)] = part
            mask[row, : len(part)] = 1
        return ids, mask

    def describe(self, header: TextHeader) -> Media:
        """Return the text's type and length; only its tokens tell whether it is truncated."""
        return Media(_TYPE, characters=header.elements)

    def make_probes(self, preprocessing: TextPreprocessing) -> list[Sample]:
        """Return two passages of usual length, which every encoder must distinguish."""
        return [_tokenize(text, preprocessing) for text in _PROBES]


def _build_empty_error(lacking: str) -> ItemError:
    return build_decode_error(Code.TEXT_EMPTY, f"the text has no {lacking}")


def _tokenize(text: str, preprocessing: TextPreprocessing) -> Sample:
    tokenizer, prefix = preprocessing.tokenizer, preprocessing.prefix
    # Only the functions for batches release the interpreter's lock: two threads that call them make
    # twice the tokens of one, and with `encode` no more than one. They are for long lists, and take
    # 0.02 ms for a second text, so the short prefix does without.
    (encoding,) = tokenizer.encode_batch_fast([prefix + text])
    # A text of accents alone, for instance, may leave nothing: all such texts have one vector.
    if encoding.ids == tokenizer.encode(prefix).ids:
        raise _build_empty_error("characters that the encoder's tokenizer knows")
    ids = np.asarray(encoding.ids, np.int64)
    truncated = bool(encoding.overflowing)
    return Sample((ids,), Media(_TYPE, characters=len(text), truncated=truncated))


TEXT: Modality[TextHeader, TextPreprocessing] = _Text()
