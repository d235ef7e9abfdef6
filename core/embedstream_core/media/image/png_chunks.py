"""A PNG's chunks: checked as libpng does, and only what makes pixels handed to the decoder.

Pillow refuses a picture for one broken chunk of text, and does not check the data's checksums.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from embedstream_core.errors import Code, ItemError, Stage

__all__ = ["SIGNATURE", "Png", "read_png"]

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_GREY, _RGB, _PALETTE, _GREY_ALPHA, _RGBA = 0, 2, 3, 4, 6

_DEPTHS = {
    _GREY: (1, 2, 4, 8, 16),
    _RGB: (8, 16),
    _PALETTE: (1, 2, 4, 8),
    _GREY_ALPHA: (8, 16),
    _RGBA: (8, 16),
}

_CHANNELS = {_GREY: 1, _RGB: 3, _PALETTE: 1, _GREY_ALPHA: 2, _RGBA: 4}

# Of each pass the first column and row, and the steps to the next ones.
_ADAM7 = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
_PIECE_BYTES, _INFLATED_BYTES = 2**16, 2**18

# What may hold an orientation; of a text no more than so many bytes are read.
_XMP = b"XML:com.adobe.xmp"
_ORIENTED = {b"eXIf", _XMP, b"Raw profile type exif"}
_MOST_TEXT = 2**20

# To go through half a million takes two seconds. A picture of 300 by 300 pixels in chunks of one
# byte has half as many; encoders write some thousand at most.
_MOST_CHUNKS = 500_000


class _Chunk(NamedTuple):
    kind: bytes
    data: memoryview
    is_sound: bool


@dataclass(slots=True)
class Png:
    """What makes a PNG's pixels, and in `info` its EXIF and XMP under the names that Pillow uses.

    `transparent` is the colour that tRNS names, a grey or red, green and blue, in the depth of the
    picture; a palette's transparency stays with its palette.
    """

    width: int
    height: int
    depth: int
    colour_type: int
    is_interlaced: bool
    transparent: tuple[int, ...] = ()
    info: dict[str, Any] = field(default_factory=dict)
    _head: list[bytes] = field(default_factory=list)
    _data: list[memoryview] = field(default_factory=list)

    def content(self) -> bytes:
        """Return a PNG of the same pixels alone, with the data in one chunk.

        It ends with them, for Pillow needs neither their checksum nor IEND.
        """
        size = sum(map(len, self._data))
        return b"".join([SIGNATURE, *self._head, size.to_bytes(4), b"IDAT", *self._data])

    def has_all_rows(self) -> bool:
        """Whether the data, once decompressed, are as long as the header's size asks for.

        Takes about as long as decoding, and the memory of the compressed data.
        """
        missing = sum(
            (1 + (width * self.depth * _CHANNELS[self.colour_type] + 7) // 8) * height
            for width, height in self._passes()
            if width
        )
        inflating = zlib.decompressobj()
        data = b"".join(self._data)
        # By pieces, for what is left of one is copied each time.
        for start in range(0, len(data), _PIECE_BYTES):
            piece = data[start : start + _PIECE_BYTES]
            while missing > 0 and (inflated := inflating.decompress(piece, _INFLATED_BYTES)):
                missing -= len(inflated)
                piece = inflating.unconsumed_tail
        return missing <= 0

    def _passes(self) -> Iterator[tuple[int, int]]:
        """Width and height of each pass: of the whole picture, or Adam7's (PNG 3, 8.1)."""
        for left, top, across, down in _ADAM7 if self.is_interlaced else ((0, 0, 1, 1),):
            yield -(-(self.width - left) // across), -(-(self.height - top) // down)


def read_png(content: bytes) -> Png:
    """Read all chunks of a PNG; no pixel is decoded.

    What is broken of the ancillary ones is ignored, as libpng does.

    Raises:
        ItemError: a critical chunk is broken, missing, or unknown.
    """
    chunks = _chunks(content)
    png = _read_header(next(chunks, None))
    palette = transparency = None
    # Read after all, so that of a thousand compressed texts one is.
    metadata: dict[bytes, tuple[bytes, memoryview]] = {}
    data: list[memoryview] = []
    data_ended = False
    for kind, inside, is_sound in chunks:
        data_ended = data_ended or (bool(data) and kind != b"IDAT")
        if kind == b"IDAT":
            # What comes later is none of the picture's, in libpng and in Pillow.
            data += [] if data_ended else [inside]
        elif kind == b"PLTE":
            # One behind the data comes too late for a decoder that goes through once.
            palette = palette or (None if data else inside)
        elif kind == b"IHDR":
            raise _corrupt("it has two headers, IHDR")
        elif not kind[0] & 0x20:
            raise _unsupported(f"its chunk {kind.decode()} is unknown")
        elif kind == b"tRNS" and not data and is_sound:
            transparency = transparency or bytes(inside)
        elif is_sound and (key := _key(kind, inside)) in _ORIENTED:
            metadata[key] = kind, inside
    if not data:
        raise _corrupt("it has no data")
    if png.colour_type == _PALETTE:
        png._head += _palette(palette, transparency)
    elif transparency and len(transparency) == {_GREY: 2, _RGB: 6}.get(png.colour_type):
        # The bits above the depth say nothing (PNG 3, 11.3.2.1).
        values = struct.unpack(f">{len(transparency) // 2}H", transparency)
        png.transparent = tuple(value & (1 << png.depth) - 1 for value in values)
    png._data = data
    png.info = _metadata(metadata)
    return png


def _chunks(content: bytes) -> Iterator[_Chunk]:
    """Each chunk before IEND, which may be broken, or missing; the critical ones are sound.

    Of the data the last chunk may be cut short.
    """
    view = memoryview(content)
    position = len(SIGNATURE)
    count = 0
    while position + 8 <= len(content):
        count += 1
        if count > _MOST_CHUNKS:
            raise ItemError(
                Code.IMAGE_TOO_LARGE, Stage.DECODE, f"the PNG has over {_MOST_CHUNKS} chunks"
            )
        length, kind = struct.unpack_from(">I4s", content, position)
        if kind == b"IEND":
            return
        if not kind.isalpha():
            raise _corrupt(f"a chunk is called {kind!r}")
        start, end = position + 8, position + 8 + length
        # Of data that are cut short the decoder finds out whether they suffice.
        if end > len(content) and (kind != b"IDAT" or start == len(content)):
            raise _corrupt(f"its chunk {kind.decode()} is cut short")
        is_sound = content[end : end + 4] == zlib.crc32(view[position + 4 : end]).to_bytes(4)
        is_critical = not kind[0] & 0x20
        if is_critical and not is_sound and end + 4 <= len(content):
            raise _corrupt(f"the checksum of its chunk {kind.decode()} is wrong")
        position = end + 4
        yield _Chunk(kind, view[start:end], is_sound)


def _read_header(first: _Chunk | None) -> Png:
    if first is not None and first.kind == b"CgBI":
        raise _unsupported("it is one of Xcode's for the iPhone (CgBI)")
    if first is None or first.kind != b"IHDR" or len(first.data) != 13:
        raise _corrupt("it does not begin with its header, IHDR")
    width, height, depth, colour_type, *methods = struct.unpack(">IIBBBBB", first.data)
    if not width or not height or depth not in _DEPTHS.get(colour_type, ()):
        raise _corrupt(f"{width}x{height} pixels of {depth} bits and colour type {colour_type}")
    compression, filtering, interlace = methods
    if compression or filtering or interlace > 1:
        raise _unsupported(f"its methods are {compression}, {filtering} and {interlace}")
    return Png(
        width,
        height,
        depth,
        colour_type,
        interlace == 1,
        _head=[_chunk(b"IHDR", bytes(first.data))],
    )


def _palette(palette: memoryview | None, transparency: bytes | None) -> Iterator[bytes]:
    if palette is None or not 0 < len(palette) <= 768 or len(palette) % 3:
        raise _corrupt("its palette is missing, or broken")
    yield _chunk(b"PLTE", bytes(palette))
    if transparency and len(transparency) <= len(palette) // 3:
        yield _chunk(b"tRNS", transparency)


def _metadata(found: dict[bytes, tuple[bytes, memoryview]]) -> dict[str, Any]:
    """Return what may hold an orientation, under the names that Pillow gives it."""
    info: dict[str, Any] = {}
    for key, (kind, data) in found.items():
        if key == b"eXIf":
            info["exif"] = b"Exif\0\0" + data
            continue
        text = _text(kind, bytes(data[len(key) + 1 :][:_MOST_TEXT]))
        if key == _XMP:
            info["xmp"] = text
        else:
            info["Raw profile type exif"] = text.decode("latin-1")
    return info


def _key(kind: bytes, data: memoryview) -> bytes:
    """What a chunk is about: the keyword of a text, or its own type."""
    if kind in (b"tEXt", b"zTXt", b"iTXt"):
        return bytes(data[:80]).partition(b"\0")[0]
    return kind


def _text(kind: bytes, data: bytes) -> bytes:
    """Return the text of a chunk without its keyword; none where it is broken."""
    is_compressed = kind == b"zTXt"
    if kind == b"zTXt":
        data = data[1:]
    elif kind == b"iTXt":
        is_compressed = data[:1] == b"\1"
        # Two bytes of compression, the language and the keyword in it.
        data = data[2:].split(b"\0", 2)[-1]
    try:
        return zlib.decompressobj().decompress(data, _MOST_TEXT) if is_compressed else data
    except zlib.error:
        return b""


def _chunk(kind: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(kind + data).to_bytes(4)
    return len(data).to_bytes(4) + kind + data + checksum


def _corrupt(reason: str) -> ItemError:
    return ItemError(Code.IMAGE_CORRUPT, Stage.DECODE, f"the PNG is broken: {reason}")


def _unsupported(reason: str) -> ItemError:
    return ItemError(Code.IMAGE_UNSUPPORTED, Stage.DECODE, f"the PNG is unsupported: {reason}")
