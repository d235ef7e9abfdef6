"""MP3: walk its frames, whose headers alone give its length.

An MP3 has no header of its own. Its length is in a frame that encoders put first (Xing's, Info or
VBRI), if it is anywhere; libsndfile believes that frame, and without one it estimates the length
from the first bit rate and ignores what lies behind: 23 % of a clip of 10 s at a variable rate. It
gets a frame with the right number instead.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import NamedTuple

from embedstream_core.media.audio.header import AudioHeader

__all__ = ["find_frames", "open_mp3", "skip_tags"]

# By the two bits of the version: MPEG 2.5, reserved, 2 and 1 (ISO/IEC 11172-3 and 13818-3).
_RATES_HZ = ((11025, 12000, 8000), (), (22050, 24000, 16000), (44100, 48000, 32000))
_MPEG_1 = 3
_KBITS = {
    True: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_MONO = 3

# Tags of several kinds that may follow the last frame.
_FINAL_TAGS = (b"TAG", b"APETAGEX", b"LYRICSBEGIN", b"3DI")

_LAME_BYTES = 36
_MAX_TAGS = 10
_MAX_PADDING = 64 * 2**10


class _Frame(NamedTuple):
    """What four bytes say of a frame of Layer III; `stream` is the same in all of a file."""

    stream: tuple[int, int, bool]
    rate_hz: int
    size: int

    @property
    def channels(self) -> int:
        return 1 if self.stream[2] else 2

    @property
    def samples(self) -> int:
        return 1152 if self.stream[0] == _MPEG_1 else 576

    @property
    def side_bytes(self) -> int:
        """The length of the side information, which Xing's tag follows."""
        sizes = (17, 32) if self.stream[0] == _MPEG_1 else (9, 17)
        return sizes[self.channels - 1]


def skip_tags(content: bytes, position: int = 0) -> int:
    """Return where the content begins behind ID3 tags of version 2."""
    for _ in range(_MAX_TAGS):
        tag = content[position : position + 10]
        if len(tag) < 10 or tag[:3] != b"ID3" or max(tag[6:]) > 0x7F:
            break
        # Seven bits of each byte; a footer is as long as the header (ID3v2.4, 3.1).
        size = sum(byte << shift for byte, shift in zip(tag[6:], (21, 14, 7, 0), strict=True))
        position += 10 + size + (10 if tag[5] & 0x10 else 0)
    return position


def find_frames(content: bytes, start: int = 0) -> int | None:
    """Return where the frames begin, which only padding may precede; None if there are none.

    Four bytes are easily mistaken, so a second frame has to follow, or nothing.
    """
    padded = content[start : start + _MAX_PADDING]
    position = start + len(padded) - len(padded.lstrip(b"\0"))
    frame = _parse_frame(content[position : position + 4])
    if frame is None:
        return None
    end = position + frame.size
    following = _parse_frame(content[end : end + 4])
    is_sound = following.stream == frame.stream if following else _is_end(content, end)
    return position if is_sound else None


def open_mp3(content: bytes) -> AudioHeader:
    """Walk all frames; no sample is decoded.

    Raises:
        ValueError: something between two frames is neither, or frames are missing.
    """
    position = find_frames(content)
    if position is None:
        raise ValueError("it does not begin with two frames")
    start = content[position : position + 4]
    first = _parse_frame(start)
    assert first is not None
    frames: list[bytes] = []
    while (end := _find_end(content, position, first)) is not None:
        frames.append(content[position:end])
        # Files that were joined have further tags between their frames.
        position = skip_tags(content, end)
    stated, trimming = _read_length(frames[0], first) if frames else (None, b"")
    if stated is not None:
        del frames[0]
        if len(frames) < stated:
            raise ValueError(f"it has {len(frames)} of {stated} frames")
    samples = len(frames) * first.samples
    head = _write_length(start, first, frames, trimming)
    return AudioHeader("MP3", first.rate_hz, first.channels, samples, b"".join([head, *frames]))


@lru_cache(maxsize=1024)
def _parse_frame(head: bytes) -> _Frame | None:
    """Return what the first four bytes say; None if they begin no frame of Layer III."""
    # Eleven bits are set, two give the version, two the layer (01 is III).
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2:
        return None
    version, bit_rate, rate = head[1] >> 3 & 3, head[2] >> 4, head[2] >> 2 & 3
    # Bit rate 0 is free format, which needs a search for the next frame.
    if rate == 3 or not _RATES_HZ[version] or not 0 < bit_rate < 15:
        return None
    is_mpeg_1 = version == _MPEG_1
    rate_hz = _RATES_HZ[version][rate]
    bytes_per_s = 125 * _KBITS[is_mpeg_1][bit_rate - 1]
    samples = 1152 if is_mpeg_1 else 576
    size = samples * bytes_per_s // rate_hz + (head[2] >> 1 & 1)
    return _Frame((version, rate, head[3] >> 6 == _MONO), rate_hz, size)


def _find_end(content: bytes, position: int, first: _Frame) -> int | None:
    """Return where the frame ends that begins there; None behind the last whole one.

    Raises:
        ValueError: what begins there is neither a frame of the same stream nor a known end.
    """
    frame = _parse_frame(content[position : position + 4])
    if frame is not None and frame.stream == first.stream:
        end = position + frame.size
        return end if end <= len(content) else None
    if _is_end(content, position):
        return None
    raise ValueError(f"no frame begins at {position}")


def _is_end(content: bytes, position: int) -> bool:
    """Return whether only tags or padding are left, or the beginning of a cut frame."""
    is_cut = len(content) - position < 4
    return (
        is_cut or content.startswith(_FINAL_TAGS, position) or not content[position:].strip(b"\0")
    )


def _read_length(frame: bytes, first: _Frame) -> tuple[int | None, bytes]:
    """Return the number of frames that follow a frame of Xing or VBRI, and LAME's trimming.

    The number is None if this frame is neither, and 0 if it does not state one.
    """
    if frame[36:40] == b"VBRI":
        return int.from_bytes(frame[50:54]), b""
    # Two bytes of checksum may precede the side information.
    for start in (4 + first.side_bytes, 6 + first.side_bytes):
        if frame[start : start + 4] in (b"Xing", b"Info"):
            flags = int.from_bytes(frame[start + 4 : start + 8])
            lengths = {1: 4, 2: 4, 4: 100, 8: 4}
            lame = start + 8 + sum(size for bit, size in lengths.items() if flags & bit)
            stated = int.from_bytes(frame[start + 8 : start + 12]) if flags & 1 else 0
            return stated, frame[lame : lame + _LAME_BYTES]
    return None, b""


def _write_length(start: bytes, first: _Frame, frames: list[bytes], trimming: bytes) -> bytes:
    """Return a frame of Xing that states the right number of frames and bytes."""
    # The bit rate whose number is 9, no checksum, no padding: long enough for all that follows.
    head = bytes([start[0], start[1] | 1, 9 << 4 | start[2] & 0x0C, start[3]])
    frame = _parse_frame(head)
    assert frame is not None
    # Samples that encoders add at both ends, 12 bits each; decoders add 529 of their own.
    cut = int.from_bytes(trimming[21:24])
    if (cut >> 12) + (cut & 0xFFF) + 529 >= len(frames) * first.samples:
        trimming = b""
    size = frame.size + sum(map(len, frames))
    body = b"Xing" + struct.pack(">III", 3, len(frames), size) + trimming
    return (head + bytes(first.side_bytes) + body).ljust(frame.size, b"\0")
