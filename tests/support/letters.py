"""A tiny modality, registered as text: a letter is a token, and a double `x` is broken."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from embedstream_core.errors import Code, build_decode_error
from embedstream_core.media.modalities import MODALITIES
from embedstream_core.media.modality import Allocate, Array, Arrays, Sample
from embedstream_core.media.text.preprocessing import TextPreprocessing
from embedstream_core.pipeline import decode_threads, steps
from embedstream_core.records import Item, Media
from embedstream_core.settings import DecodeSettings, ModalityName

__all__ = ["Letters", "SumOfLetters", "TwoHalves", "letters", "sample_of", "word"]


@dataclass(frozen=True)
class Letters:
    """`max_tokens` letters are a part, so that a long word has several; `inflate` repeats each."""

    inflate: int = 1
    on_decode: Callable[[Sample], None] = lambda sample: None
    name: ModalityName = "text"

    def identify(self, content: bytes, settings: DecodeSettings) -> Header:
        if len(content) > settings.max_text_characters:
            raise build_decode_error(Code.TEXT_TOO_LARGE, "too long")
        return Header(len(content))

    def decode(
        self,
        content: bytes,
        header: Header,
        preprocessings: Sequence[TextPreprocessing],
        settings: DecodeSettings,
    ) -> list[Sample]:
        if b"xx" in content:
            raise build_decode_error(Code.TEXT_MALFORMED, "there is a double x")
        samples = [sample_of(content, one.max_tokens, self.inflate) for one in preprocessings]
        for sample in samples:
            self.on_decode(sample)
        return samples

    def collate(self, parts: Sequence[Array], allocate: Allocate = np.empty) -> Arrays:
        longest = max(map(len, parts))
        shape = len(parts), longest
        ids, mask = allocate(shape, np.int64), allocate(shape, np.int64)
        np.stack([np.pad(part, (0, longest - len(part))) for part in parts], out=ids)
        mask[:] = ids > 0
        return ids, mask

    def describe(self, header: Header) -> Media:
        return Media("text/plain", characters=header.elements)

    def make_probes(self, preprocessing: TextPreprocessing) -> list[Sample]:
        return [sample_of(one, preprocessing.max_tokens) for one in (b"AB", b"CDEF")]


@dataclass(frozen=True)
class Header:
    elements: int


def sample_of(content: bytes, max_tokens: int, inflate: int = 1) -> Sample:
    ids = np.frombuffer(content, np.uint8).astype(np.int64).repeat(inflate)
    step = max_tokens * inflate
    parts = tuple(ids[start : start + step] for start in range(0, len(ids), step))
    return Sample(parts, Media("text/plain", characters=len(content)))


def word(text: str) -> Item:
    return Item(text, content=text.encode(), media_type="text/plain")


class SumOfLetters(nn.Module):
    """The mean letter, the number of letters, and a 1; records the shapes of its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        self.shapes.append(tuple(ids.shape))
        count = mask.sum(1)
        return torch.stack([ids.sum(1) / count, count, torch.ones(len(ids))], 1)


class TwoHalves(nn.ModuleDict):
    """A model of images and letters, like CLIP: both halves give three numbers."""

    def __init__(self, image: nn.Module) -> None:
        super().__init__({"image": image, "text": SumOfLetters()})


def detect_letters(content: bytes) -> str:
    if content.isalpha():
        return "text/plain"
    return "image/png" if content.startswith(b"\x89PNG") else "application/octet-stream"


def find_modality(kind: str) -> ModalityName | None:
    kinds: dict[str, ModalityName] = {"image/png": "image", "text/plain": "text"}
    return kinds.get(kind)


@pytest.fixture
def letters(monkeypatch: pytest.MonkeyPatch) -> Callable[[Letters], None]:
    """Register the modality, and have the bytes of words and of PNGs told apart."""

    def use(modality: Letters) -> None:
        monkeypatch.setitem(MODALITIES, "text", modality)
        monkeypatch.setitem(decode_threads._MODALITIES, "text", modality)
        monkeypatch.setattr(steps, "detect_type", detect_letters)
        monkeypatch.setattr(steps, "find_modality", find_modality)

    use(Letters())
    return use
