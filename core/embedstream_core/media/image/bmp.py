"""BMP: what Pillow does not read of it, or reads as another picture.

Pillow takes a palette of black and white for one bit a pixel, also where there are four or eight,
and knows few masks.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import BmpImagePlugin, Image

from embedstream_core.errors import Code, ItemError, Stage

__all__ = ["SIGNATURE", "Bmp", "decode_bmp", "read_bmp"]

SIGNATURE = b"BM"

_RAW, _RLE8, _RLE4, _MASKED = range(4)

# Bits a pixel, and what Pillow calls them.
_MODES = {
    1: ("P", "P;1"),
    4: ("P", "P;4"),
    8: ("P", "P"),
    24: ("RGB", "BGR"),
    32: ("RGB", "BGRX"),
}

_MASKS_16 = (0x7C00, 0x3E0, 0x1F, 0)
_MASKS_32 = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)


@dataclass(frozen=True, slots=True)
class Bmp:
    """What a BMP's header says. `masks` are of red, green, blue and alpha, in pixels of words."""

    width: int
    height: int
    is_top_down: bool
    bits: int
    compression: int
    # Of blue, green, red and, where it has four bytes, one that says nothing.
    palette: bytes
    palette_step: int
    masks: tuple[int, ...] | None
    offset: int


def read_bmp(content: bytes) -> Bmp:
    """Read the header and the palette.

    Raises:
        ItemError: it is cut short, or of a kind that is not decoded here.
    """
    offset, size = struct.unpack_from("<II", content.ljust(18, b"\0"), 10)
    if size not in (12, 40, 52, 56, 64, 108, 124):
        raise _unsupported(f"its header has {size} bytes")
    end = 14 + size
    if len(content) < end:
        raise ItemError(Code.IMAGE_CORRUPT, Stage.DECODE, "the BMP is broken: its header is cut")
    compression, colours, palette_step = _RAW, 0, 3
    if size == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", content, 18)
    else:
        width, height, _, bits, compression = struct.unpack_from("<IiHHI", content, 18)
        (colours,) = struct.unpack_from("<I", content, 46)
        palette_step = 4
    masks: tuple[int, ...] | None = _MASKS_16 if bits == 16 else None
    if compression == _MASKED:
        masks = _masks(content, size)
        end += 12 if size == 40 else 0
    _check(bits, compression, masks, colours)
    palette = b""
    if bits <= 8:
        palette = content[end : end + palette_step * (colours or 1 << bits)]
        # Some say that the pixels begin where the palette does.
        end += palette_step * (colours or 1 << bits)
        offset = end if offset == 14 + size else offset
    if bits == 24 or (bits == 32 and compression == _RAW):
        masks = None
    return Bmp(
        width,
        abs(height),
        height < 0,
        bits,
        compression,
        palette,
        palette_step,
        masks,
        offset or end,
    )


def decode_bmp(content: bytes, bmp: Bmp) -> Image.Image:
    """Return the picture: of mode P, RGB or RGBA.

    Raises:
        Exception: what Pillow raises of broken data.
    """
    if bmp.compression in (_RLE8, _RLE4):
        if bmp.offset % 2:
            # Pillow counts words from where the file begins, not from where the data do.
            offset = (bmp.offset + 1).to_bytes(4, "little")
            header, runs = content[14 : bmp.offset], content[bmp.offset :]
            content = b"".join([content[:10], offset, header, b"\0", runs])
        return BmpImagePlugin.BmpImageFile(io.BytesIO(content))
    data = memoryview(content)[bmp.offset :]
    size = bmp.width, bmp.height
    stride = (bmp.width * bmp.bits + 31) // 32 * 4
    if bmp.masks is not None:
        return _decode_masked(data, bmp, stride, bmp.masks)
    mode, raw_mode = _MODES[bmp.bits]
    direction = 1 if bmp.is_top_down else -1
    image = Image.frombytes(mode, size, data, "raw", raw_mode, stride, direction)
    if mode == "P":
        image.putpalette(bmp.palette, "BGRX" if bmp.palette_step == 4 else "BGR")
    return image


def _decode_masked(data: memoryview, bmp: Bmp, stride: int, masks: tuple[int, ...]) -> Image.Image:
    word = np.dtype("<u2" if bmp.bits == 16 else "<u4")
    if len(data) < stride * bmp.height:
        # Some leave out what fills up the last row.
        data = memoryview(bytes(data) + bytes(stride - bmp.width * word.itemsize))
    per_row = stride // word.itemsize
    words = np.frombuffer(data, word, per_row * bmp.height).reshape(bmp.height, per_row)
    words = words[:: 1 if bmp.is_top_down else -1, : bmp.width].astype(np.uint32)
    channels = [_channel(words, mask) for mask in masks]
    # Where no pixel shows at all, the channel was left unused.
    if not masks[3] or not channels[3].any():
        channels.pop()
    return Image.fromarray(np.stack(channels, axis=-1))


def _channel(words: npt.NDArray[np.uint32], mask: int) -> npt.NDArray[np.uint8]:
    """Scale what a mask covers to 0 to 255, as Pillow does; of more than 8 bits the highest."""
    if not mask:
        return np.zeros(words.shape, np.uint8)
    lowest = (mask & -mask).bit_length() - 1
    excess = max(0, mask.bit_count() - 8)
    most = (mask >> lowest) >> excess
    values = (words & np.uint32(mask)) >> np.uint32(lowest + excess)
    return (values * np.uint32(255) // np.uint32(most)).astype(np.uint8)


def _masks(content: bytes, size: int) -> tuple[int, ...]:
    # A header of 40 bytes is followed by three; alpha came with the one of 56.
    count = 4 if size >= 56 else 3
    masks = struct.unpack_from(f"<{count}I", content.ljust(70, b"\0"), 54)
    return _MASKS_32 if not any(masks) else (*masks, 0)[:4]


def _check(bits: int, compression: int, masks: tuple[int, ...] | None, colours: int) -> None:
    fits = {
        _RAW: bits in (1, 4, 8, 16, 24, 32),
        _RLE8: bits == 8,
        _RLE4: bits == 4,
        _MASKED: bits in (16, 32) or (bits == 24 and (masks or ())[:3] == _MASKS_32[:3]),
    }
    if not fits.get(compression, False):
        raise _unsupported(f"{bits} bits a pixel, compression {compression}")
    if masks is not None and not all(_is_run(mask, bits) for mask in masks):
        raise _unsupported(f"its masks are {', '.join(f'{mask:X}' for mask in masks)}")
    if bits <= 8 and colours > 256:
        raise ItemError(
            Code.IMAGE_CORRUPT, Stage.DECODE, f"the BMP is broken: a palette of {colours} colours"
        )


def _is_run(mask: int, bits: int) -> bool:
    """Whether a mask's bits stand side by side, and in a pixel."""
    shifted = mask // (mask & -mask) if mask else 0
    return shifted & (shifted + 1) == 0 and mask < 1 << bits


def _unsupported(reason: str) -> ItemError:
    return ItemError(Code.IMAGE_UNSUPPORTED, Stage.DECODE, f"the BMP is unsupported: {reason}")
