"""What is heard of clips of every format, within limits, and the windows that models get."""

from __future__ import annotations

import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr

from clips import FILES, RATE_HZ, Samples, encode_clip, make_clip, make_file
from embedstream_core.errors import Code, ItemError, Stage
from embedstream_core.media.audio.modality import AUDIO
from embedstream_core.media.audio.preprocessing import AudioPreprocessing, cut_windows
from embedstream_core.media.modality import Sample
from embedstream_core.settings import DecodeSettings

SETTINGS = DecodeSettings()
WHOLE = AudioPreprocessing(16_000, 10**9, 10**9)
TYPES = {"WAV": "wav", "WAVEX": "wav", "FLAC": "flac", "OGG": "ogg", "MP3": "mpeg"}


def decode(
    content: bytes, *preprocessings: AudioPreprocessing, settings: DecodeSettings = SETTINGS
) -> list[Sample]:
    header = AUDIO.identify(content, settings)
    return AUDIO.decode(content, header, preprocessings or [WHOLE], settings)


def fail(content: bytes, settings: DecodeSettings = SETTINGS) -> ItemError:
    with pytest.raises(ItemError) as caught:
        decode(content, settings=settings)
    assert caught.value.stage == Stage.DECODE
    return caught.value


# Formats.


@pytest.mark.parametrize("kind", FILES)
def test_every_format_is_heard_as_soundfile_and_soxr_do(kind: str) -> None:
    content = make_file(kind)
    (sample,) = decode(content)
    samples, rate_hz = soundfile.read(io.BytesIO(content), dtype="float32")
    expected = soxr.resample(samples.mean(axis=1), rate_hz, 16_000)
    (heard,) = sample.parts
    assert heard.dtype == np.float32
    np.testing.assert_allclose(heard, expected, atol=1e-5)
    assert sample.media.type == f"audio/{TYPES[FILES[kind][0]]}"
    assert sample.media.duration_s == pytest.approx(1.0)
    assert sample.media.truncated is False


@pytest.mark.parametrize("rate_hz", [8_000, 12_000, 16_000, 24_000, 48_000])
def test_opus_of_every_rate(rate_hz: int) -> None:
    content = encode_clip(make_clip(0.7, rate_hz=rate_hz), "opus", rate_hz=rate_hz)
    header = AUDIO.identify(content, SETTINGS)
    assert header.duration_s == pytest.approx(0.7, abs=1e-3)
    (sample,) = decode(content)
    assert sample.media.duration_s == pytest.approx(0.7, abs=1e-3)
    assert len(sample.parts[0]) == pytest.approx(0.7 * 16_000, abs=2)


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 16_000, 22_050, 24_000, 32_000, 48_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_mp3_of_every_version(rate_hz: int, channels: int) -> None:
    content = encode_clip(
        make_clip(0.7, rate_hz=rate_hz, channels=channels), "mp3", rate_hz=rate_hz
    )
    samples, _ = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    (sample,) = decode(content, replace(WHOLE, sample_rate_hz=rate_hz))
    np.testing.assert_allclose(sample.parts[0], samples.mean(axis=1), atol=1e-6)


@pytest.mark.parametrize("channels", [1, 2, 3, 8])
def test_channels_are_mixed(channels: int) -> None:
    clip = make_clip(0.2, channels=channels)
    (sample,) = decode(encode_clip(clip, "float"), replace(WHOLE, sample_rate_hz=RATE_HZ))
    np.testing.assert_allclose(sample.parts[0], clip.mean(axis=1), atol=1e-6)


def test_a_clip_is_heard_across_blocks() -> None:
    """Blocks have 65,536 frames; the clip ends neither with the second one nor behind it."""
    clip = make_clip(2**17 / RATE_HZ)
    for frames in (2**17 - 1, 2**17, 2**17 + 1):
        samples = np.resize(clip, (frames, 2))
        for kind in ("float", "flac_24"):
            (sample,) = decode(encode_clip(samples, kind))
            expected = soxr.resample(samples.mean(axis=1), RATE_HZ, 16_000)
            np.testing.assert_allclose(sample.parts[0], expected, atol=1e-4)


def test_tags_are_skipped() -> None:
    tag = b"ID3\4\0\0" + bytes([0, 0, 1, 2]) + b"TIT2" + bytes(126)
    for kind in ("pcm_16", "flac_16", "vorbis", "mp3"):
        expected, tagged = (decode(start + make_file(kind))[0] for start in (b"", 2 * tag))
        np.testing.assert_array_equal(tagged.parts[0], expected.parts[0])


