"""HEIC: an image in HEVC, as phones make; needs the extra `heif`."""

from __future__ import annotations

import io
import itertools
import struct
from collections.abc import Iterator

from PIL import Image

from embedstream_core.extras import require_extra
from embedstream_core.media.image.formats.bit_reader import BitReader
from embedstream_core.media.image.formats.iso_media import (
    Item,
    StillImage,
    read_still_image,
)
from embedstream_core.media.image.opened_image import OpenedImage

__all__ = ["open_heic", "require_heif"]

# Types of units (ISO/IEC 23008-2, table 7-1): slices are below, then the parameter sets.
_FIRST_OTHER, _VPS, _SPS, _PPS = 32, 32, 33, 34

# The longest part of a sequence's parameters before the size, with seven sublayers.
_HEADER_BYTES = 256
# An encoder's have some hundred bytes.
_MAX_CONFIGURATION_BYTES = 4096


def require_heif() -> None:
    """Import libheif; raise MissingExtra if it is not installed."""
    with require_extra("heif", feature="HEIC in decode.formats"):
        import pillow_heif
    # An image is decoded by one thread: the pipeline decodes as many images at once as it has
    # cores. Nothing but the image itself is read.
    pillow_heif.options.DECODE_THREADS = 1
    pillow_heif.options.THUMBNAILS = False
    pillow_heif.options.DEPTH_IMAGES = False
    pillow_heif.options.AUX_IMAGES = False


def open_heic(content: bytes) -> OpenedImage:
    """Read the items of a HEIC, and the headers of their data; no pixel is decoded.

    libheif applies what the container says of cropping and turning, so the size is that of the
    displayed image.

    Raises:
        ValueError: it is cut short, or broken.
        NotImplementedError: it is not an image in HEVC, or is made of more than a grid of tiles.
        ItemError: it has too many items.
    """
    still = read_still_image(content)
    if still.primary.kind not in (b"hvc1", b"grid"):
        raise NotImplementedError(f"its image is of the kind {still.primary.kind!r}")
    _check_references(still)
    coded = itertools.chain.from_iterable(map(_list_pictures, still.items.values()))

    def decode() -> Image.Image:
        require_heif()
        import pillow_heif

        image: Image.Image = pillow_heif.open_heif(io.BytesIO(content)).to_pillow()
        return image.convert("RGBA") if image.mode == "RGBa" else image

    return still.open("HEIC", decode, coded, size=_read_displayed_size(still))


def _check_references(still: StillImage) -> None:
    """Check that libheif decodes the data of an item once for its image.

    It also decodes grids of grids, tiles that a grid repeats, canvases of any size with images laid
    over them, and the transparency of each: a file of two kilobytes could make a million pictures.
    """
    tiles: dict[int, list[int]] = {}
    masks: dict[int, list[int]] = {}
    for kind, number, targets in still.references:
        if kind in (b"dimg", b"auxl"):
            (tiles if kind == b"dimg" else masks).setdefault(number, []).extend(targets)
    kinds = {number: item.kind for number, item in still.items.items()}
    in_grids = set()
    for number, parts in tiles.items():
        if kinds.get(number) != b"grid":
            continue
        if len(set(parts)) < len(parts) or any(kinds.get(one) != b"hvc1" for one in parts):
            raise NotImplementedError("its grid repeats a tile, or has others than in HEVC")
        in_grids.update(parts)
    for number, targets in masks.items():
        if kinds.get(number) not in (b"hvc1", b"grid"):
            raise NotImplementedError(f"its transparency is of the kind {kinds.get(number)!r}")
        if not in_grids.isdisjoint(targets) or not masks.keys().isdisjoint(targets):
            raise NotImplementedError("its tiles or its transparency are transparent themselves")


def _read_displayed_size(still: StillImage) -> tuple[int, int]:
    width, height = still.size
    if crop := still.primary.find(b"clap"):
        across, across_by, down, down_by = struct.unpack_from(">IIII", crop)
        if not (across_by and down_by):
            raise ValueError("the size that it is cropped to is broken")
        # Rounded as libheif does.
        width = min(width, (across + across_by // 2) // across_by)
        height = min(height, (down + down_by // 2) // down_by)
    return (height, width) if still.turns % 2 else (width, height)


def _list_pictures(item: Item) -> Iterator[int]:
    """Yield the pixels of each picture in an item's data, and 0 for other units."""
    if item.kind != b"hvc1":
        return
    configuration = item.find(b"hvcC")
    if configuration is None:
        raise ValueError("its data have no parameters")
    pixels, length_bytes = _read_configuration(bytes(configuration))
    data, position = item.data, 0
    while position < len(data):
        start = position + length_bytes
        end = start + int.from_bytes(data[position:start])
        if end > len(data) or end < start + 3:
            raise ValueError("its data are cut short")
        kind = data[start] >> 1 & 63
        if kind in (_VPS, _SPS, _PPS):
            # They could make the pictures larger.
            raise NotImplementedError("its data have parameters of their own")
        yield pixels if kind < _FIRST_OTHER and data[start + 2] & 128 else 0
        position = end


def _read_configuration(box: bytes) -> tuple[int, int]:
    """Return a picture's pixels, and the bytes of a unit's length (ISO/IEC 14496-15, 8.3.3)."""
    if len(box) > _MAX_CONFIGURATION_BYTES:
        raise ValueError(f"its parameters have {len(box)} bytes")
    pixels, position = 0, 23
    for _ in range(box[22] if len(box) > 22 else 0):
        kind, count = struct.unpack_from(">BH", box, position)
        position += 3
        for _ in range(count):
            (length,) = struct.unpack_from(">H", box, position)
            start, position = position + 2, position + 2 + length
            if position > len(box):
                raise ValueError("its parameters are cut short")
            if kind & 63 == _SPS:
                pixels = max(pixels, _read_picture_pixels(box[start:position]))
    if not pixels:
        raise ValueError("the size of its pictures is missing")
    return pixels, (box[21] & 3) + 1


def _read_picture_pixels(unit: bytes) -> int:
    """Return the pixels of a picture from a sequence's parameters (ISO/IEC 23008-2, 7.3.2.2)."""
    # The header of the unit, and the bytes that keep a start code out of the data.
    reader = BitReader(unit[2:_HEADER_BYTES].replace(b"\0\0\3", b"\0\0"))
    reader.read(4)
    sublayers = reader.read(3)
    # The profile and level, in all and of each sublayer (7.3.3).
    reader.read(1 + 96)
    present = [(reader.read(1), reader.read(1)) for _ in range(sublayers)]
    reader.read(2 * (8 - sublayers) if sublayers else 0)
    for has_profile, has_level in present:
        reader.read(88 * has_profile + 8 * has_level)
    reader.read_exponential()
    if reader.read_exponential() == 3:
        reader.read(1)
    return reader.read_exponential() * reader.read_exponential()
