"""Whatever images, texts and clips hold, each has its outcomes, with several encoders at once.

Hypothesis drives them through parsing, decoding and embedding, in this process and in a child's.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clips import FILES, make_file
from core_outcomes import Core, check_kind
from embedstream_core.errors import Code
from embedstream_core.fetch.fetcher import open_fetcher
from embedstream_core.pipeline.pipeline import Pipeline
from embedstream_core.pipeline.steps import Outcomes
from embedstream_core.records import Embedding, Failure
from embedstream_core.settings import DecodeSettings, Isolation, PipelineLimits
from mixed_messages import Kind, build_kinds, build_large_kinds
from mixed_models import start_core
from pictures import mutated

NEIGHBOURS = ("image-png", "text-mixed-scripts", "audio-flac_16")
UNEXPECTED = {
    Code.INTERNAL_ERROR,
    Code.DECODER_CRASHED,
    Code.DECODER_TIMEOUT,
    Code.DECODER_OUT_OF_MEMORY,
}
# Seconds of all threads for the contents of one test. They take less than a tenth of it; what grows
# with the square of a length takes minutes.
MOST_S = 10.0

both_paths = pytest.mark.parametrize("careful", [False, True], ids=["in process", "in a child"])
few = settings(max_examples=max(5, settings().max_examples // 8))


@dataclass(frozen=True)
class Bench:
    """The engines, and sound messages of all modalities that are put between others."""

    core: Core
    kinds: Mapping[str, Kind]

    def run(self, values: Sequence[bytes | None], *, careful: bool) -> list[Outcomes]:
        """Return the outcomes of messages with these values; the sound ones are checked."""
        neighbours = [self.kinds[name].value for name in NEIGHBOURS]
        batch = [self.core.parse(one) for value in values for one in (value, *neighbours)]
        with open_fetcher(self.core.references) as fetcher:
            pipeline = Pipeline(
                self.core.engines,
                fetch=fetcher.fetch,
                limits=PipelineLimits(fetch_threads=4, decode_threads=2),
                isolation=Isolation() if careful else None,
            )
            started = time.process_time()
            (outcomes,) = pipeline.run([batch])
            assert time.process_time() - started < MOST_S
        expected = [self.core.embed(one) for one in neighbours]
        step = 1 + len(neighbours)
        for number, found in enumerate(outcomes):
            if number % step:
                check_equal(found, expected[number % step - 1])
        return outcomes[::step]

    def check(self, outcomes: Sequence[Outcomes]) -> None:
        """Check that each message has a row of all encoders of one modality, or one of none."""
        possible = [[None], *(self.core.find_models(self.kinds[name]) for name in NEIGHBOURS)]
        for found in outcomes:
            assert [one.model_id for one in found] in possible
            assert len({type(one) for one in found}) == 1
            for one in found:
                if isinstance(one, Failure):
                    assert one.code not in UNEXPECTED, one
                else:
                    assert np.isfinite(one.vector).all()


def check_equal(found: Outcomes, expected: Outcomes) -> None:
    for one, other in zip(found, expected, strict=True):
        assert isinstance(one, Embedding), one
        assert isinstance(other, Embedding)
        assert (one.model_id, one.media) == (other.model_id, other.media)
        # A child decodes with Pillow alone, to 1 of 255 levels.
        distance = np.linalg.norm(one.vector - other.vector)
        assert distance <= 0.01 * np.linalg.norm(other.vector)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("mixed")
    return Bench(start_core(folder), build_kinds(folder))


@both_paths
def test_every_kind_of_message_has_its_outcomes(bench: Bench, careful: bool) -> None:
    outcomes = bench.run([one.value for one in bench.kinds.values()], careful=careful)

    for kind, found in zip(bench.kinds.values(), outcomes, strict=True):
        check_kind(kind, found, bench.core)


@both_paths
def test_messages_of_10_mb(bench: Bench, careful: bool) -> None:
    kinds = build_large_kinds().values()

    outcomes = bench.run([one.value for one in kinds], careful=careful)

    for kind, found in zip(kinds, outcomes, strict=True):
        check_kind(kind, found, bench.core)


@both_paths
@few
@given(seed=st.integers(0, 2**32))
def test_mutated_clips(bench: Bench, careful: bool, seed: int) -> None:
    source = random.Random(seed)
    values = [mutated(make_file(kind, 0.3), source) for kind in FILES]

    bench.check(bench.run(values, careful=careful))


# Scripts of one and of two directions, marks that join the letter before, and what no font shows.
SCRIPTS = "aß東مא\u0301\u0e49\u202e\u200b\ufeff🙂👩\u200d\0\x07\x7f\x85\u2028 \t\n\ud800\udfff"
texts = st.text(st.sampled_from(SCRIPTS) | st.characters(), max_size=60)


@both_paths
@few
@given(given=st.lists(texts, min_size=1, max_size=8), seed=st.integers(0, 2**32))
def test_mutated_texts(bench: Bench, careful: bool, given: list[str], seed: int) -> None:
    source = random.Random(seed)
    # Unpaired surrogates are no UTF-8; JSON's escapes can hold them.
    encoded = [one.encode("utf-8", "surrogatepass") for one in given]
    values = [
        *encoded,
        *(mutated(one, source) for one in encoded if one),
        *(json.dumps({"text": one}).encode() for one in given),
        *(
            mutated(
                json.dumps({"text": one}, ensure_ascii=False).encode("utf-8", "replace"), source
            )
            for one in given
        ),
    ]

    bench.check(bench.run(values, careful=careful))


LONG_TEXTS = {
    "a word": "a",
    "a word of capitals": "A",
    "words": "word ",
    "marks": "\u0301\u0323",
    "a letter and marks": "a" + "\u0301\u0323" * 1000,
    "ideographs": "東",
    "emoji": "👩\u200d👩\u200d👧",
    "controls": "\0\x01\x7f",
    "white space": " \n\u2003",
    "zero width": "\u200b\u200d",
    "directions": "\u202eא\u202da",
    "punctuation": "!?",
    "brackets": "[",
    "markup": "<a>",
    "special tokens": "[CLS][SEP]",
}


@both_paths
def test_long_texts_take_no_time(bench: Bench, careful: bool) -> None:
    """They have as many characters as the limit allows."""
    length = DecodeSettings().max_text_characters
    texts = [(part * length)[:length] for part in LONG_TEXTS.values()]

    outcomes = bench.run([json.dumps({"text": one}).encode() for one in texts], careful=careful)

    bench.check(outcomes)
    for one in outcomes:
        assert not isinstance(one[0], Failure) or one[0].code == Code.TEXT_EMPTY, one
