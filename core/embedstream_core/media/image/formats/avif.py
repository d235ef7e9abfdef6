"""AVIF: its still image, without the frames of a sequence."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator

from PIL import AvifImagePlugin

from embedstream_core.media.image.formats.bit_reader import BitReader
from embedstream_core.media.image.formats.iso_media import Item, read_still_image
from embedstream_core.media.image.opened_image import OpenedImage

__all__ = ["open_avif"]

# An image is decoded by one thread: the pipeline decodes as many images at once as it has cores.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1

_SEQUENCE_HEADER, _FRAME_HEADER, _FRAME = 1, 3, 6

# The longest part of a sequence header before the size, with 32 operating points.
_HEADER_BYTES = 512

# By quarter turns anticlockwise and what is exchanged after them, the orientation of EXIF.
_ORIENTATIONS = {
    None: (1, 8, 3, 6),
    0: (4, 5, 2, 7),
    1: (2, 7, 4, 5),
}


def open_avif(content: bytes) -> OpenedImage:
    """Read the items of an AVIF, and the headers of their data; no pixel is decoded.

    Raises:
        ValueError: it is cut short, or broken.
        NotImplementedError: it is not an image in AV1, or it is cropped by its container.
        ItemError: it has too many items.
    """
    still = read_still_image(content)
    if still.primary.kind not in (b"av01", b"grid"):
        raise NotImplementedError(f"its image is of the kind {still.primary.kind!r}")
    # libavif, and so most browsers, would show what is to be cut off.
    if still.primary.find(b"clap"):
        raise NotImplementedError("its container crops it (clap)")
    coded = itertools.chain.from_iterable(map(_list_frames, still.items.values()))
    if content[8:12] == b"avis":
        # libavif would read the first frame of the sequence, whose size is in another place.
        content = b"".join([content[:8], b"avif", content[12:]])
    return still.open(
        "AVIF",
        lambda: AvifImagePlugin.AvifImageFile(io.BytesIO(content)),
        coded,
        orientation=_ORIENTATIONS[still.mirror][still.turns],
    )


def _list_frames(item: Item) -> Iterator[int]:
    """Yield the pixels of each frame in an item's data, and 0 for other units (AV1, 5.3)."""
    if item.kind != b"av01":
        return
    data, position, pixels = item.data, 0, 0
    while position < len(data):
        start = data[position]
        position += 2 if start & 4 else 1
        length = len(data) - position
        if start & 2:
            length, position = _read_leb128(data, position)
        end = position + length
        if end > len(data):
            raise ValueError("its data are cut short")
        kind = start >> 3 & 15
        if kind == _SEQUENCE_HEADER:
            header = data[position : min(end, position + _HEADER_BYTES)]
            pixels = max(pixels, _read_largest_frame(header))
        yield pixels if kind in (_FRAME_HEADER, _FRAME) else 0
        position = end


def _read_leb128(data: bytes, position: int) -> tuple[int, int]:
    """Return a number of seven bits a byte, and where it ends."""
    value = 0
    for index, byte in enumerate(data[position : position + 8]):
        value |= (byte & 127) << 7 * index
        if byte < 128:
            return value, position + index + 1
    raise ValueError("a length in its data is broken")


def _read_largest_frame(header: bytes) -> int:
    """Return the pixels of the largest frame that a sequence header allows (5.5.1)."""
    reader = BitReader(header)
    # The profile, and whether it is a still picture.
    reader.read(4)
    is_reduced = reader.read(1)
    if is_reduced:
        reader.read(5)
    else:
        delay_bits = 0
        if reader.read(1):
            reader.read(64)
            if reader.read(1):
                reader.read_exponential()
            if reader.read(1):
                delay_bits = reader.read(5) + 1
                reader.read(42)
        has_delays = reader.read(1)
        for _ in range(reader.read(5) + 1):
            reader.read(12)
            if reader.read(5) > 7:
                reader.read(1)
            if delay_bits and reader.read(1):
                reader.read(2 * delay_bits + 1)
            if has_delays and reader.read(1):
                reader.read(4)
    width_bits, height_bits = reader.read(4) + 1, reader.read(4) + 1
    return (reader.read(width_bits) + 1) * (reader.read(height_bits) + 1)