def test_a_float_above_1_is_kept() -> None:
    clip = 40_000 * make_clip(0.1)
    (sample,) = decode(encode_clip(clip, "double"), replace(WHOLE, sample_rate_hz=RATE_HZ))
    np.testing.assert_allclose(sample.parts[0], clip.mean(axis=1), rtol=1e-5)


@pytest.mark.parametrize("kind", ["float", "double"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, -70_000.0])
def test_floats_that_are_no_sound_are_corrupt(kind: str, value: float) -> None:
    clip = make_clip(2.0).astype(np.float64)
    clip[70_000, 1] = value
    # Both channels, whose mean would be no number.
    if np.isinf(value):
        clip[70_000, 0] = -value
    elif value == -70_000.0:
        clip[70_000, 0] = value
    error = fail(encode_clip(clip, kind))
    assert error.code == Code.AUDIO_CORRUPT
    assert "no numbers, or above 65536" in error.message


def test_doubles_beyond_float32_are_corrupt() -> None:
    assert fail(encode_clip(np.full((100, 2), 1e300), "double")).code == Code.AUDIO_CORRUPT


def test_silence_is_heard() -> None:
    for kind in FILES:
        rate_hz = 48_000 if kind == "opus" else RATE_HZ
        content = encode_clip(np.zeros((rate_hz, 2)), kind, rate_hz=rate_hz)
        (sample,) = decode(content)
        assert np.abs(sample.parts[0]).max() < 0.01
        assert sample.media.duration_s == pytest.approx(1.0)


# Limits.


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"max_audio_bytes": 1000}, "bytes; the limit is 1000"),
        ({"max_audio_s": 0.99}, " s; the limit is 0.99"),
        ({"max_audio_channels": 1}, "2 channels; the limit is 1"),
        ({"max_audio_rate_hz": 44_000}, "44100 Hz; the limit is 44000"),
    ],
)
@pytest.mark.parametrize("kind", ["pcm_16", "flac_16", "vorbis", "mp3"])
def test_limits_apply_before_decoding(limits: dict[str, Any], reason: str, kind: str) -> None:
    with pytest.raises(ItemError) as caught:
        AUDIO.identify(make_file(kind), DecodeSettings(**limits))
    assert caught.value.code == Code.AUDIO_TOO_LARGE
    assert reason in caught.value.message
    AUDIO.identify(
        make_file(kind),
        DecodeSettings(
            max_audio_bytes=len(make_file(kind)),
            max_audio_s=1.1,
            max_audio_channels=2,
            max_audio_rate_hz=44_100,
        ),
    )


@pytest.mark.parametrize("kind", ["pcm_16", "flac_16", "vorbis", "mp3"])
def test_a_format_that_is_not_allowed_is_unsupported(kind: str) -> None:
    name = FILES[kind][0]
    others = tuple(one for one in SETTINGS.audio_formats if one != name)
    error = fail(make_file(kind), DecodeSettings(audio_formats=others))
    assert error.code == Code.AUDIO_UNSUPPORTED
    assert ", ".join(others) in error.message
    decode(make_file(kind), settings=DecodeSettings(audio_formats=(name,)))


def test_no_bytes_and_no_samples_are_empty() -> None:
    assert fail(b"").code == Code.AUDIO_EMPTY
    for kind in ("pcm_16", "flac_16"):
        assert fail(encode_clip(np.zeros((0, 2)), kind)).code == Code.AUDIO_EMPTY


@pytest.mark.parametrize("content", [b"text", bytes(1000), b"%PDF-1.7", b"\x89PNG\r\n\x1a\n"])
def test_other_bytes_are_unsupported(content: bytes) -> None:
    assert fail(content).code == Code.AUDIO_UNSUPPORTED


@pytest.mark.parametrize("subtype", ["IMA_ADPCM", "MS_ADPCM", "GSM610", "G721_32"])
def test_compressed_samples_in_a_wav_are_unsupported(subtype: str) -> None:
    file = io.BytesIO()
    soundfile.write(file, make_clip(0.1, channels=1), 8000, format="WAV", subtype=subtype)
    error = fail(file.getvalue())
    assert error.code == Code.AUDIO_UNSUPPORTED
    assert "the WAV is unsupported: its samples" in error.message


# Windows.


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (0, [(0, 2)]),
        (1, [(0, 2)]),
        (9, [(0, 9)]),
        (10, [(0, 10)]),
        (11, [(0, 10), (4, 7)]),
        (14, [(0, 10), (4, 10)]),
        (15, [(0, 10), (4, 10), (8, 7)]),
    ],
)
def test_windows_hold_all_of_a_clip(length: int, expected: list[tuple[int, int]]) -> None:
    clip = np.arange(1, length + 1, dtype=np.float32)
    windows = cut_windows(clip, AudioPreprocessing(16_000, 10, 4, 2))
    assert [len(window) for window in windows] == [size for _, size in expected]
    for window, (start, size) in zip(windows, expected, strict=True):
        held = clip[start : start + size]
        np.testing.assert_array_equal(window, np.pad(held, (0, size - len(held))))
    assert {*np.concatenate(windows)} - {0} == {*clip}


