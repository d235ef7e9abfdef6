"""The contract of every modality: what is registered does all that the pipeline relies on."""

from __future__ import annotations

import pickle
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from clips import make_file
from embedstream_core.boundary import attempt
from embedstream_core.errors import Code, ItemError, Stage
from embedstream_core.media.audio.preprocessing import AudioPreprocessing
from embedstream_core.media.detect import find_modality
from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.media.modalities import MODALITIES, Preprocessing
from embedstream_core.media.modality import Array, Sample
from embedstream_core.media.sandbox import SandboxedDecoder
from embedstream_core.records import Failure
from embedstream_core.settings import IMAGE_FORMATS, DecodeSettings, Isolation, ModalityName
from pictures import encoded, mutated, real_pictures
from small_text_models import bind_minilm

pillow_heif.register_heif_opener()


@dataclass(frozen=True)
class Row:
    """What the contract needs of a modality.

    `preprocessings` are two; `contents` are sound and of several kinds and lengths; `refused` has
    broken content by its code; `tight` are settings whose limits all contents exceed.
    """

    preprocessings: tuple[Preprocessing, Preprocessing]
    contents: Sequence[bytes]
    refused: Mapping[Code, bytes]
    tight: DecodeSettings
    too_large: Code


ROWS: Mapping[ModalityName, Row] = {
    "image": Row(
        preprocessings=(
            ImagePreprocessing(256, 224, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
            ImagePreprocessing(40, 32, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ),
        contents=[
            *list(real_pictures().values())[:4],
            encoded(Image.new("RGB", (3, 700), "red"), "WEBP"),
            *(
                encoded(Image.new("RGB", (30, 20), "red"), format_)
                for format_ in ("AVIF", "TIFF", "JPEG2000", "HEIF")
            ),
        ],
        refused={
            Code.IMAGE_EMPTY: b"",
            Code.IMAGE_UNSUPPORTED: b"<html>",
            Code.IMAGE_CORRUPT: encoded(Image.new("RGB", (9, 9)))[:-30],
        },
        tight=DecodeSettings(max_pixels=100, formats=IMAGE_FORMATS),
        too_large=Code.IMAGE_TOO_LARGE,
    ),
    "text": Row(
        preprocessings=(
            bind_minilm(),
            replace(bind_minilm(), prefix="passage: ", max_tokens=16),
        ),
        contents=[
            b"one",
            "Übergrößenträger, 東京 and 🙂".encode(),
            b"the quick brown fox jumps over the lazy dog " * 40,
        ],
        refused={
            Code.TEXT_EMPTY: b" \n\xe2\x80\x8b",
            Code.TEXT_MALFORMED: b"caf\xe9",
        },
        tight=DecodeSettings(max_text_characters=2),
        too_large=Code.TEXT_TOO_LARGE,
    ),
    "audio": Row(
        preprocessings=(
            AudioPreprocessing(16_000, 12_400, 1_280, min_samples=12_400),
            AudioPreprocessing(8_000, 8_000, 8_000),
        ),
        contents=[make_file(kind) for kind in ("pcm_16", "flac_16", "vorbis", "mp3")],
        refused={
            Code.AUDIO_EMPTY: b"",
            Code.AUDIO_UNSUPPORTED: b"<html>",
            Code.AUDIO_CORRUPT: make_file("flac_16")[:9000],
        },
        tight=DecodeSettings(max_audio_s=0.5),
        too_large=Code.AUDIO_TOO_LARGE,
    ),
}

SETTINGS = DecodeSettings(formats=IMAGE_FORMATS)

each = pytest.mark.parametrize("name", MODALITIES)


def decode(name: ModalityName, content: bytes, *preprocessings: Preprocessing) -> list[Sample]:
    modality = MODALITIES[name]
    header = modality.identify(content, SETTINGS)
    return modality.decode(content, header, preprocessings, SETTINGS)


def assert_equal(found: Sample, expected: Sample) -> None:
    assert found.media == expected.media
    for one, other in zip(found.parts, expected.parts, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_every_modality_has_a_row() -> None:
    assert ROWS.keys() == MODALITIES.keys()


@each
def test_it_is_registered_under_its_name(name: ModalityName) -> None:
    assert MODALITIES[name].name == name
    assert {one.modality for one in ROWS[name].preprocessings} == {name}


@each
def test_a_header_tells_what_the_row_says(name: ModalityName) -> None:
    modality = MODALITIES[name]
    for content in ROWS[name].contents:
        header = modality.identify(content, SETTINGS)
        media = modality.describe(header)
        assert header.elements > 0
        assert find_modality(media.type) == name
        for sample in decode(name, content, *ROWS[name].preprocessings):
            assert sample.media.type == media.type


@each
def test_content_is_decoded_for_each_preprocessing_in_order(name: ModalityName) -> None:
    first, second = ROWS[name].preprocessings
    for content in ROWS[name].contents:
        together = decode(name, content, first, second)
        alone = [*decode(name, content, first), *decode(name, content, second)]
        assert len(together) == 2
        for found, expected in zip(together, alone, strict=True):
            assert_equal(found, expected)
    assert any(
        one.parts[0].shape != other.parts[0].shape
        for one, other in (decode(name, content, first, second) for content in ROWS[name].contents)
    ), "the preprocessings do not differ"


@each
def test_collating_keeps_each_part(name: ModalityName) -> None:
    """Whatever is padded, a part's own values come first, and are those that it has alone."""
    modality = MODALITIES[name]
    preprocessing = ROWS[name].preprocessings[0]
    samples = [decode(name, content, preprocessing)[0] for content in ROWS[name].contents]
    parts: list[Array] = [part for sample in samples for part in sample.parts]

    together = modality.collate(parts)

    assert [len(array) for array in together] == [len(parts)] * len(together)
    for index, part in enumerate(parts):
        alone = modality.collate([part])
        for array, own in zip(together, alone, strict=True):
            assert array.dtype == own.dtype
            row = array[index]
            np.testing.assert_array_equal(row[tuple(map(slice, own[0].shape))], own[0])


@each
def test_the_probes_are_two_samples_that_differ(name: ModalityName) -> None:
    modality = MODALITIES[name]
    for preprocessing in ROWS[name].preprocessings:
        probes = modality.make_probes(preprocessing)
        again = modality.make_probes(preprocessing)
        for found, expected in zip(probes, again, strict=True):
            assert_equal(found, expected)
        one, other = (probe.parts[0] for probe in probes)
        assert one.dtype == other.dtype
        assert one.shape != other.shape or (one != other).any()
        assert {find_modality(probe.media.type) for probe in probes} == {name}
        modality.collate([one, other, one])


@each
def test_broken_content_is_refused_with_its_code(name: ModalityName) -> None:
    for code, content in ROWS[name].refused.items():
        with pytest.raises(ItemError) as caught:
            decode(name, content, *ROWS[name].preprocessings)
        assert (caught.value.code, caught.value.stage) == (code, Stage.DECODE)


@each
def test_limits_apply_before_anything_is_decoded(name: ModalityName) -> None:
    for content in ROWS[name].contents:
        with pytest.raises(ItemError) as caught:
            MODALITIES[name].identify(content, ROWS[name].tight)
        assert (caught.value.code, caught.value.stage) == (ROWS[name].too_large, Stage.DECODE)


@each
def test_mutations_raise_nothing_but_item_errors(name: ModalityName) -> None:
    source = random.Random(0)
    shortest = sorted(ROWS[name].contents, key=len)[:2]
    preprocessing = ROWS[name].preprocessings[1]
    for _ in range(100):
        content = mutated(source.choice(shortest), source)
        outcome = attempt(partial(decode, name, content, preprocessing), Stage.DECODE)
        assert not isinstance(outcome, Failure) or outcome.code != Code.INTERNAL_ERROR, outcome


@each
def test_a_child_process_decodes_the_same(name: ModalityName) -> None:
    row = ROWS[name]
    inputs = {name: row.preprocessings}
    decoder = SandboxedDecoder(inputs, SETTINGS, isolation=Isolation())
    try:
        for content in row.contents:
            expected = decode(name, content, *row.preprocessings)
            for found, own in zip(decoder.decode(content, name), expected, strict=True):
                assert_equal(found, own)
        for code, content in row.refused.items():
            with pytest.raises(ItemError) as caught:
                decoder.decode(content, name)
            assert caught.value.code == code
    finally:
        decoder.close()


@each
def test_samples_and_preprocessings_travel_as_pickles(name: ModalityName) -> None:
    row = ROWS[name]
    # Tokenizers are equal only to themselves.
    assert repr(pickle.loads(pickle.dumps(row.preprocessings))) == repr(row.preprocessings)
    for sample in decode(name, row.contents[0], *row.preprocessings):
        assert_equal(pickle.loads(pickle.dumps(sample)), sample)
