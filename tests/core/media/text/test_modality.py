"""Any bytes end as token ids or as a failure with a code of texts."""

from __future__ import annotations

import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from embedstream_core.errors import Code, ItemError, Stage
from embedstream_core.media.modality import Sample
from embedstream_core.media.text.modality import TEXT
from embedstream_core.media.text.preprocessing import TextPreprocessing
from embedstream_core.records import Media
from embedstream_core.settings import DecodeSettings
from small_text_models import bind_minilm, tokenize

SETTINGS = DecodeSettings()
CLS, SEP = 101, 102

HOSTILE: dict[str, tuple[bytes, Code | None]] = {
    "no bytes": (b"", Code.TEXT_EMPTY),
    "a byte order mark alone": (b"\xef\xbb\xbf", Code.TEXT_EMPTY),
    "spaces and line ends": (b" \t\r\n\x0b\x0c", Code.TEXT_EMPTY),
    "Unicode spaces": (
        "\u00a0\u1680\u2003\u2028\u2029\u205f\u3000\u0085".encode(),
        Code.TEXT_EMPTY,
    ),
    "zero-width characters": ("\u200b\u200c\u200d\u2060\ufeff\u00ad".encode(), Code.TEXT_EMPTY),
    "controls": (bytes(range(32)) + b"\x7f", Code.TEXT_EMPTY),
    "directions": ("\u202a\u202e\u2066\u2069".encode(), Code.TEXT_EMPTY),
    "accents alone": ("\u0301\u0302".encode(), Code.TEXT_EMPTY),
    "replacement characters alone": ("\ufffd".encode(), Code.TEXT_EMPTY),
    "an image": (b"\xff\xd8\xff\xe0\x00\x10JFIF", Code.TEXT_MALFORMED),
    "Latin-1": ("Grüße".encode("latin-1"), Code.TEXT_MALFORMED),
    "UTF-16 with its mark": ("text".encode("utf-16"), Code.TEXT_MALFORMED),
    "half a character": ("€".encode()[:2], Code.TEXT_MALFORMED),
    "an overlong slash": (b"\xc0\xaf", Code.TEXT_MALFORMED),
    "beyond Unicode": (b"\xf4\x90\x80\x80", Code.TEXT_MALFORMED),
    "an unpaired surrogate": (b"a\xed\xa0\x80b", Code.TEXT_MALFORMED),
    "a pair of surrogates": (b"\xed\xa0\xbd\xed\xb8\x80", Code.TEXT_MALFORMED),
    "10 MB of one word": (b"a" * 10_000_000, Code.TEXT_TOO_LARGE),
    "too many characters": (b"a " * 50_001, Code.TEXT_TOO_LARGE),
    "too many blanks": (b" " * 100_001, Code.TEXT_TOO_LARGE),
    "NUL between letters": (b"a\0b\0c", None),
    "controls around a letter": (b"\x01\x02a\x1b[31m\x7f", None),
    "a word of 100,000 characters": (b"a" * 100_000, None),
    "100,000 characters of Chinese": ("漢".encode() * 100_000, None),
    "100,000 punctuation marks": (b"!" * 100_000, None),
    "a letter with 99,999 accents": (("a" + "\u0301" * 99_999).encode(), None),
    "blanks around a letter": (b" " * 50_000 + b"a" + b" " * 49_999, None),
    "mixed scripts": (("a\u0431漢\u0639🙂\u0915" * 16_000).encode(), None),
    "joined emoji": (("👨\u200d👩\u200d👧" * 20_000).encode(), None),
    "right to left": ("\u202eabc שלום".encode(), None),
    "private use": ("\ue000".encode(), Code.TEXT_EMPTY),
    "unassigned": ("\U000e0fff".encode(), None),
    "special tokens as text": (b"[CLS] [SEP] [PAD] [MASK]", None),
    "a byte order mark before text": ("\ufefftext".encode(), None),
}


@pytest.fixture(scope="module")
def minilm() -> TextPreprocessing:
    return bind_minilm()


def decode(
    content: bytes, preprocessing: TextPreprocessing, settings: DecodeSettings = SETTINGS
) -> Sample:
    header = TEXT.identify(content, settings)
    (sample,) = TEXT.decode(content, header, [preprocessing], settings)
    return sample


def fail(content: bytes, settings: DecodeSettings = SETTINGS) -> ItemError:
    with pytest.raises(ItemError) as caught:
        TEXT.identify(content, settings)
    assert caught.value.stage == Stage.DECODE
    return caught.value


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_text_has_its_outcome(case: str, minilm: TextPreprocessing) -> None:
    content, code = HOSTILE[case]
    started = time.process_time()
    outcome = embed_or_fail(content, minilm)
    # At most 0.2 s where this was measured.
    assert time.process_time() - started < 5
    if isinstance(outcome, Sample):
        assert code is None
        assert 3 <= len(outcome.parts[0]) <= minilm.max_tokens
        assert outcome.media.truncated is (len(outcome.parts[0]) == minilm.max_tokens)
    else:
        assert outcome == code


