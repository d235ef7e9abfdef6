"""Whatever is done to the bytes of a clip, it is heard or refused, and in time."""

from __future__ import annotations

import random
import struct
import time
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clips import FILES, make_file
from embedstream_core.errors import Code, ItemError
from embedstream_core.media.audio.modality import AUDIO
from embedstream_core.media.audio.preprocessing import AudioPreprocessing
from embedstream_core.media.detect import detect_type
from embedstream_core.media.modality import Sample
from embedstream_core.settings import DecodeSettings
from pictures import mutated

PREPROCESSING = AudioPreprocessing(16_000, 8_000, 8_000, 400)
SETTINGS = DecodeSettings(max_audio_s=60)


def decode(content: bytes) -> Sample | ItemError:
    """Return what the pipeline would get; every other exception fails the test."""
    started = time.process_time()
    try:
        header = AUDIO.identify(content, SETTINGS)
        (outcome,) = AUDIO.decode(content, header, [PREPROCESSING], SETTINGS)
    except ItemError as error:
        return error
    finally:
        detect_type(content)
        assert time.process_time() - started < 5
    assert outcome.parts
    for part in outcome.parts:
        assert part.dtype == np.float32
        assert PREPROCESSING.min_samples <= len(part) <= PREPROCESSING.window_samples
        assert np.isfinite(part).all()
    assert outcome.media.duration_s is not None
    assert 0 < outcome.media.duration_s <= SETTINGS.max_audio_s
    return outcome


def repair_pages(content: bytes) -> bytes:
    """Correct the checksums of an Ogg's pages, so that what is in them is read."""
    reverse = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
    data, start = bytearray(content), -1
    while (start := data.find(b"OggS", start + 1)) >= 0 and start + 27 <= len(data):
        data[start + 22 : start + 26] = bytes(4)
        end = start + 27 + data[start + 26]
        end += sum(data[start + 27 : end])
        crc = zlib.crc32(data[start:end].translate(reverse), 0xFFFFFFFF) ^ 0xFFFFFFFF
        data[start + 22 : start + 26] = crc.to_bytes(4, "little").translate(reverse)[::-1]
    return bytes(data)


@pytest.mark.parametrize("kind", FILES)
@given(seed=st.integers(0, 2**32), is_repaired=st.booleans())
def test_a_mutated_clip(kind: str, seed: int, is_repaired: bool) -> None:
    content = mutated(make_file(kind, 0.3), random.Random(seed))
    decode(repair_pages(content) if is_repaired and FILES[kind][0] == "OGG" else content)


@pytest.mark.parametrize("kind", FILES)
@given(data=st.data())
def test_a_clip_that_is_cut(kind: str, data: st.DataObject) -> None:
    whole = make_file(kind, 0.3)
    decode(whole[: data.draw(st.integers(0, len(whole)))])


@pytest.mark.parametrize(
    "start", [b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0", b"fLaC\0\0\0\x22", b"OggS\0\2"]
)
@given(content=st.binary(max_size=400))
def test_noise_behind_the_start_of_a_clip(start: bytes, content: bytes) -> None:
    decode(start + content)


@given(content=st.binary(max_size=400))
def test_noise_within_frames_of_mp3(content: bytes) -> None:
    # 32 kbit/s at 44.1 kHz, in stereo: frames of 104 bytes.
    padded = content.ljust(400, b"\0")
    decode(b"".join(b"\xff\xfb\x10\x44" + padded[at : at + 100] for at in range(0, 400, 100)))


@given(
    number=st.sampled_from([1, 3, 6, 7]),
    channels=st.sampled_from([0, 1, 2, 8, 255, 65_535]),
    rate=st.sampled_from([0, 1, 7, 8_000, 44_100, 192_000, 2**32 - 1]),
    bits=st.sampled_from([0, 8, 16, 24, 32, 64]),
    size=st.sampled_from([0, 1, 100, 1000, 2**31, 2**32 - 1]),
    data=st.binary(max_size=1000),
)
def test_any_header_of_a_wav(
    number: int, channels: int, rate: int, bits: int, size: int, data: bytes
) -> None:
    align = channels * bits // 8
    form = struct.pack("<HHIIHH", number, channels, rate, 0, align & 0xFFFF, bits)
    head = struct.pack("<4sI4s4sI", b"RIFF", size, b"WAVE", b"fmt ", len(form))
    decode(head + form + b"data" + struct.pack("<I", size) + data)


def test_an_intact_clip_is_heard() -> None:
    """Else the tests above would show little."""
    for kind in FILES:
        assert isinstance(decode(repair_pages(make_file(kind, 0.3))), Sample)
        error = decode(make_file(kind, 0.3)[:30])
        assert isinstance(error, ItemError)
        assert error.code in (Code.AUDIO_CORRUPT, Code.AUDIO_UNSUPPORTED)
