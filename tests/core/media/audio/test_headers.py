"""Headers that lie: nothing is allocated by what they state, and nothing is lost in silence."""

from __future__ import annotations

import struct
import time
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest

from clips import RATE_HZ, Samples, encode_clip, make_clip, make_file
from embedstream_core.errors import Code, ItemError
from embedstream_core.media.audio.modality import AUDIO
from embedstream_core.media.audio.preprocessing import AudioPreprocessing
from embedstream_core.media.modality import Sample
from embedstream_core.settings import DecodeSettings

WHOLE = AudioPreprocessing(RATE_HZ, 10**9, 10**9)


def decode(content: bytes, settings: DecodeSettings | None = None) -> Sample:
    settings = settings or DecodeSettings()
    header = AUDIO.identify(content, settings)
    (sample,) = AUDIO.decode(content, header, [WHOLE], settings)
    return sample


def hear(content: bytes) -> Samples:
    (heard,) = decode(content).parts
    return heard


def fail(content: bytes, settings: DecodeSettings | None = None) -> tuple[Code, str]:
    """Return the code and message of a failure, which took neither time nor memory."""
    tracemalloc.start()
    started = time.process_time()
    with pytest.raises(ItemError) as caught:
        decode(content, settings)
    assert time.process_time() - started < 2
    assert tracemalloc.get_traced_memory()[1] < 20 * 2**20 + 4 * len(content)
    tracemalloc.stop()
    return caught.value.code, caught.value.message


# WAV, whose header here has 44 bytes.

WAV = make_file("pcm_16")
FRAMES = (len(WAV) - 44) // 4


def wav(*, riff: int | None = None, data: int | None = None, **fields: int) -> bytes:
    """Return a WAV with some fields of its header overwritten."""
    content = bytearray(WAV)
    places = {"number": (20, "<H"), "channels": (22, "<H"), "rate": (24, "<I"), "align": (32, "<H")}
    places |= {"bits": (34, "<H")}
    for name, value in fields.items():
        struct.pack_into(places[name][1], content, places[name][0], value)
    for place, size in ((4, riff), (40, data)):
        if size is not None:
            struct.pack_into("<I", content, place, size)
    return bytes(content)


@pytest.mark.parametrize("riff", [0, 36, 0x7FFFFFFF, 0xFFFFFFFF])
@pytest.mark.parametrize("data", [0, 0x7FFFF000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_a_wav_of_unknown_length_is_heard_to_its_end(riff: int, data: int) -> None:
    np.testing.assert_array_equal(hear(wav(riff=riff, data=data)), hear(WAV))


@pytest.mark.parametrize("data", [len(WAV) - 43, 10**6, 0x7FFFEFFF])
def test_a_wav_with_less_data_than_stated_is_corrupt(data: int) -> None:
    code, message = fail(wav(data=data))
    assert code == Code.AUDIO_CORRUPT
    assert message == f"the WAV is broken: it has {len(WAV) - 44} of {data} bytes of data"


def test_a_wav_that_says_it_is_empty_is_empty() -> None:
    assert fail(wav(data=0))[0] == Code.AUDIO_EMPTY
    assert fail(wav(data=3))[0] == Code.AUDIO_EMPTY


@pytest.mark.parametrize("riff", [0, 1, 0xFFFFFFFF])
def test_riffs_own_size_is_ignored(riff: int) -> None:
    np.testing.assert_array_equal(hear(wav(riff=riff)), hear(WAV))


def test_bytes_after_a_wavs_data_are_ignored() -> None:
    np.testing.assert_array_equal(hear(WAV + b"LIST\4\0\0\0INFO" + bytes(99)), hear(WAV))


def test_chunks_before_a_wavs_data_are_skipped() -> None:
    odd = b"junk" + struct.pack("<I", 5) + b"12345\0"
    np.testing.assert_array_equal(hear(WAV[:12] + odd + WAV[12:36] + odd + WAV[36:]), hear(WAV))


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (wav(channels=0, align=0), Code.AUDIO_CORRUPT),
        (wav(channels=65_535, align=(65_535 * 2) & 0xFFFF), Code.AUDIO_CORRUPT),
        (wav(channels=32_767, align=65_534), Code.AUDIO_TOO_LARGE),
        (wav(channels=1), Code.AUDIO_CORRUPT),
        (wav(align=3), Code.AUDIO_CORRUPT),
        (wav(rate=0), Code.AUDIO_CORRUPT),
        (wav(rate=1), Code.AUDIO_TOO_LARGE),
        (wav(rate=0xFFFFFFFF), Code.AUDIO_TOO_LARGE),
        (wav(bits=0), Code.AUDIO_UNSUPPORTED),
        (wav(bits=12), Code.AUDIO_UNSUPPORTED),
        (wav(bits=24, align=8), Code.AUDIO_UNSUPPORTED),
        (wav(number=0x55), Code.AUDIO_UNSUPPORTED),
        (wav(number=0xFFFE), Code.AUDIO_UNSUPPORTED),
        (WAV[:12] + WAV[36:], Code.AUDIO_CORRUPT),
        (WAV[:36], Code.AUDIO_CORRUPT),
        (WAV[:12], Code.AUDIO_CORRUPT),
        (WAV[:12] + b"junk\0\0\0\0" * 10_000, Code.AUDIO_CORRUPT),
        (WAV[:12] + b"junk\xff\xff\xff\xff", Code.AUDIO_CORRUPT),
    ],
)
def test_wavs_that_cannot_be(content: bytes, code: Code) -> None:
    assert fail(content)[0] == code


