"""Ogg with one stream of Vorbis or Opus: check its pages.

libsndfile leaves out broken pages, and all that follows the first of several streams, without a
word; here they are refused.
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

from embedstream_core.media.audio.header import AudioHeader

__all__ = ["find_codec", "open_ogg"]

_CONTINUED, _FIRST, _LAST = 1, 2, 4
_HEAD = struct.Struct("<4sBBqIIIB")
_OPUS_HZ = 48_000

# How the first packet of each kind of stream begins; those without a header are not decoded here.
_CODECS = {
    b"\x01vorbis": "Vorbis",
    b"OpusHead": "Opus",
    b"\x7fFLAC": "FLAC",
    b"Speex   ": "Speex",
    b"\x80theora": "Theora",
    b"fishead\0": "Skeleton",
    b"BBCD\0": "Dirac",
}

_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


class _Page(NamedTuple):
    flags: int
    granule: int
    serial: int
    body: bytes
    end: int


def find_codec(content: bytes) -> str:
    """Return the name of the codec of the first stream; empty if it is not known."""
    # The first page holds one short packet, in one segment (RFC 3533, 6).
    packet = content[28:36]
    return next((name for start, name in _CODECS.items() if packet.startswith(start)), "")


def open_ogg(content: bytes) -> AudioHeader:
    """Read and check all pages; no sample is decoded.

    Raises:
        ValueError: a page is broken, cut or missing.
        NotImplementedError: it holds several streams, or something other than Vorbis and Opus.
    """
    codec = find_codec(content)
    if codec not in ("Vorbis", "Opus"):
        raise NotImplementedError(f"its stream is {codec or 'unknown'}, not Vorbis or Opus")
    page = first = _read_page(content, 0)
    last = 0
    while page.end < len(content) and not (
        page.flags & _LAST and content[page.end : page.end + 4] != b"OggS"
    ):
        page = _read_page(content, page.end)
        if page.flags & _FIRST or page.serial != first.serial:
            raise NotImplementedError("it holds several streams")
        # A page in which no packet ends has the granule -1.
        if page.granule != -1 and page.granule < last:
            raise ValueError("its times go backwards")
        last = max(last, page.granule)
    if codec == "Vorbis":
        channels, rate_hz = struct.unpack_from("<BI", first.body, 11)
    else:
        channels, skipped = struct.unpack_from("<BH", first.body, 9)
        # The decoder may choose a lower rate; the times are in this one (RFC 7845, 4).
        rate_hz, last = _OPUS_HZ, max(0, last - skipped)
    return AudioHeader("OGG", rate_hz, channels, last, content[: page.end])


def _read_page(content: bytes, start: int) -> _Page:
    """Return the page that begins there; raise ValueError if it is broken."""
    body_start = start + _HEAD.size
    if body_start > len(content):
        raise ValueError("its last page is cut")
    kind, version, flags, granule, serial, _, checksum, segments = _HEAD.unpack_from(content, start)
    sizes = content[body_start : body_start + segments]
    body_start += segments
    end = body_start + sum(sizes)
    if kind != b"OggS" or version:
        raise ValueError(f"no page begins at {start}")
    if end > len(content):
        raise ValueError("its last page is cut")
    # The checksum counts as 0.
    page = b"".join([content[start : start + 22], bytes(4), content[start + 26 : end]])
    if _compute_checksum(page) != checksum:
        raise ValueError(f"the page at {start} is broken")
    return _Page(flags, granule, serial, content[body_start:end], end)


def _compute_checksum(page: bytes) -> int:
    """Return the CRC of RFC 3533: zlib's polynomial, bits in reverse, without its inversions."""
    crc = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(crc.to_bytes(4, "little").translate(_REVERSED))
