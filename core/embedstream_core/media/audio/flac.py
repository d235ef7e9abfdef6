"""FLAC: its format and number of samples, without its tags and pictures."""

from __future__ import annotations

from embedstream_core.media.audio.header import AudioHeader

__all__ = ["open_flac"]

_STREAM_INFO_BYTES = 34
_LAST = 0x80
_MAX_BLOCKS = 1000


def open_flac(content: bytes) -> AudioHeader:
    """Read the metadata of a FLAC (RFC 9639, 8); no sample is decoded.

    The decoder gets a stream of unknown length: with the stated one it would stop there, or seek
    behind the end. The reader compares the lengths.

    Raises:
        ValueError: it is broken.
        NotImplementedError: its samples are of a size that libsndfile does not decode.
    """
    info = content[8 : 8 + _STREAM_INFO_BYTES]
    if len(info) < _STREAM_INFO_BYTES or content[4] & 0x7F or content[5:8] != b"\0\0\x22":
        raise ValueError("its first block is not a whole STREAMINFO")
    position, block = 4, 0
    for _ in range(_MAX_BLOCKS):
        if position + 4 > len(content):
            raise ValueError("it ends before its frames")
        block = content[position]
        position += 4 + int.from_bytes(content[position + 1 : position + 4])
        if block & _LAST:
            break
    else:
        raise ValueError(f"it has more than {_MAX_BLOCKS} blocks of metadata")
    # 20 bits of the rate, 3 of the channels, 5 of a sample's size, 36 of the length.
    fields = int.from_bytes(info[10:18])
    rate_hz, channels, bits = fields >> 44, (fields >> 41 & 7) + 1, (fields >> 36 & 31) + 1
    total = fields & (1 << 36) - 1
    if bits not in (8, 16, 24):
        raise NotImplementedError(f"its samples have {bits} bits")
    unknown = info[:10] + (fields - total).to_bytes(8) + info[18:]
    head = b"fLaC" + bytes([_LAST, 0, 0, _STREAM_INFO_BYTES]) + unknown
    return AudioHeader("FLAC", rate_hz, channels, total or None, head + content[position:])
