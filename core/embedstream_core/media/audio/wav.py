"""WAV: find the samples, whatever the sizes in its headers state.

libsndfile parses two dozen kinds of chunks and corrects sizes without a word. It gets a header of
44 bytes that was written here.
"""

from __future__ import annotations

import struct

from embedstream_core.media.audio.header import AudioHeader

__all__ = ["open_wav"]

_PCM, _FLOAT, _A_LAW, _MU_LAW, _EXTENSIBLE = 1, 3, 6, 7, 0xFFFE
_BITS = {_PCM: (8, 16, 24, 32), _FLOAT: (32, 64), _A_LAW: (8,), _MU_LAW: (8,)}

# What follows the format's number in the GUID of an extensible header (Microsoft, mmreg.h).
_GUID_END = bytes.fromhex("000000001000800000aa00389b71")

# Writers into a pipe cannot go back to fill in the size: ffmpeg leaves 0xFFFFFFFF, arecord and SoX
# about 0x7FFFFFFF, others 0.
_LEAST_UNKNOWN = 0x7FFF_F000

_MAX_CHUNKS = 1000


def open_wav(content: bytes) -> AudioHeader:
    """Find the format and the samples of a WAV; none is decoded.

    Raises:
        ValueError: it is broken, or has less data than it states.
        NotImplementedError: its samples are of a kind that is not decoded here.
    """
    (riff_bytes,) = struct.unpack_from("<I", content, 4)
    position, form = 12, b""
    for _ in range(_MAX_CHUNKS):
        if position + 8 > len(content):
            raise ValueError("it ends before its data")
        kind, size = struct.unpack_from("<4sI", content, position)
        position += 8
        if kind == b"data":
            break
        if kind == b"fmt ":
            form = content[position : position + size]
        # Chunks begin at even positions.
        position += size + size % 2
    else:
        raise ValueError(f"more than {_MAX_CHUNKS} chunks precede its data")
    number, channels, rate_hz, bits = _read_format(form)
    available = len(content) - position
    is_unknown = size >= _LEAST_UNKNOWN or (size == 0 and riff_bytes + 8 != len(content))
    if size > available and not is_unknown:
        raise ValueError(f"it has {available} of {size} bytes of data")
    frame_bytes = channels * bits // 8
    frames = (available if is_unknown else size) // max(1, frame_bytes)
    data = content[position : position + frames * frame_bytes]
    byte_rate = min(rate_hz * frame_bytes, 0xFFFF_FFFF)
    form = struct.pack("<HHIIHH", number, channels, rate_hz, byte_rate, frame_bytes, bits)
    chunks = [b"WAVEfmt ", struct.pack("<I", len(form)), form, b"data"]
    head = b"".join([*chunks, struct.pack("<I", len(data))])
    stream = b"".join([b"RIFF", struct.pack("<I", len(head) + len(data)), head, data])
    return AudioHeader("WAV", rate_hz, channels, frames, stream)


def _read_format(form: bytes) -> tuple[int, int, int, int]:
    """Return the format's number, the channels, the rate and the bits of a sample."""
    if len(form) < 16:
        raise ValueError("its format is missing, or cut")
    number, channels, rate_hz, _, frame_bytes, bits = struct.unpack_from("<HHIIHH", form)
    if number == _EXTENSIBLE:
        if len(form) < 40 or form[26:40] != _GUID_END:
            raise NotImplementedError("its samples have a format of their own")
        (number,) = struct.unpack_from("<H", form, 24)
    if bits not in _BITS.get(number, ()):
        raise NotImplementedError(f"its samples have format {number} and {bits} bits")
    if bits == 24 and frame_bytes == 4 * channels:
        # Some writers pad samples to words, at either end.
        raise NotImplementedError("its samples of 24 bits are stored in 4 bytes")
    if frame_bytes != channels * bits // 8:
        raise ValueError(f"{channels} samples of {bits} bits do not fill {frame_bytes} bytes")
    return number, channels, rate_hz, bits