# FLAC, whose STREAMINFO has the length in the last 36 bits of bytes 18 to 25.

FLAC = make_file("flac_16", 3.0)


def flac(total: int, content: bytes = FLAC) -> bytes:
    fields = int.from_bytes(content[18:26]) >> 36 << 36
    return content[:18] + (fields | total).to_bytes(8) + content[26:]


def test_a_flac_without_a_length_is_heard_to_its_end() -> None:
    np.testing.assert_array_equal(hear(flac(0)), hear(FLAC))
    assert decode(flac(0)).media.duration_s == 3.0


@pytest.mark.parametrize("total", [3 * RATE_HZ + 1, 10 * RATE_HZ, 2**36 - 1])
def test_a_flac_with_less_than_stated_is_corrupt(total: int) -> None:
    code, message = fail(flac(total), DecodeSettings(max_audio_s=1e9))
    assert code == Code.AUDIO_CORRUPT
    assert f"it has {3 * RATE_HZ} of {total} frames" in message


@pytest.mark.parametrize("total", [1, RATE_HZ, 3 * RATE_HZ - 1])
def test_a_flac_with_more_than_stated_is_corrupt(total: int) -> None:
    code, message = fail(flac(total))
    assert code == Code.AUDIO_CORRUPT
    assert f"more than the {total} frames" in message


def test_the_limit_applies_to_a_flac_without_a_length() -> None:
    code, message = fail(flac(0), DecodeSettings(max_audio_s=2.9))
    assert code == Code.AUDIO_TOO_LARGE
    assert "more than 2.9 s" in message


