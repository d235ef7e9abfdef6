"""For any bytes, JSON and references there is one outcome per item, and neighbours stay right.

Hypothesis drives messages through parsing, fetching, decoding and embedding, in this process and in
a child's.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from embedstream_core.boundary import attempt
from embedstream_core.engine.engine import Engine
from embedstream_core.errors import Code, Stage
from embedstream_core.fetch.fetcher import Fetcher, open_fetcher
from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.messages.parse import Message, MessageReader
from embedstream_core.pipeline.pipeline import Pipeline
from embedstream_core.records import Embedding, Entry, Failure, Item, Outcome
from embedstream_core.settings import (
    FetchPolicy,
    Isolation,
    MessageFormat,
    PipelineLimits,
)
from engines import run_only, start_engine
from pictures import encoded, mutated

PREPROCESSING = ImagePreprocessing(32, 32, "bilinear", mean=(0, 0, 0), std=(1, 1, 1))
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")

few = settings(max_examples=max(8, settings().max_examples // 6))


class MeanColour(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.cat([images.mean((2, 3)), torch.ones(len(images), 1)], 1)


@cache
def engine() -> Engine:
    return start_engine(MeanColour(), PREPROCESSING)


@cache
def sound() -> bytes:
    return encoded(Image.new("RGB", (40, 30), (200, 100, 50)))


@cache
def whole(format_: str) -> bytes:
    noise = np.random.default_rng(0).integers(256, size=(48, 64, 3), dtype=np.uint8)
    return encoded(Image.fromarray(noise), format_)


@pytest.fixture(scope="module")
def fetcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fetcher]:
    """Allow everything that stays on this machine; no port answers, and none is waited for."""
    folder = tmp_path_factory.mktemp("references")
    policy = FetchPolicy(
        schemes=("file", "http", "https"),
        folders=(folder, Path("/proc/self")),
        hosts=("127.0.0.1:9", "localhost:9", "*.invalid", "[::1]:9"),
        networks=("127.0.0.0/8", "::1/128"),
        timeout_s=2.0,
        attempts=1,
        outage_after=None,
        max_redirects=2,
    )
    with open_fetcher(policy) as opened:
        yield opened


def run(
    entries: Sequence[Entry],
    fetcher: Fetcher | None = None,
    isolation: Isolation | None = None,
) -> list[Outcome]:
    """Return the outcomes of entries, with a sound image before and after each."""

    def no_fetch(uri: str) -> bytes:
        raise AssertionError(f"'{uri}' was fetched")

    pipeline = Pipeline(
        [engine()],
        fetch=fetcher.fetch if fetcher else no_fetch,
        limits=PipelineLimits(fetch_threads=4, decode_threads=2),
        isolation=isolation,
    )
    neighbour = Item("sound", content=sound())
    batch = [neighbour, *(one for entry in entries for one in (entry, neighbour))]
    (outcomes,) = run_only(pipeline, [batch])
    assert len(outcomes) == len(batch)
    for outcome in outcomes[::2]:
        assert isinstance(outcome, Embedding), outcome
        np.testing.assert_allclose(outcome.vector[:3] * 255, (200, 100, 50), rtol=0, atol=1e-3)
    return outcomes[1::2]


def check_none_is_unexpected(outcomes: Sequence[Outcome]) -> None:
    """Check that no failure is an unexpected exception, which the boundary would catch."""
    for outcome in outcomes:
        assert not isinstance(outcome, Failure) or outcome.code != Code.INTERNAL_ERROR, outcome


def parsed(
    value: bytes,
    key: bytes | None = None,
    headers: Sequence[tuple[str, bytes | None]] = (),
    message_format: MessageFormat = "auto",
) -> Entry:
    message = Message(value=value, position="images-0-7", key=key, headers=headers)
    return attempt(
        lambda: MessageReader(format=message_format).read(message, accepts=("image",)),
        Stage.MESSAGE,
    )


@given(contents=st.lists(st.binary(max_size=300), min_size=1, max_size=6))
def test_any_bytes(contents: list[bytes]) -> None:
    check_none_is_unexpected(run([Item("any", content=content) for content in contents]))


@pytest.mark.parametrize("careful", [False, True], ids=["in process", "in a child"])
@pytest.mark.parametrize("format_", FORMATS)
@few
@given(seed=st.integers(0, 2**32))
def test_mutated_images(format_: str, careful: bool, seed: int) -> None:
    source = random.Random(seed)
    contents = [mutated(whole(format_), source) for _ in range(4)]

    outcomes = run(
        [Item("mutated", content=content) for content in contents],
        isolation=Isolation() if careful else None,
    )

    check_none_is_unexpected(outcomes)


# Text with lone surrogates too: JSON's escapes can hold them.
any_text = st.text(st.characters(), max_size=40)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | any_text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(any_text, inner, max_size=4),
    max_leaves=12,
)
fields = st.dictionaries(
    st.sampled_from(["id", "uri", "data", "text", "payload", "schema"]) | any_text,
    json_values,
    max_size=6,
)


@given(value=fields | json_values, key=st.none() | st.binary(max_size=20))
def test_any_json(value: Any, key: bytes | None, fetcher: Fetcher) -> None:
    entry = parsed(json.dumps(value).encode(), key, message_format="json")

    check_none_is_unexpected(run([entry], fetcher))


@given(
    value=st.binary(max_size=60),
    key=st.none() | st.binary(max_size=20),
    headers=st.lists(st.tuples(any_text, st.none() | st.binary(max_size=20)), max_size=3),
    message_format=st.sampled_from(["auto", "bytes", "json"]),
)
def test_any_message(
    value: bytes,
    key: bytes | None,
    headers: list[tuple[str, bytes | None]],
    message_format: MessageFormat,
    fetcher: Fetcher,
) -> None:
    check_none_is_unexpected(run([parsed(value, key, headers, message_format)], fetcher))


uris = st.one_of(
    any_text,
    st.builds(
        "{}{}{}{}".format,
        st.sampled_from(["file:", "FILE:", "http:", "https:", "s3:", "s3a:", "data:", "ftp:", ""]),
        st.sampled_from(
            ["//", "///", "/", "", "////", "//[", "//[::1]:9", "//127.0.0.1:9", "//x@"]
        ),
        st.sampled_from(
            ["", "localhost", "[2024]", "[::1%25lo]", "a.invalid", "%00", "..", "proc"]
        ),
        st.text(st.characters() | st.sampled_from("[]%/?#@:\\\0 "), max_size=12),
    ),
)


@given(references=st.lists(uris, min_size=1, max_size=4))
def test_any_reference(references: list[str], fetcher: Fetcher) -> None:
    outcomes = run([Item("any", uri=uri) for uri in references], fetcher)

    check_none_is_unexpected(outcomes)
    assert all(isinstance(outcome, Failure) for outcome in outcomes)
