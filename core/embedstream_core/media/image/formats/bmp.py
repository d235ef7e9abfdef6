"""BMP: the kinds that Pillow does not read, or reads wrongly.

Pillow takes a palette of black and white for one bit a pixel even where a pixel has four or eight,
and it supports few masks. Of compressed images it drops empty rows, and it fills the rest of a row
byte by byte: a file of one kilobyte took ten seconds, in which no other thread ran.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from PIL import Image

from embedstream_core.media.image.opened_image import OpenedImage

__all__ = ["open_bmp"]

_RAW, _RLE8, _RLE4, _MASKED = range(4)

# The mode and the raw mode in Pillow, by bits a pixel.
_MODES = {1: ("P", "P;1"), 4: ("P", "P;4"), 8: ("P", "P"), 24: ("RGB", "BGR"), 32: ("RGB", "BGRX")}

_MASKS_16 = (0x7C00, 0x3E0, 0x1F, 0)
_MASKS_32 = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)


@dataclass(frozen=True, slots=True)
class _Bmp:
    """A BMP's header. `masks` are those of red, green, blue and alpha where pixels have masks."""

    content: bytes
    size: tuple[int, int]
    is_top_down: bool
    bits: int
    compression: int
    palette: bytes
    palette_mode: str
    masks: tuple[int, ...]
    offset: int

    def __post_init__(self) -> None:
        bits, masks = self.bits, self.masks
        is_supported = {
            _RAW: bits in (1, 4, 8, 16, 24, 32),
            _RLE8: bits == 8,
            _RLE4: bits == 4,
            _MASKED: bits in (16, 32) or (bits == 24 and masks[:3] == _MASKS_32[:3]),
        }
        if not is_supported.get(self.compression, False):
            raise NotImplementedError(f"{bits} bits a pixel, compression {self.compression}")
        # The bits of a mask must be adjacent, and within the pixel.
        if any("0" in f"{mask:b}".rstrip("0") or mask >> bits for mask in masks):
            reason = f"its masks are {', '.join(f'{mask:X}' for mask in masks)}"
            raise NotImplementedError(reason)

    def decode(self) -> Image.Image:
        """Return the image, of mode P, RGB or RGBA; raise what Pillow raises for broken data."""
        if self.masks and self.bits != 24:
            return self.decode_masked()
        mode, raw_mode = _MODES[self.bits]
        data: memoryview | bytearray = memoryview(self.content)[self.offset :]
        stride, direction = self.stride, 1 if self.is_top_down else -1
        if self.compression in (_RLE8, _RLE4):
            data, raw_mode, stride = self.decode_runs(), "P", 0
        image = Image.frombytes(mode, self.size, data, "raw", raw_mode, stride, direction)
        if mode == "P":
            image.putpalette(self.palette, self.palette_mode)
        return image

    @property
    def stride(self) -> int:
        """The bytes of a row, which fills words of four bytes."""
        return (self.size[0] * self.bits + 31) // 32 * 4

    def decode_runs(self) -> bytearray:
        """Return the index of each pixel, row by row; raise ValueError for broken data.

        The format is that of Windows' documentation, "Bitmap Compression". What no run covers has
        the first colour.
        """
        width, height = self.size
        runs, pixels = self.content[self.offset :], bytearray(width * height)
        x = y = position = 0
        while y < height and position + 2 <= len(runs):
            count, value = runs[position : position + 2]
            position += 2
            if count:
                indices = self.unpack(bytes([value]) * count)[:count]
            elif value == 0:
                x, y = 0, y + 1
                continue
            elif value == 1:
                break
            elif value == 2:
                across, up = runs[position : position + 2].ljust(2, b"\0")
                x, y, position = x + across, y + up, position + 2
                continue
            else:
                length = value if self.bits == 8 else (value + 1) // 2
                indices = self.unpack(runs[position : position + length])[:value]
                # The next pair is aligned to words.
                position += length + length % 2
            start = y * width + x
            indices = indices[: max(0, width - x)]
            pixels[start : start + len(indices)] = indices
            x += len(indices)
        if y * width + x < width * height:
            raise ValueError("its data end before its last row")
        return pixels

    def unpack(self, coded: bytes) -> bytes:
        """Return the indices in some bytes, one in each or two."""
        if self.bits == 8:
            return coded
        return bytes(index for byte in coded for index in (byte >> 4, byte & 15))

    def decode_masked(self) -> Image.Image:
        """Return the image of pixels with masks, of mode RGB or RGBA."""
        width, height = self.size
        word = np.dtype("<u2" if self.bits == 16 else "<u4")
        content = self.content
        if len(content) - self.offset < self.stride * height:
            # Some writers leave out the padding of the last row.
            content += bytes(self.stride - width * word.itemsize)
        per_row = self.stride // word.itemsize
        words = np.frombuffer(content, word, per_row * height, self.offset).reshape(height, per_row)
        words = words[:: 1 if self.is_top_down else -1, :width].astype(np.uint32)
        channels = []
        for mask in self.masks:
            # The lowest bit, or the eighth from the top; scaled to 0 to 255 as Pillow does.
            shift = max(0, (mask & -mask).bit_length() - 1) + max(0, mask.bit_count() - 8)
            values = (words & np.uint32(mask)) >> np.uint32(shift)
            scaled = values * np.uint32(255) // np.uint32(max(1, mask >> shift))
            channels.append(scaled.astype(np.uint8))
        # An alpha channel in which no pixel shows was left unused.
        if not channels[3].any():
            channels.pop()
        return Image.fromarray(np.stack(channels, axis=-1))


def open_bmp(content: bytes) -> OpenedImage:
    """Read the header and the palette; no pixel is decoded.

    Raises:
        ValueError: it is cut short.
        NotImplementedError: it is of a kind that is not decoded here.
    """
    offset, header_bytes = struct.unpack_from("<II", content.ljust(18, b"\0"), 10)
    if header_bytes not in (12, 40, 52, 56, 64, 108, 124):
        raise NotImplementedError(f"its header has {header_bytes} bytes")
    end = 14 + header_bytes
    if len(content) < end:
        raise ValueError("its header is cut")
    compression, colours, palette_mode = _RAW, 0, "BGR"
    if header_bytes == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", content, 18)
    else:
        width, height, _, bits, compression = struct.unpack_from("<IiHHI", content, 18)
        (colours,) = struct.unpack_from("<I", content, 46)
        palette_mode = "BGRX"
    masks = _MASKS_16 if bits == 16 else ()
    if compression == _MASKED:
        # A header of 40 bytes is followed by three masks; that of 56 was the first with alpha.
        found = struct.unpack_from("<4I", content.ljust(70, b"\0"), 54)
        masks = (*found[:3], found[3] if header_bytes >= 56 else 0)
        if not any(masks):
            masks = _MASKS_32
        end += 12 if header_bytes == 40 else 0
    palette = b""
    if bits <= 8:
        if colours > 256:
            raise ValueError(f"a palette of {colours} colours")
        palette_bytes = len(palette_mode) * (colours or 1 << bits)
        palette = content[end : end + palette_bytes]
        # Some writers say that the pixels begin where the palette does.
        offset = 0 if offset == end else offset
        end += palette_bytes
    size = width, abs(height)
    bmp = _Bmp(
        content, size, height < 0, bits, compression, palette, palette_mode, masks, offset or end
    )
    return OpenedImage("BMP", size, bmp.decode)
