"""JPEG 2000: a JP2 file or a bare codestream (ITU-T T.800)."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from PIL import Jpeg2KImagePlugin

from embedstream_core.errors import Code, build_decode_error
from embedstream_core.media.image.opened_image import OpenedImage

__all__ = ["open_jp2"]

_CODESTREAM = b"\xff\x4f\xff\x51"

# Markers (table A.2).
_SIZE, _CODING, _COMPONENT_CODING, _ORDER = 0xFF51, 0xFF52, 0xFF53, 0xFF5F
_TILE_PART = 0xFF90
_DATA, _END = b"\xff\x93", b"\xff\xd9"

# OpenJPEG holds structures for each before it decodes anything: some kilobytes for a tile, and some
# hundred bytes for a precinct or a code block. A map of 10,000 x 10,000 pixels in tiles of 256 has
# 1,600; the largest image in the usual code blocks of 64 x 64 has 90,000 of these.
_MAX_TILES = 4096
_MAX_BLOCKS = 1_000_000
# Two bytes for each layer of each precinct.
_MAX_PACKETS = 10_000_000

# Each takes a microsecond or more to read.
_MAX_BOXES = 10_000
_MAX_SEGMENTS = 100_000

_MAX_LEVELS = 32

# The layers, the sides of a code block and those of the precincts by resolution, as powers of two.
_Coding: TypeAlias = tuple[int, int, int, bytes]

# The colours that a JP2 names by number (I.5.3.3), by the number of components; a profile names
# none. The last of two, and of four that are not CMYK, is transparency.
_CMYK = 12
_COLOURS = {1: (17, None), 2: (17, None), 3: (16, 18, None), 4: (16, _CMYK, None)}


@dataclass(frozen=True, slots=True)
class _Stream:
    """What the markers of a codestream say.

    `blocks` are all code blocks and precincts, `packets` the layers of all precincts.
    """

    size: tuple[int, int]
    components: int
    tiles: int
    blocks: int
    packets: int


def open_jp2(content: bytes) -> OpenedImage:
    """Read the boxes and the markers of a JPEG 2000; no pixel is decoded.

    Raises:
        ValueError: it is cut short, or broken.
        NotImplementedError: it is of a kind that is not decoded here.
        ItemError: it has too many tiles or code blocks.
    """
    stream, profile = memoryview(content), None
    if content.startswith(_CODESTREAM):
        read = _read_codestream(stream)
        if read.components not in (1, 3):
            raise NotImplementedError(f"it does not say what its {read.components} components are")
    else:
        boxes = _read_boxes(stream)
        header = _read_boxes(boxes.get(b"jp2h", stream[:0]))
        if not boxes.keys() >= {b"jp2c"} or not header.keys() >= {b"ihdr", b"colr"}:
            raise ValueError("its header or its data are missing")
        read = _read_codestream(boxes[b"jp2c"])
        height, width, components = struct.unpack_from(">IIH", header[b"ihdr"])
        if (width, height, components) != (*read.size, read.components):
            raise ValueError("its header and its data differ")
        profile = _check_colours(header, components)
    for found, limit, name in (
        (read.tiles, _MAX_TILES, "tiles"),
        (read.blocks, _MAX_BLOCKS, "code blocks and precincts"),
        (read.packets, _MAX_PACKETS, "layers of precincts"),
    ):
        if found > limit:
            message = f"the JP2 has {found} {name}; the limit is {limit}"
            raise build_decode_error(Code.IMAGE_TOO_LARGE, message)
    return OpenedImage(
        "JP2",
        read.size,
        lambda: Jpeg2KImagePlugin.Jpeg2KImageFile(io.BytesIO(content)),
        profile=profile,
    )


def _check_colours(header: dict[bytes, memoryview], components: int) -> bytes | None:
    """Check that Pillow reads the components as they are meant; return the profile."""
    colour, number, profile = header[b"colr"], None, None
    if colour[0] == 1:
        (number,) = struct.unpack_from(">I", colour, 3)
    elif colour[0] in (2, 3):
        profile = bytes(colour[3:])
    else:
        raise NotImplementedError(f"its colours are given by method {colour[0]}")
    if number not in _COLOURS[components]:
        raise NotImplementedError(f"its {components} components are of the colours {number}")
    if b"pclr" in header:
        raise NotImplementedError("it has a palette")
    # By component: whether it is transparency, and else the place of its colour (I.5.3.6).
    meant = [(index, 0, index + 1) for index in range(components)]
    if components in (2, 4) and number != _CMYK:
        meant[-1] = (components - 1, 1, 0)
    channels = header.get(b"cdef")
    if channels is None:
        found = [(index, 0, index + 1) for index in range(components)]
    else:
        found = sorted(struct.iter_unpack(">HHH", channels[2:]))
    if found != meant:
        raise NotImplementedError(f"its components are {found}, not {meant}")
    return profile


def _read_boxes(view: memoryview) -> dict[bytes, memoryview]:
    """Return the first box of each type, without its header (I.4)."""
    boxes: dict[bytes, memoryview] = {}
    position = 0
    for _ in range(_MAX_BOXES):
        if position + 8 > len(view):
            return boxes
        length, kind = struct.unpack_from(">I4s", view, position)
        start = position + 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", view, start)
            start += 8
        end = position + length if length else len(view)
        if not start <= end <= len(view):
            raise ValueError(f"its box {kind!r} is cut short")
        boxes.setdefault(kind, view[start:end])
        position = end
    raise build_decode_error(Code.IMAGE_TOO_LARGE, f"the JP2 has over {_MAX_BOXES} boxes")


def _read_codestream(stream: memoryview) -> _Stream:
    """Read the headers of the image and of its tiles, and check that each tile has its data.

    OpenJPEG shows a cut image as grey where its data are missing.
    """
    size, position, count = None, 2, iter(range(_MAX_SEGMENTS))
    codings: set[_Coding] = set()
    while True:
        marker, segment, end = _read_segment(stream, position, count)
        if marker == _TILE_PART:
            break
        if marker == _SIZE:
            if size is not None:
                raise ValueError("it has two sizes")
            size = segment
        codings |= _read_coding(marker, segment)
        position = end
    if size is None:
        raise ValueError("its size is missing")
    tiles = _read_tiles(stream, position, codings, count)
    read = _measure(size, codings)
    if read.tiles <= _MAX_TILES and tiles != {*range(read.tiles)}:
        raise ValueError("the data of a tile are missing")
    return read


def _read_tiles(
    stream: memoryview, position: int, codings: set[_Coding], count: Iterator[int]
) -> set[int]:
    """Return the numbers of the tiles that have data; add how they are coded."""
    tiles: set[int] = set()
    while stream[position : position + 2] != _END:
        marker, segment, end = _read_segment(stream, position, count)
        if marker != _TILE_PART:
            raise ValueError("its data are cut short")
        tile, length = struct.unpack_from(">HI", segment)
        # The last one may have no length.
        following = position + length if length else len(stream) - len(_END)
        while stream[end : end + 2] != _DATA:
            marker, segment, end = _read_segment(stream, end, count)
            codings |= _read_coding(marker, segment)
        if not end + len(_DATA) <= following <= len(stream) - len(_END):
            raise ValueError("its data are cut short")
        tiles.add(tile)
        position = following
    return tiles


def _read_segment(
    stream: memoryview, position: int, count: Iterator[int]
) -> tuple[int, memoryview, int]:
    """Return a marker, what follows its length, and where that ends."""
    if next(count, None) is None:
        message = f"the JP2 has over {_MAX_SEGMENTS} segments"
        raise build_decode_error(Code.IMAGE_TOO_LARGE, message)
    marker, length = struct.unpack_from(">HH", stream, position)
    end = position + 2 + length
    if length < 2 or end > len(stream):
        raise ValueError("its header is cut short")
    return marker, stream[position + 4 : end], end


def _read_coding(marker: int, segment: memoryview) -> set[_Coding]:
    """Return how all components are coded, or one of them; nothing for other markers."""
    if marker == _ORDER:
        raise NotImplementedError("the order of its packets changes")
    if marker not in (_CODING, _COMPONENT_CODING):
        return set()
    first = 5 if marker == _CODING else 2
    layers = int.from_bytes(segment[2:4]) if marker == _CODING else 0
    levels, width, height, *_ = segment[first:]
    has_precincts = segment[0 if marker == _CODING else 1] & 1
    precincts = bytes(segment[first + 5 :]) if has_precincts else b"\xff" * (levels + 1)
    if levels > _MAX_LEVELS or len(precincts) != levels + 1:
        raise ValueError("how its components are coded is broken")
    return {(layers, (width & 15) + 2, (height & 15) + 2, precincts)}


def _measure(size: memoryview, codings: set[_Coding]) -> _Stream:
    """Read the marker SIZ (A.5.1); count as if all tiles were coded in each of the ways."""
    right, bottom, left, top, across, down, first, upper = struct.unpack_from(">8I", size, 2)
    (components,) = struct.unpack_from(">H", size, 34)
    kinds = {*struct.iter_unpack(">BBB", size[36:])}
    if components not in _COLOURS or len(size) != 36 + 3 * components:
        raise NotImplementedError(f"it has {components} components")
    # Less than eight bits would not be scaled to the whole range.
    if len(kinds) > 1 or not (7, 1, 1) <= (kind := min(kinds)) <= (15, 1, 1) or kind[1:] != (1, 1):
        raise NotImplementedError(f"its components are of the kinds {sorted(kinds)}")
    width, height = right - left, bottom - top
    if min(width, height, across, down) < 1 or first > left or upper > top:
        raise ValueError("its width, its height or those of its tiles are 0")
    tiles = -(-(right - first) // across) * -(-(bottom - upper) // down)
    sides = min(across, width), min(down, height)
    counts = [_count_blocks(sides, coding) for coding in codings]
    layers = max((coding[0] for coding in codings), default=0)
    if not layers:
        raise ValueError("how it is coded is missing")
    each = tiles * components
    blocks, precincts = (max(one) * each for one in zip(*counts, strict=True))
    return _Stream((width, height), components, tiles, blocks + precincts, precincts * layers)


def _count_blocks(sides: tuple[int, int], coding: _Coding) -> tuple[int, int]:
    """Return the code blocks and the precincts of one component of a tile (B.6, B.7)."""
    _, *block, precinct_sides = coding
    blocks = precincts = 0
    for level, precinct in enumerate(precinct_sides):
        # By resolution, the smallest first; all sides in powers of two.
        scale = len(precinct_sides) - 1 - level
        in_image = in_blocks = 1
        for side, outer, inner in zip(sides, (precinct & 15, precinct >> 4), block, strict=True):
            in_image *= _divide(side, scale + outer)
            # Half of a precinct is in each band, of which all but the smallest have three.
            half = int(level > 0)
            in_blocks *= _divide(side, scale + half + min(inner, max(0, outer - half)))
        precincts += in_image
        blocks += in_blocks * (3 if level else 1)
    return blocks, precincts


def _divide(side: int, power: int) -> int:
    """Return a side divided by a power of two, rounded up."""
    return -(-side >> power)
