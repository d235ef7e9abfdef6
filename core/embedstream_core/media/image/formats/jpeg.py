"""JPEG: its frame, the number of its scans, and its pixels without its metadata."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence

from PIL import JpegImagePlugin

from embedstream_core.errors import Code, build_decode_error
from embedstream_core.media.image.opened_image import OpenedImage, read_orientation

__all__ = ["open_jpeg", "strip_baseline"]

_EOI, _SOS, _SOI, _APP1, _APP2 = 0xD9, 0xDA, 0xD8, 0xE1, 0xE2

# How the segments begin that are read.
_EXIF, _XMP, _PROFILE = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0", b"ICC_PROFILE\0"
_NAMES = {_APP1: (_EXIF, _XMP), _APP2: (_PROFILE,)}

# ITU-T T.81, table B.1, and JPEG-LS's.
_FRAMES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
# Those that libjpeg-turbo decodes.
_DECODED_FRAMES = {0xC0, 0xC1, 0xC2, 0xC3, 0xC9, 0xCA}
_PROGRESSIVE_FRAMES = {0xC2, 0xC6, 0xCA, 0xCE}

# JFIF's and Adobe's segments name the colours. Those of other applications do not affect the
# pixels, and Pillow refuses an image if some of them are broken.
_METADATA = {*range(0xE1, 0xEE), 0xEF}
# libjpeg ignores JFIF's and Adobe's segments that are shorter than this; Pillow refuses them.
_MIN_COLOUR_BYTES = {0xE0: 14, 0xEE: 12}
_EMPTY_COMMENT = b"\xff\xfe\0\2"

_BASELINE, _HUFFMAN, _QUANTIZATION, _RESTARTS = 0xC0, 0xC4, 0xDB, 0xDD
# Applications' segments, and comments.
_WITHOUT_PIXELS = {*range(0xE0, 0xF0), 0xFE}
# Sampling factors of luma over chroma's 1x1: 4:4:4, 4:4:0, 4:2:2 and 4:2:0.
_SAMPLINGS = {0x11, 0x12, 0x21, 0x22}

# Reading a hundred thousand takes a sixth of a second. A photograph has some dozen.
_MAX_SEGMENTS = 100_000

# Any marker except those within the data of a scan: stuffed zeros, fill bytes, restarts.
_MARKER = re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]")


def open_jpeg(content: bytes) -> OpenedImage:
    """Read the segments of a JPEG; no pixel is decoded.

    Raises:
        ValueError: it has no frame or no data.
        NotImplementedError: its frame is not decoded here.
        ItemError: it has too many segments.
    """
    frame, size, components = 0, b"", 0
    metadata: dict[bytes, list[bytes]] = {name: [] for name in (_EXIF, _XMP, _PROFILE)}
    # The same pixels, with empty comments for metadata. Bytes between segments stay: the decoder
    # accepts or refuses them.
    view, copied = memoryview(content), 0
    parts: list[memoryview | bytes] = []
    segments = _read_segments(content)
    for marker, start, end in segments:
        data = content[start + 4 : end]
        if marker in _METADATA or len(data) < _MIN_COLOUR_BYTES.get(marker, 0):
            parts += [view[copied:start], _EMPTY_COMMENT]
            copied = end
        if marker in _FRAMES:
            frame, size, components = marker, data[:5], int.from_bytes(data[5:6])
        elif name := next(filter(data.startswith, _NAMES.get(marker, ())), b""):
            metadata[name].append(data[len(name) :])
        elif marker == _SOS:
            break
    else:
        raise ValueError("it has no data")
    if frame == 0 or len(size) < 5:
        raise ValueError("it has no frame")
    if frame not in _DECODED_FRAMES or size[0] != 8 or components not in (1, 3, 4):
        raise NotImplementedError(f"{components} colours of {size[0]} bits in a frame {frame:X}")
    scans = 1
    # A sequential JPEG whose first scan has all colours ends with that scan.
    if frame in _PROGRESSIVE_FRAMES or data[:1] != bytes([components]):
        scans += sum(marker == _SOS for marker, _, _ in segments)
    return OpenedImage(
        "JPEG",
        (int.from_bytes(size[3:5]), int.from_bytes(size[1:3])),
        # Image.open would read an index of further images too, and fail if it is broken.
        lambda: JpegImagePlugin.JpegImageFile(io.BytesIO(b"".join([*parts, view[copied:]]))),
        read_orientation({"exif": b"".join(metadata[_EXIF]), "xmp": b"".join(metadata[_XMP][-1:])}),
        scans,
        profile=_join_profile(metadata[_PROFILE]),
    )


def strip_baseline(content: bytes) -> bytearray | None:
    """Return a common baseline JPEG without the segments that make no pixels; else None.

    Common are three colours of 8 bits, numbered from 1, in one scan, which the end of the image
    follows. No byte is between segments, and no table has 16 bits. The colours are YCbCr unless one
    of the segments that are left out says otherwise.
    """
    view, position = memoryview(content), 2
    parts, has_frame = [view[:position]], False
    for marker, start, end in _read_segments(content):
        data = content[start + 4 : end]
        if start != position:
            return None
        position = end
        if marker in _WITHOUT_PIXELS:
            continue
        if marker == _SOS:
            last = _MARKER.search(content, end)
            if has_frame and _is_whole_scan(data) and last and last[0][1] == _EOI:
                return bytearray().join([*parts, view[start : last.end()]])
            return None
        if marker == _BASELINE and not has_frame and _is_common_frame(data):
            has_frame = True
        elif not (
            marker in (_HUFFMAN, _RESTARTS) or (marker == _QUANTIZATION and _has_bytes(data))
        ):
            return None
        parts.append(view[start:end])
    return None


def _is_common_frame(data: bytes) -> bool:
    """Return whether a frame has 8 bits, colours 1 to 3, and luma of one to 2x2 samples."""
    return (
        (data[:1], data[5:6], data[6::3]) == (b"\x08", b"\3", b"\1\2\3")
        and data[7] in _SAMPLINGS
        and data[10::3] == b"\x11\x11"
    )


def _is_whole_scan(data: bytes) -> bool:
    """Return whether a scan has all coefficients of colours 1 to 3."""
    return (data[:1], data[1:6:2], data[7:]) == (b"\3", b"\1\2\3", b"\0\x3f\0")


def _has_bytes(data: bytes) -> bool:
    """Return whether quantization tables have 8 bits: 64 values after the number of each."""
    return len(data) % 65 == 0 and max(data[::65], default=16) < 16


def _join_profile(parts: Sequence[bytes]) -> bytes | None:
    """Return the profile whose parts have their number and the number of all in front.

    It is empty if a part is missing (ICC.1, B.4), and None without any.
    """
    if not parts:
        return None
    ordered = sorted(parts)
    numbers = [(number, len(parts)) for number in range(1, len(parts) + 1)]
    if [tuple(part[:2]) for part in ordered] != numbers:
        return b""
    return b"".join(part[2:] for part in ordered)


def _read_segments(content: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield each segment's marker, start and end, up to the end of the image."""
    position, count = 2, 0
    while found := _MARKER.search(content, position):
        count += 1
        if count > _MAX_SEGMENTS:
            raise build_decode_error(
                Code.IMAGE_TOO_LARGE, f"the JPEG has over {_MAX_SEGMENTS} segments"
            )
        marker = content[found.end() - 1]
        # libjpeg ends at a second start.
        if marker in (_EOI, _SOI):
            return
        length = int.from_bytes(content[found.end() : found.end() + 2])
        position = found.end() + max(length, 2)
        yield marker, found.start(), position