def embed_or_fail(content: bytes, preprocessing: TextPreprocessing) -> Sample | Code:
    try:
        return decode(content, preprocessing)
    except ItemError as error:
        return error.code


@given(st.binary())
@example(b"\xef\xbb\xbf\xef\xbb\xbf")
def test_any_bytes_have_an_outcome(minilm: TextPreprocessing, content: bytes) -> None:
    check_outcome(content, minilm)


@given(st.text())
def test_any_text_has_an_outcome(minilm: TextPreprocessing, text: str) -> None:
    check_outcome(text.encode("utf-8", "surrogatepass"), minilm)


def check_outcome(content: bytes, preprocessing: TextPreprocessing) -> None:
    outcome = embed_or_fail(content, preprocessing)
    if isinstance(outcome, Sample):
        assert outcome.media.characters == len(content.decode("utf-8-sig"))
        assert outcome.media.truncated is not None
    else:
        assert outcome in {Code.TEXT_EMPTY, Code.TEXT_MALFORMED}


@pytest.mark.parametrize(
    ("settings", "unit"),
    [
        (DecodeSettings(max_text_bytes=5), "6 bytes; the limit is 5"),
        (DecodeSettings(max_text_characters=2), "3 characters; the limit is 2"),
    ],
)
def test_limits_come_first_and_hold_exactly(settings: DecodeSettings, unit: str) -> None:
    error = fail("äöü".encode(), settings)
    assert error.code == Code.TEXT_TOO_LARGE
    assert unit in error.message
    TEXT.identify("äö".encode(), settings)


def test_a_malformed_text_names_the_byte() -> None:
    assert fail(b"abc\xffdef").message == "the text is not UTF-8: invalid start byte at byte 3"


def test_a_byte_order_mark_changes_nothing(minilm: TextPreprocessing) -> None:
    plain, marked = decode(b"text", minilm), decode(b"\xef\xbb\xbftext", minilm)
    np.testing.assert_array_equal(plain.parts[0], marked.parts[0])
    assert marked.media.characters == 4


def test_the_row_says_what_the_text_was(minilm: TextPreprocessing) -> None:
    expected = Media("text/plain", characters=4, truncated=False)
    assert decode("süß!".encode(), minilm).media == expected
    header = TEXT.identify("süß!".encode(), SETTINGS)
    assert TEXT.describe(header) == replace(expected, truncated=None)
    assert header.elements == 4


@pytest.mark.parametrize(("words", "truncated"), [(254, False), (255, True)])
def test_what_is_cut_keeps_the_special_tokens(
    words: int, truncated: bool, minilm: TextPreprocessing
) -> None:
    sample = decode(b"word " * words, minilm)
    (ids,) = sample.parts
    assert (len(ids), ids[0], ids[-1], ids.dtype) == (256, CLS, SEP, np.int64)
    assert sample.media.truncated is truncated


def test_each_preprocessing_gets_its_sample(minilm: TextPreprocessing) -> None:
    prefixed = replace(minilm, prefix="query: ")
    content = b"open a file"
    header = TEXT.identify(content, SETTINGS)
    plain, longer = TEXT.decode(content, header, [minilm, prefixed], SETTINGS)
    np.testing.assert_array_equal(longer.parts[0], decode(b"query: open a file", minilm).parts[0])
    assert len(plain.parts[0]) < len(longer.parts[0])
    # The prefix is not the text's.
    assert plain.media == longer.media


def test_a_prefix_does_not_hide_an_empty_text(minilm: TextPreprocessing) -> None:
    with pytest.raises(ItemError) as caught:
        decode("\u0301".encode(), replace(minilm, prefix="query: "))
    assert caught.value.code == Code.TEXT_EMPTY


def test_collate_pads_at_the_end(minilm: TextPreprocessing) -> None:
    parts = [decode(text, minilm).parts[0] for text in (b"one two three", b"one")]
    ids, mask = TEXT.collate(parts)
    assert ids.shape == mask.shape == (2, 5)
    assert ids.dtype == mask.dtype == np.int64
    assert mask.tolist() == [[1] * 5, [1, 1, 1, 0, 0]]
    assert ids[1].tolist() == [*parts[1], 0, 0]


def test_probes_differ_and_are_of_usual_length(minilm: TextPreprocessing) -> None:
    one, other = TEXT.make_probes(minilm)
    assert one.parts[0].tolist() != other.parts[0].tolist()
    assert all(45 < len(each.parts[0]) < 80 for each in (one, other))
    assert not one.media.truncated


def test_a_tokenizer_travels_to_another_process_as_it_is(minilm: TextPreprocessing) -> None:
    copy: Any = pickle.loads(pickle.dumps(minilm))
    text = "word " * 300
    np.testing.assert_array_equal(tokenize(text, copy).parts[0], tokenize(text, minilm).parts[0])


def test_threads_share_a_tokenizer(minilm: TextPreprocessing) -> None:
    texts = [f"text number {number} " * (1 + number % 50) for number in range(200)]
    expected = [tokenize(text, minilm).parts[0] for text in texts]
    with ThreadPoolExecutor(4) as threads:
        found = threads.map(lambda text: tokenize(text, minilm).parts[0], texts)
        for each, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(each, other)
