"""PNG: its chunks are checked as libpng does, and the decoder gets only those that make pixels.

Pillow refuses an image for one broken chunk of text, and does not check the data's checksums.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, PngImagePlugin

from embedstream_core.errors import Code, build_decode_error
from embedstream_core.media.image.colours import MAX_PROFILE_BYTES, is_srgb_code
from embedstream_core.media.image.opened_image import OpenedImage, read_orientation

__all__ = ["open_png"]

_SIGNATURE_BYTES = 8

_GREY, _RGB, _PALETTE, _GREY_ALPHA, _RGBA = 0, 2, 3, 4, 6

# By colour type, the number of channels and the depths that are allowed.
_CHANNELS = {_GREY: 1, _RGB: 3, _PALETTE: 1, _GREY_ALPHA: 2, _RGBA: 4}
_DEPTHS = {_GREY: (1, 2, 4, 8, 16), _PALETTE: (1, 2, 4, 8)}

# The first column and row of each pass, and the steps to the next ones (PNG 3, 8.1).
_ONE_PASS = ((0, 0, 1, 1),)
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

# The chunks that may hold an orientation, and how much of a text is read.
_XMP = b"XML:com.adobe.xmp"
_ORIENTED = {b"eXIf", _XMP, b"Raw profile type exif"}
# The chunks of colours: a profile, and codes of CICP, which take precedence (PNG 3, 4.3).
_PROFILE, _CODES = b"iCCP", b"cICP"
_COLOURS = {b"tRNS", _PROFILE, _CODES}
_MAX_TEXT_BYTES = 2**20

# Reading half a million takes two seconds. An image of 300 by 300 pixels in chunks of one byte has
# half as many; encoders write some thousand at most.
_MAX_CHUNKS = 500_000


class _Chunk(NamedTuple):
    kind: bytes
    data: memoryview
    is_sound: bool
    # With length, kind and checksum.
    whole: memoryview

    @classmethod
    def read_all(cls, content: bytes) -> Iterator[_Chunk]:
        """Yield each chunk before IEND, which may be broken or missing; critical chunks are sound.

        The last chunk of the data may be cut short.
        """
        view = memoryview(content)
        position = _SIGNATURE_BYTES
        count = 0
        while position + 8 <= len(content):
            count += 1
            if count > _MAX_CHUNKS:
                raise build_decode_error(
                    Code.IMAGE_TOO_LARGE, f"the PNG has over {_MAX_CHUNKS} chunks"
                )
            length, kind = struct.unpack_from(">I4s", content, position)
            if kind == b"IEND":
                return
            if not kind.isalpha():
                raise ValueError(f"a chunk is called {kind!r}")
            start, end = position + 8, position + 8 + length
            # The decoder finds out whether data that are cut short suffice.
            if end > len(content) and (kind != b"IDAT" or start == len(content)):
                raise ValueError(f"its chunk {kind.decode()} is cut short")
            is_sound = content[end : end + 4] == zlib.crc32(view[position + 4 : end]).to_bytes(4)
            is_critical = not kind[0] & 0x20
            if is_critical and not is_sound and end + 4 <= len(content):
                raise ValueError(f"the checksum of its chunk {kind.decode()} is wrong")
            yield cls(kind, view[start:end], is_sound, view[position : end + 4])
            position = end + 4


@dataclass(slots=True)
class _Png:
    """A PNG's header, and the chunks that make its pixels: `head`, and the contents of all IDATs.

    `transparent` is the colour that tRNS names, one grey or red, green and blue, in the depth of
    the image; a palette's transparency is in `head`.
    """

    width: int
    height: int
    depth: int
    colour_type: int
    is_interlaced: bool
    head: list[memoryview | bytes] = field(default_factory=list)
    data: list[memoryview] = field(default_factory=list)
    transparent: tuple[int, ...] = ()

    @classmethod
    def parse(cls, content: bytes, first: _Chunk | None) -> _Png:
        """Read the header, which is the first chunk."""
        if first is not None and first.kind == b"CgBI":
            raise NotImplementedError("it is one of Xcode's for the iPhone (CgBI)")
        if first is None or first.kind != b"IHDR" or len(first.data) != 13:
            raise ValueError("it does not begin with its header, IHDR")
        width, height, depth, colour_type, *methods = struct.unpack(">IIBBBBB", first.data)
        depths = _DEPTHS.get(colour_type, (8, 16) if colour_type in _CHANNELS else ())
        if not width or not height or depth not in depths:
            reason = f"{width}x{height} pixels of {depth} bits and colour type {colour_type}"
            raise ValueError(reason)
        compression, filtering, interlace = methods
        if compression or filtering or interlace > 1:
            reason = f"its methods are {compression}, {filtering} and {interlace}"
            raise NotImplementedError(reason)
        png = cls(width, height, depth, colour_type, interlace == 1)
        png.head += [content[:_SIGNATURE_BYTES], first.whole]
        return png

    def set_colours(self, palette: _Chunk | None, transparency: _Chunk | None) -> None:
        """Check and add the palette and the transparency."""
        if self.colour_type == _PALETTE:
            if palette is None or not 0 < len(palette.data) <= 768 or len(palette.data) % 3:
                raise ValueError("its palette is missing, or broken")
            self.head.append(palette.whole)
            if transparency and len(transparency.data) <= len(palette.data) // 3:
                self.head.append(transparency.whole)
        elif transparency and len(transparency.data) == {_GREY: 2, _RGB: 6}.get(self.colour_type):
            # The bits above the depth have no meaning (PNG 3, 11.3.2.1).
            values = struct.unpack(f">{len(transparency.data) // 2}H", transparency.data)
            self.transparent = tuple(value & (1 << self.depth) - 1 for value in values)

    def decode(self) -> Image.Image:
        """Return the image; raise what Pillow raises for broken data, or a ValueError."""
        # Pillow needs neither the data's checksum nor IEND.
        length = sum(map(len, self.data)).to_bytes(4)
        content = b"".join([*self.head, length, b"IDAT", *self.data])
        image = PngImagePlugin.PngImageFile(io.BytesIO(content))
        image.load()
        # Pillow leaves the rest at zero where the compressed data end too early. Unless the image
        # is interlaced, the last row is missing then.
        bottom = image.crop((0, image.height - 1, *image.size))
        if (self.is_interlaced or not np.asarray(bottom).any()) and not self.has_all_rows():
            raise ValueError("its data end before its last row")
        colour = np.array(self.transparent)
        if self.transparent and image.mode == "RGB" and self.depth == 16:
            # Pillow keeps the high byte of each channel. Read the low bytes as if they were high.
            low = PngImagePlugin.PngImageFile(io.BytesIO(content))
            low.tile = [tile._replace(args="RGB;16L") for tile in low.tile]
            hidden = (np.asarray(image) == colour >> 8) & (np.asarray(low) == colour & 255)
            alpha = np.where(hidden.all(axis=-1), 0, 255).astype(np.uint8)
            image.putalpha(Image.fromarray(alpha))
        elif self.transparent:
            # Pillow scales fewer bits to 0 to 255, but not those of the transparent colour.
            scale = 1 if self.depth >= 8 else 255 // ((1 << self.depth) - 1)
            values = tuple((scale * colour).tolist())
            image.info["transparency"] = values if len(values) > 1 else values[0]
        return image

    def has_all_rows(self) -> bool:
        """Return whether the decompressed data are as long as the header's size requires.

        Takes about as long as decoding, and the memory of the compressed data.
        """
        pixel_bits = self.depth * _CHANNELS[self.colour_type]
        missing = 0
        for left, top, across, down in _ADAM7 if self.is_interlaced else _ONE_PASS:
            if columns := len(range(left, self.width, across)):
                row_bytes = 1 + (columns * pixel_bits + 7) // 8
                missing += row_bytes * len(range(top, self.height, down))
        inflating = zlib.decompressobj()
        data = b"".join(self.data)
        # By pieces, because the rest of a piece is copied each time.
        for start in range(0, len(data), _PIECE_BYTES):
            piece = data[start : start + _PIECE_BYTES]
            while missing > 0 and (inflated := inflating.decompress(piece, _INFLATED_BYTES)):
                missing -= len(inflated)
                piece = inflating.unconsumed_tail
        return missing <= 0


def open_png(content: bytes) -> OpenedImage:
    """Read all chunks of a PNG; no pixel is decoded.

    Broken ancillary chunks are ignored, as by libpng.

    Raises:
        ValueError: a critical chunk is broken or missing.
        NotImplementedError: a critical chunk is unknown.
        ItemError: it has too many chunks.
    """
    chunks = _Chunk.read_all(content)
    png = _Png.parse(content, next(chunks, None))
    palette = None
    # Decompressed after all chunks, so that only the last of a thousand texts is.
    metadata: dict[bytes, _Chunk] = {}
    colours: dict[bytes, _Chunk] = {}
    data_ended = False
    for chunk in chunks:
        kind = chunk.kind
        data_ended = data_ended or (bool(png.data) and kind != b"IDAT")
        if kind == b"IDAT":
            # Later ones do not belong to the image, in libpng and in Pillow.
            png.data += [] if data_ended else [chunk.data]
        elif kind == b"PLTE":
            # One after the data comes too late for a decoder that reads the file once.
            palette = palette or (chunk if chunk.data and not png.data else None)
        elif kind == b"IHDR":
            raise ValueError("it has two headers, IHDR")
        elif not kind[0] & 0x20:
            raise NotImplementedError(f"its chunk {kind.decode()} is unknown")
        elif kind in _COLOURS and chunk.data and not png.data:
            # A broken profile is refused where it is needed.
            is_kept = (chunk.is_sound or kind == _PROFILE) and kind not in colours
            colours |= {kind: chunk} if is_kept else {}
        elif chunk.is_sound:
            is_text = kind in (b"tEXt", b"zTXt", b"iTXt")
            keyword = bytes(chunk.data[:80]).partition(b"\0")[0] if is_text else kind
            if keyword in _ORIENTED:
                metadata[keyword] = chunk
    if not png.data:
        raise ValueError("it has no data")
    png.set_colours(palette, colours.get(b"tRNS"))
    orientation = read_orientation(_read_metadata(metadata))
    return OpenedImage(
        "PNG",
        (png.width, png.height),
        png.decode,
        orientation,
        profile=None if _CODES in colours else _read_profile(colours.get(_PROFILE)),
        unconverted=_describe_codes(colours.get(_CODES)),
    )


def _read_profile(chunk: _Chunk | None) -> bytes | None:
    """Return the profile, empty if it is broken; None without one."""
    if chunk is None:
        return None
    # A name, and a byte for how the rest is compressed.
    compressed = bytes(chunk.data).partition(b"\0")[2][1:]
    try:
        profile = zlib.decompressobj().decompress(compressed, MAX_PROFILE_BYTES + 1)
    except zlib.error:
        return b""
    return profile if chunk.is_sound else b""


def _describe_codes(chunk: _Chunk | None) -> str:
    """Return the colours that codes of CICP name, if they are not sRGB's."""
    if chunk is None or (len(chunk.data) == 4 and is_srgb_code(*chunk.data[:2])):
        return ""
    return f"codes {bytes(chunk.data[:4]).hex(' ')} of CICP"


def _read_metadata(chunks: Mapping[bytes, _Chunk]) -> dict[str, Any]:
    """Return what may hold an orientation, under the names that Pillow uses."""
    info: dict[str, Any] = {}
    for keyword, chunk in chunks.items():
        if keyword == b"eXIf":
            info["exif"] = b"Exif\0\0" + chunk.data
            continue
        text = bytes(chunk.data[len(keyword) + 1 :][:_MAX_TEXT_BYTES])
        is_compressed = chunk.kind == b"zTXt" or (chunk.kind == b"iTXt" and text[:1] == b"\1")
        if chunk.kind == b"zTXt":
            text = text[1:]
        elif chunk.kind == b"iTXt":
            # Two bytes of compression, the language and the translated keyword.
            text = text[2:].split(b"\0", 2)[-1]
        try:
            if is_compressed:
                text = zlib.decompressobj().decompress(text, _MAX_TEXT_BYTES)
        except zlib.error:
            text = b""
        if keyword == _XMP:
            info["xmp"] = text
        else:
            info["Raw profile type exif"] = text.decode("latin-1")
    return info
