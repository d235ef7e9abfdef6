"""Samples of several parts of many lengths, and vectors of length one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from embedstream_core.engine.engine import Engine
from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.media.modality import Sample
from embedstream_core.media.text.preprocessing import TextPreprocessing
from embedstream_core.models.loaded import LoadedModel
from embedstream_core.records import Media
from embedstream_core.settings import Normalization
from engines import embed_pixels, start_engine
from letters import Letters, SumOfLetters, TwoHalves, letters, sample_of

__all__ = ["letters"]

CPU = torch.device("cpu")
TOKENS = 4
SIDE = 4
IMAGE = ImagePreprocessing(SIDE, SIDE, "nearest", mean=(0, 0, 0), std=(1, 1, 1))


def start(network: nn.Module, *, batch_size: int = 3, normalize: Normalization = "none") -> Engine:
    loaded = LoadedModel(network, (TextPreprocessing(TOKENS),))
    return Engine.start(loaded, device=CPU, batch_size=batch_size, normalize=normalize)


def expected(word: str) -> list[float]:
    """Return the mean of the parts' vectors, weighted by their lengths."""
    parts = [word[start : start + TOKENS] for start in range(0, len(word), TOKENS)]
    squares = sum(len(part) ** 2 for part in parts)
    return [sum(map(ord, word)) / len(word), squares / len(word), 1]


WORDS = ["ABCDEFGHI", "Z", "QRSTU", "ABCD", "YZ", "ABCDEFGHIJKLM", "B"]


@pytest.mark.usefixtures("letters")
@pytest.mark.parametrize("batch_size", [1, 2, 3, 64])
def test_parts_are_pooled_by_their_lengths(batch_size: int) -> None:
    engine = start(SumOfLetters(), batch_size=batch_size)

    vectors = engine.embed([sample_of(word.encode(), TOKENS) for word in WORDS], "text")

    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, [expected(word) for word in WORDS], rtol=1e-6)


@pytest.mark.usefixtures("letters")
def test_parts_of_similar_length_share_a_forward_pass() -> None:
    network = SumOfLetters()

    start(network).embed([sample_of(word.encode(), TOKENS) for word in WORDS], "text")

    # Thirteen parts: five of one letter, one of two, seven of four.
    assert network.shapes == [(3, 1), (3, 2), (3, 4), (3, 4), (1, 4)]


@pytest.mark.usefixtures("letters")
def test_each_forward_pass_is_watched() -> None:
    network = SumOfLetters()
    passes: list[int] = []

    class Watch:
        def __enter__(self) -> None:
            passes.append(-len(network.shapes))

        def __exit__(self, *_: object) -> None:
            passes[-1] += len(network.shapes)

    engine = start(network)
    engine.embed([sample_of(word.encode(), TOKENS) for word in WORDS], "text", watch=Watch)

    assert passes == [1] * len(network.shapes)


def test_a_sample_has_parts() -> None:
    media = Media("text/plain")
    for parts in ((), (np.zeros(3), np.zeros(0))):
        with pytest.raises(ValueError, match="at least one part"):
            Sample(parts, media)


@pytest.mark.usefixtures("letters")
def test_normalized_vectors_have_length_one_after_pooling() -> None:
    samples = [sample_of(word.encode(), TOKENS) for word in WORDS]
    plain = np.array([expected(word) for word in WORDS])

    vectors = start(SumOfLetters(), normalize="l2").embed(samples, "text")

    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(
        vectors, plain / np.linalg.norm(plain, axis=1, keepdims=True), rtol=1e-6
    )


class Scaled(nn.Module):
    """The mean colour times a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3)) * self.factor


# Squares of the first two do not fit in float32.
@pytest.mark.parametrize("factor", [1e-25, 1e25, 1.0])
def test_a_vector_of_any_length_keeps_its_direction(factor: float) -> None:
    pixels = np.full((SIDE, SIDE, 3), (0, 153, 204), np.uint8)

    vectors = embed_pixels(start_engine(Scaled(factor), IMAGE, normalize="l2"), [pixels])

    np.testing.assert_allclose(vectors, [[0, 0.6, 0.8]], rtol=1e-6)


@pytest.mark.parametrize("factor", [0.0, float("inf"), float("nan")])
def test_a_vector_without_a_direction_is_not_normalized(factor: float) -> None:
    pixels = np.full((SIDE, SIDE, 3), 51, np.uint8)
    plain = embed_pixels(start_engine(Scaled(factor), IMAGE), [pixels])

    vectors = embed_pixels(start_engine(Scaled(factor), IMAGE, normalize="l2"), [pixels])

    np.testing.assert_array_equal(vectors, plain)


def test_each_modality_has_its_branch(letters: Callable[[Letters], None]) -> None:
    loaded = LoadedModel(TwoHalves(Scaled(1)), (IMAGE, TextPreprocessing(TOKENS)))
    engine = Engine.start(loaded, device=CPU)
    engine.check()

    words = engine.embed([sample_of(b"AB", TOKENS)], "text")
    images = embed_pixels(engine, [np.full((SIDE, SIDE, 3), 51, np.uint8)])

    np.testing.assert_allclose(words, [[65.5, 2, 1]], rtol=1e-6)
    np.testing.assert_allclose(images, [[0.2, 0.2, 0.2]], rtol=1e-6)
    assert engine.batch_sizes["text"] > engine.batch_sizes["image"]