@pytest.mark.parametrize("cut", [1, 100, len(FLAC) // 2])
@pytest.mark.parametrize("total", [0, 3 * RATE_HZ])
def test_a_flac_that_is_cut_is_corrupt(cut: int, total: int) -> None:
    assert fail(flac(total, FLAC[:-cut]))[0] == Code.AUDIO_CORRUPT


def test_bytes_after_a_flac_are_ignored() -> None:
    np.testing.assert_array_equal(hear(FLAC + b"TAG" + b"x" * 125), hear(FLAC))


def test_a_flac_with_a_broken_frame_is_corrupt() -> None:
    content = bytearray(FLAC)
    content[len(content) // 2] ^= 0xFF
    assert fail(bytes(content))[0] == Code.AUDIO_CORRUPT


# Ogg.

VORBIS, OPUS = make_file("vorbis", 3.0), make_file("opus", 3.0)


def compute_crc(page: bytearray) -> int:
    """Compute bit by bit what RFC 3533 describes."""
    crc = 0
    for byte in page:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ (0x04C11DB7 if crc & 0x80000000 else 0)) & 0xFFFFFFFF
    return crc


def change_last_page(content: bytes, *, granule: int | None = None, flags: int = 4) -> bytes:
    start = content.rindex(b"OggS")
    page = bytearray(content[start:])
    page[5] = flags
    if granule is not None:
        struct.pack_into("<q", page, 6, granule)
    struct.pack_into("<I", page, 22, 0)
    struct.pack_into("<I", page, 22, compute_crc(page))
    return content[:start] + bytes(page)


@pytest.mark.parametrize("content", [VORBIS, OPUS], ids=["vorbis", "opus"])
class TestOgg:
    def test_a_page_may_be_written_again(self, content: bytes) -> None:
        """Else the tests below would only show that the checksum is wrong."""
        assert change_last_page(content) == content

    @pytest.mark.parametrize("granule", [4 * 48_000, 2**62, 2**63 - 1])
    def test_less_than_stated_is_corrupt(self, content: bytes, granule: int) -> None:
        lying = change_last_page(content, granule=granule)
        assert fail(lying, DecodeSettings(max_audio_s=1e20))[0] == Code.AUDIO_CORRUPT
        if granule > 10**9:
            assert fail(lying)[0] == Code.AUDIO_TOO_LARGE

    @pytest.mark.parametrize("granule", [0, 1000, -2, -(2**63)])
    def test_times_that_go_backwards_are_corrupt(self, content: bytes, granule: int) -> None:
        code, message = fail(change_last_page(content, granule=granule))
        assert code == Code.AUDIO_CORRUPT
        assert "its times go backwards" in message

    def test_a_page_without_a_time_is_allowed(self, content: bytes) -> None:
        heard = hear(change_last_page(content, granule=-1))
        assert 0.5 < len(heard) / len(hear(content)) <= 1

    @pytest.mark.parametrize("cut", [1, 100])
    def test_a_cut_page_is_corrupt(self, content: bytes, cut: int) -> None:
        code, message = fail(content[:-cut])
        assert code == Code.AUDIO_CORRUPT
        assert "its last page is cut" in message

    def test_a_recording_that_is_not_marked_as_ended_is_heard(self, content: bytes) -> None:
        np.testing.assert_array_equal(hear(change_last_page(content, flags=0)), hear(content))
        whole_pages = content[: content.rindex(b"OggS")]
        assert 0.5 < len(hear(whole_pages)) / len(hear(content)) < 1

    def test_a_broken_page_is_corrupt(self, content: bytes) -> None:
        broken = bytearray(content)
        broken[len(content) // 2] ^= 1
        code, message = fail(bytes(broken))
        assert code == Code.AUDIO_CORRUPT
        assert "is broken" in message

    def test_several_streams_are_unsupported(self, content: bytes) -> None:
        code, message = fail(content + content)
        assert code == Code.AUDIO_UNSUPPORTED
        assert "several streams" in message

    def test_bytes_after_the_end_are_ignored(self, content: bytes) -> None:
        np.testing.assert_array_equal(hear(content + b"TAG" + bytes(125)), hear(content))


def test_an_ogg_of_very_many_pages_is_unsupported() -> None:
    page = bytearray(struct.pack("<4sBBqIIIB", b"OggS", 0, 0, -1, 0, 0, 0, 0))
    page[14:18] = VORBIS[14:18]
    struct.pack_into("<I", page, 22, compute_crc(page))
    start = VORBIS.rindex(b"OggS")
    content = VORBIS[:start] + bytes(page) * 100_001 + VORBIS[start:]
    with pytest.raises(ItemError, match="more than 100000 pages") as caught:
        AUDIO.identify(content, DecodeSettings())
    assert caught.value.code == Code.AUDIO_UNSUPPORTED


@pytest.mark.parametrize(
    ("start", "name"), [(b"\x80theora", "Theora"), (b"Speex   ", "Speex"), (b"\x7fFLAC", "FLAC")]
)
def test_other_codecs_in_an_ogg_are_named(start: bytes, name: str) -> None:
    code, message = fail(VORBIS[:28] + start + VORBIS[28 + len(start) :])
    assert code == Code.AUDIO_UNSUPPORTED
    assert f"its stream is {name}" in message


# MP3.

MP3 = make_file("mp3", 3.0)
XING = MP3.index(b"Xing")


def find_first_audio_frame() -> int:
    return MP3.index(MP3[:2], 4)


def test_the_length_of_an_mp3_may_be_missing() -> None:
    """Without it, libsndfile stops early; the samples that encoders add are heard, too."""
    bare = MP3[find_first_audio_frame() :]
    assert 0 <= len(hear(bare)) - len(hear(MP3)) < 3000
    blank = MP3.replace(b"Xing", b"\0\0\0\0")
    assert 0 <= len(hear(blank)) - len(hear(MP3)) < 4200


def state_frames(count: int) -> bytes:
    return MP3[: XING + 8] + count.to_bytes(4) + MP3[XING + 12 :]


@pytest.mark.parametrize("count", [0, 1, 50])
def test_an_mp3_with_more_frames_than_stated_is_heard_to_its_end(count: int) -> None:
    np.testing.assert_array_equal(hear(state_frames(count)), hear(MP3))


@pytest.mark.parametrize("count", [1000, 2**31, 2**32 - 1])
def test_an_mp3_with_fewer_frames_than_stated_is_corrupt(count: int) -> None:
    code, message = fail(state_frames(count))
    assert code == Code.AUDIO_CORRUPT
    assert f"of {count} frames" in message


def test_an_mp3_that_is_cut_is_corrupt_if_it_states_its_length() -> None:
    half = MP3[: len(MP3) // 2]
    assert fail(half)[0] == Code.AUDIO_CORRUPT
    stream = half[find_first_audio_frame() :]
    assert 0.3 < len(hear(stream)) / len(hear(MP3)) < 0.7


@pytest.mark.parametrize(
    "end", [b"TAG" + b"x" * 125, b"APETAGEX" + b"x" * 999, bytes(999), b"LYRICSBEGIN", b"\xff\xfb"]
)
def test_what_may_follow_an_mp3_is_ignored(end: bytes) -> None:
    np.testing.assert_array_equal(hear(MP3 + end), hear(MP3))


def test_joined_mp3s_are_heard_to_the_end() -> None:
    tag = b"ID3\4\0\0" + bytes([0, 0, 1, 2]) + bytes(130)
    bare = MP3[find_first_audio_frame() :]
    assert len(hear(MP3 + tag + bare)) == pytest.approx(2 * len(hear(MP3)), abs=3000)


def test_bytes_between_frames_are_corrupt() -> None:
    code, message = fail(MP3 + b"noise" + MP3)
    assert code == Code.AUDIO_CORRUPT
    assert f"no frame begins at {len(MP3)}" in message


def test_another_rate_within_an_mp3_is_corrupt() -> None:
    other = encode_clip(make_clip(0.5, rate_hz=48_000), "mp3", rate_hz=48_000)
    assert fail(MP3 + other)[0] == Code.AUDIO_CORRUPT


def test_an_mp3_of_very_many_frames_is_unsupported() -> None:
    # 8 kbit/s at 24 kHz, in mono.
    frame = bytes([0xFF, 0xF3, 0x14, 0xC0]) + bytes(20)
    assert fail(frame * 30_000)[0] == Code.AUDIO_TOO_LARGE
    with pytest.raises(ItemError, match="more than 1000000 frames") as caught:
        AUDIO.identify(frame * 1_000_001, DecodeSettings(max_audio_s=1e9))
    assert caught.value.code == Code.AUDIO_UNSUPPORTED


@pytest.mark.parametrize("delay", [0xFFFFFF, 0x000FFF, 0xFFF000])
def test_an_encoders_delay_longer_than_the_clip_is_ignored(delay: int) -> None:
    short = make_file("mp3", 0.05)
    lame = short.index(b"LAME") + 21
    lying = short[:lame] + delay.to_bytes(3) + short[lame + 3 :]
    assert len(hear(lying)) > 0


# What libsndfile would believe is not given to it.


@pytest.mark.parametrize("make", [lambda: WAV, lambda: FLAC, lambda: MP3])
def test_a_stream_has_a_header_of_its_own(make: Callable[[], bytes]) -> None:
    content = make()
    header = AUDIO.identify(content, DecodeSettings())
    assert len(header.stream) <= len(content) + 500
    again = AUDIO.identify(header.stream, DecodeSettings())
    assert (again.rate_hz, again.channels) == (header.rate_hz, header.channels)


def test_a_seek_to_nowhere_raises_nothing() -> None:
    from embedstream_core.media.audio.sound_file import _Memory

    memory = _Memory(b"content")
    memory.seek(3)
    assert memory.seek(-5) == 3
    assert memory.seek(2**80) == 3
    assert memory.seek(1, 7) == 3
    assert memory.read() == b"tent"