def test_each_preprocessing_gets_its_windows() -> None:
    preprocessings = [
        AudioPreprocessing(16_000, 4_000, 4_000),
        AudioPreprocessing(16_000, 16_000, 8_000),
        AudioPreprocessing(8_000, 3_000, 1_500, 3_000),
        AudioPreprocessing(RATE_HZ, RATE_HZ * 2, RATE_HZ, RATE_HZ * 2),
    ]
    content = make_file("flac_16", 1.1)
    together = decode(content, *preprocessings)
    assert [[len(part) for part in sample.parts] for sample in together] == [
        [4_000] * 4 + [1_600],
        [16_000, 9_600],
        [3_000] * 5,
        [RATE_HZ * 2],
    ]
    for sample, preprocessing in zip(together, preprocessings, strict=True):
        (alone,) = decode(content, preprocessing)
        for one, other in zip(sample.parts, alone.parts, strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_clip_shorter_than_a_sample_of_the_model_is_padded() -> None:
    (sample,) = decode(
        encode_clip(make_clip(2 / RATE_HZ), "float"), AudioPreprocessing(8_000, 9, 9)
    )
    assert [part.shape for part in sample.parts] == [(1,)]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({}, None),
        ({"sample_rate_hz": 0}, "sample_rate_hz is a whole number above 0, not 0"),
        ({"window_samples": 2.5}, "window_samples is a whole number above 0, not 2.5"),
        ({"hop_samples": 11}, "hop_samples is at most window_samples, 10, not 11"),
        ({"min_samples": 11}, "min_samples is at most window_samples, 10, not 11"),
    ],
)
def test_problems_of_a_preprocessing(change: dict[str, Any], problem: str | None) -> None:
    assert replace(AudioPreprocessing(16_000, 10, 4, 2), **change).find_problem() == problem


# The contract of a modality.


def test_parts_are_padded_with_silence() -> None:
    parts = [np.full(length, length, np.float32) for length in (3, 1, 2)]
    samples, lengths = AUDIO.collate(parts)
    assert [str(array.dtype) for array in (samples, lengths)] == ["float32", "int64"]
    assert samples.tolist() == [[3, 3, 3], [1, 0, 0], [2, 2, 0]]
    assert lengths.tolist() == [3, 1, 2]


def test_a_header_describes_its_clip() -> None:
    header = AUDIO.identify(make_file("pcm_16"), SETTINGS)
    media = AUDIO.describe(header)
    assert (media.type, media.duration_s, media.truncated) == ("audio/wav", 1.0, None)
    assert header.elements == RATE_HZ


def test_probes_are_two_clips_always_the_same() -> None:
    preprocessing = AudioPreprocessing(16_000, 32_000, 32_000)
    first, second = AUDIO.make_probes(preprocessing)
    again, _ = AUDIO.make_probes(preprocessing)
    assert [len(part) for part in first.parts] == [32_000, 32_000, 16_000]
    for one, other, repeated in zip(first.parts, second.parts, again.parts, strict=True):
        assert one.dtype == np.float32
        assert 0.1 < np.abs(one).max() <= 2
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.1
        np.testing.assert_array_equal(one, repeated)


@pytest.mark.parametrize("kind", ["pcm_16", "flac_16", "opus", "mp3"])
def test_threads_decode_at_once(kind: str) -> None:
    contents = [make_file(kind, seconds) for seconds in (0.3, 0.5, 0.7, 0.9)]
    expected = [decode(content)[0].parts[0] for content in contents]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda content: decode(content)[0].parts[0], contents * 25))
    for heard, alone in zip(results, expected * 25, strict=True):
        np.testing.assert_array_equal(heard, alone)


@pytest.mark.slow
def test_other_threads_run_while_a_clip_is_decoded() -> None:
    content = make_file("opus", 20.0)
    ticks: list[float] = []
    is_over = threading.Event()

    def tick() -> None:
        while not is_over.wait(0.001):
            ticks.append(time.perf_counter())

    thread = threading.Thread(target=tick)
    thread.start()
    started = time.perf_counter()
    decode(content)
    ended = time.perf_counter()
    is_over.set()
    thread.join()
    pauses: Samples = np.diff([started, *(one for one in ticks if one < ended), ended])
    # Decoding takes 80 ms or more; with the interpreter's lock, one pause would be that long.
    assert pauses.max() < (ended - started) / 2
