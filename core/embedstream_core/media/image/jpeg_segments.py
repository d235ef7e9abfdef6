"""A JPEG's segments: what its frame is, how many scans it has, and which of it makes pixels."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from embedstream_core.errors import Code, decode_error

__all__ = ["SIGNATURE", "Jpeg", "read_jpeg"]

SIGNATURE = b"\xff\xd8\xff"

_EOI, _SOS, _SOI = 0xD9, 0xDA, 0xD8

# ITU-T T.81, table B.1, and JPEG-LS's.
_FRAMES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
# What libjpeg-turbo decodes.
_DECODED_FRAMES = {0xC0, 0xC1, 0xC2, 0xC3, 0xC9, 0xCA}
_PROGRESSIVE_FRAMES = {0xC2, 0xC6, 0xCA, 0xCE}

# JFIF's and Adobe's segments say which colours there are. The other applications' say nothing of
# the pixels, and Pillow refuses a picture for some that are broken.
_METADATA = {*range(0xE1, 0xEE), 0xEF}
# Shorter ones than these are not JFIF's or Adobe's to libjpeg, and an error to Pillow.
_COLOUR_BYTES = {0xE0: 14, 0xEE: 12}

# To go through a hundred thousand takes a sixth of a second. A photograph has some dozen.
_MOST_SEGMENTS = 100_000

# A marker, but for those that stand in the data of a scan: stuffed zeros, fill bytes, restarts.
_MARKER = re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]")


@dataclass(frozen=True, slots=True)
class Jpeg:
    """What a JPEG's header says. `exif` and `xmp` are empty where it has none.

    `scans` counts how often the decoder goes over the picture: no further than `most_scans` + 1.
    """

    width: int
    height: int
    scans: int
    exif: bytes
    xmp: bytes
    _content: bytes
    _metadata: tuple[tuple[int, int], ...]

    def content(self) -> bytes:
        """Return a JPEG of the same pixels whose metadata are empty comments.

        What stands between segments stays: it is for the decoder to accept or to refuse.
        """
        parts, position = [], 0
        for start, end in self._metadata:
            parts += [self._content[position:start], b"\xff\xfe\0\2"]
            position = end
        return b"".join([*parts, self._content[position:]])


def read_jpeg(content: bytes, *, most_scans: int) -> Jpeg:
    """Read the segments of a JPEG; no pixel is decoded.

    Raises:
        ItemError: it has no frame, or one that is not decoded here.
    """
    frame, size, components = 0, b"", 0
    exif: list[bytes] = []
    xmp = b""
    metadata: list[tuple[int, int]] = []
    segments = _segments(content)
    for marker, start, end in segments:
        data = content[start + 4 : end]
        if marker in _METADATA or len(data) < _COLOUR_BYTES.get(marker, 0):
            metadata.append((start, end))
        if marker in _FRAMES:
            frame, size, components = marker, data[:5], int.from_bytes(data[5:6])
        elif marker == 0xE1 and data.startswith(b"Exif\0\0"):
            exif.append(data[6:])
        elif marker == 0xE1 and data.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
            xmp = data
        elif marker == _SOS:
            break
    else:
        raise decode_error(Code.IMAGE_CORRUPT, "the JPEG is broken: it has no data")
    if frame == 0 or len(size) < 5:
        raise decode_error(Code.IMAGE_CORRUPT, "the JPEG is broken: it has no frame")
    if frame not in _DECODED_FRAMES or size[0] != 8 or components not in (1, 3, 4):
        raise decode_error(
            Code.IMAGE_UNSUPPORTED,
            f"the JPEG is unsupported: {components} colours of {size[0]} bits in a frame {frame:X}",
        )
    # A sequential one whose first scan has all colours ends with it.
    is_repeated = frame in _PROGRESSIVE_FRAMES or data[:1] != bytes([components])
    scans = 1
    while is_repeated and scans <= most_scans and (segment := next(segments, None)):
        scans += segment[0] == _SOS
    width, height = int.from_bytes(size[3:5]), int.from_bytes(size[1:3])
    return Jpeg(width, height, scans, b"".join(exif), xmp, content, tuple(metadata))


def _segments(content: bytes) -> Iterator[tuple[int, int, int]]:
    """Each segment's marker, start and end, up to the end of the image."""
    position, count = 2, 0
    while found := _MARKER.search(content, position):
        count += 1
        if count > _MOST_SEGMENTS:
            raise decode_error(Code.IMAGE_TOO_LARGE, f"the JPEG has over {_MOST_SEGMENTS} segments")
        marker = content[found.end() - 1]
        # libjpeg ends at a second start.
        if marker in (_EOI, _SOI):
            return
        length = int.from_bytes(content[found.end() : found.end() + 2])
        position = found.end() + max(length, 2)
        yield marker, found.start(), position
