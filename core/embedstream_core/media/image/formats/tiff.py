"""TIFF: its first page, where Pillow and libtiff decode it to the colours that people see.

Pillow reads some kinds wrongly: uncompressed planes of 16 bits as if they had 8, 16 bits with white
as zero without inverting them. Only the kinds that tests compare with reference pixels are decoded.
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass

from PIL import Image, TiffImagePlugin

from embedstream_core.errors import Code, build_decode_error
from embedstream_core.media.image.colours import convert_lab
from embedstream_core.media.image.opened_image import OpenedImage, read_orientation

__all__ = ["open_tiff"]

_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR, _LAB = 0, 1, 2, 3, 5, 6, 8
_NAMES = {4: "a mask", 9: "ICCLab", 10: "ITULab", 32803: "a camera's raw", 34892: "a camera's raw"}

# Uncompressed, CCITT's three, LZW, JPEG, Deflate under two numbers, PackBits.
_UNCOMPRESSED, _JPEG = 1, 7
_CCITT, _DEFLATE = (2, 3, 4), (8, 32946)
_COMPRESSIONS = (_UNCOMPRESSED, *_CCITT, 5, _JPEG, *_DEFLATE, 32773)

# Tags.
_SUBFILE, _OLD_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION = 254, 255, 256, 257, 258, 259
_PHOTOMETRIC, _FILL_ORDER, _STRIPS, _ORIENTATION, _SAMPLES, _ROWS = 262, 266, 273, 274, 277, 278
_STRIP_BYTES, _PLANES, _PREDICTOR, _COLOURS = 279, 284, 317, 320
_TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES = 322, 323, 324, 325
_INKS, _EXTRA, _SAMPLE_FORMAT, _XMP, _PROFILE = 332, 338, 339, 700, 34675

# Those that decide how the pixels are read.
_DECISIVE = frozenset(
    {_SUBFILE, _OLD_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER}
    | {_STRIPS, _ORIENTATION, _SAMPLES, _ROWS, _STRIP_BYTES, _PLANES, _PREDICTOR, _TILE_WIDTH}
    | {_TILE_HEIGHT, _TILES, _TILE_BYTES, _INKS, _EXTRA, _SAMPLE_FORMAT}
)

# The formats of integers by type: bytes, unsigned, undefined; the last two are BigTIFF's.
_TYPES = {1: "B", 3: "H", 4: "I", 7: "B", 16: "Q", 18: "Q"}

_MAX_TAGS = 4096
# Each costs Pillow some microseconds. A scan has a strip for each row at most.
_MAX_PARTS = 100_000
# libtiff writes a line to standard error for each row of a fax that is broken, 60 bytes: 200 KB of
# noise with a million rows made 62 MB. A page of a meter at 400 dpi has 16,000 rows.
_MAX_FAX_ROWS = 30_000

# Equal tiles may share their data. This bounds how much is read more than once, of a file with all
# of its strips in one place.
_MAX_SHARED_BYTES = 2**26

_PIECE_BYTES, _INFLATED_BYTES = 2**16, 2**18

# The bits of the samples and the meaning of the extra ones, by kind.
_KINDS: dict[int, set[tuple[tuple[int, ...], tuple[int, ...]]]] = {
    _WHITE_IS_ZERO: {((bits,), ()) for bits in (1, 2, 4, 8)},
    _BLACK_IS_ZERO: {
        *(((bits,), ()) for bits in (1, 2, 4, 8, 16)),
        *(((8, 8), (extra,)) for extra in (0, 1, 2)),
    },
    _RGB: {
        *(((bits,) * 3, ()) for bits in (8, 16)),
        *(((bits,) * 4, extra) for bits in (8, 16) for extra in ((), (0,), (1,), (2,))),
    },
    _PALETTE: {((bits,), ()) for bits in (1, 2, 4, 8)},
    _CMYK: {((8,) * 4, ()), ((16,) * 4, ()), ((8,) * 5, (0,))},
    _YCBCR: {((8,) * 3, ())},
    _LAB: {((8,) * 3, ())},
}


_PLANES_DECODED = {
    ((bits,) * 3, compression)
    for bits in (8, 16)
    for compression in _COMPRESSIONS
    if compression != _JPEG and (bits, compression) != (16, _UNCOMPRESSED)
}


@dataclass(frozen=True, slots=True)
class _Directory:
    """The first directory of a file; it reads integers and bytes alone."""

    content: bytes
    order: str
    places: dict[int, tuple[int, int, int]]

    @classmethod
    def read(cls, content: bytes) -> _Directory:
        """Read where the values of each tag are: its type, their number and their start."""
        order = "<" if content[:2] == b"II" else ">"
        # BigTIFF has eight bytes where TIFF has four.
        is_big = 43 in content[2:4]
        if is_big and order == ">":
            raise NotImplementedError("it is a big-endian BigTIFF")
        word = f"{order}{'Q' if is_big else 'I'}"
        inline = struct.calcsize(word)
        (start,) = struct.unpack_from(word, content, inline)
        count_format = word if is_big else f"{order}H"
        (count,) = struct.unpack_from(count_format, content, start)
        if count > _MAX_TAGS:
            raise ValueError(f"its directory has {count} tags")
        start += struct.calcsize(count_format)
        places: dict[int, tuple[int, int, int]] = {}
        for index in range(count):
            position = start + index * (4 + 2 * inline)
            tag, kind = struct.unpack_from(f"{order}HH", content, position)
            (length,) = struct.unpack_from(word, content, position + 4)
            position += 4 + inline
            code = _TYPES.get(kind)
            if code is None:
                # Pillow reads other types too, which here would be the default.
                if tag in _DECISIVE:
                    raise ValueError(f"its tag {tag} is not an unsigned whole number")
                continue
            if struct.calcsize(code) * length > inline:
                (position,) = struct.unpack_from(word, content, position)
            places.setdefault(tag, (kind, length, position))
        return cls(content, order, places)

    def read_numbers(self, tag: int, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        """Return the integers of a tag; raise ValueError if they are cut short."""
        if tag not in self.places:
            return default
        kind, count, start = self.places[tag]
        code = _TYPES[kind]
        if start + struct.calcsize(code) * count > len(self.content):
            raise ValueError(f"the values of its tag {tag} are cut short")
        if count > _MAX_PARTS:
            message = f"the TIFF has {count} strips, tiles or other values of a tag"
            raise build_decode_error(Code.IMAGE_TOO_LARGE, f"{message}; the limit is {_MAX_PARTS}")
        return struct.unpack_from(f"{self.order}{count}{code}", self.content, start)

    def read_number(self, tag: int, default: int) -> int:
        """Return the first integer of a tag."""
        return next(iter(self.read_numbers(tag)), default)

    def read_bytes(self, tag: int) -> bytes | None:
        """Return the bytes of a tag, none of them if they are cut short; None without the tag."""
        if tag not in self.places:
            return None
        _, count, start = self.places[tag]
        return self.content[start : start + count] if start + count <= len(self.content) else b""

    def read_places(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the starts and the lengths of all tiles or strips."""
        is_tiled = _TILES in self.places
        tags = (_TILES, _TILE_BYTES) if is_tiled else (_STRIPS, _STRIP_BYTES)
        return self.read_numbers(tags[0]), self.read_numbers(tags[1])

    @property
    def size(self) -> tuple[int, int]:
        """Width and height as stored."""
        return self.read_number(_WIDTH, 0), self.read_number(_HEIGHT, 0)


class _FirstPage(TiffImagePlugin.TiffImageFile):
    """Pillow's image as it is stored: `render` turns what it crops."""

    def _setup(self) -> None:
        super()._setup()  # type: ignore[no-untyped-call, unused-ignore]
        self._size = self._tile_size

    def load_end(self) -> None:
        """Leave the orientation as it is."""


def open_tiff(content: bytes) -> OpenedImage:
    """Read the first directory of a TIFF; no pixel is decoded.

    Raises:
        ValueError: it is cut short, or broken.
        NotImplementedError: it is of a kind that is not decoded here.
        ItemError: it has too many strips or tiles.
    """
    directory = _Directory.read(content)
    width, height = directory.size
    _check_kind(directory)
    coded_pixels = _check_parts(directory)
    photometric = directory.read_number(_PHOTOMETRIC, -1)
    palette = directory.read_numbers(_COLOURS) if photometric == _PALETTE else ()

    def decode() -> Image.Image:
        image: Image.Image = _FirstPage(io.BytesIO(content))
        image.load()
        if directory.read_number(_COMPRESSION, _UNCOMPRESSED) in _DEFLATE:
            _check_sums(directory, coded_pixels)
        if palette and max(palette) < 256:
            # Old writers stored eight bits where sixteen belong.
            image.putpalette(bytes(palette), "RGB;L")
        if image.mode == "La":
            return image.convert("LA")
        return convert_lab(image) if image.mode == "LAB" else image

    orientation = directory.read_number(_ORIENTATION, 0)
    if orientation not in range(1, 9):
        orientation = read_orientation({"xmp": directory.read_bytes(_XMP)})
    return OpenedImage(
        "TIFF",
        (width, height),
        decode,
        orientation,
        coded_pixels=coded_pixels,
        profile=None if photometric == _LAB else directory.read_bytes(_PROFILE),
    )


def _check_kind(directory: _Directory) -> None:
    """Raise NotImplementedError for a page that Pillow decodes to other colours, or not at all."""
    number = directory.read_number
    if number(_SUBFILE, 0) & 5 or number(_OLD_SUBFILE, 1) == 2:
        raise NotImplementedError("its first page is a small copy or a mask of another")
    photometric, compression = number(_PHOTOMETRIC, -1), number(_COMPRESSION, _UNCOMPRESSED)
    if photometric not in _KINDS:
        raise NotImplementedError(f"its colours are {_NAMES.get(photometric, photometric)}")
    if compression not in _COMPRESSIONS:
        raise NotImplementedError(f"its compression is {compression}")
    samples = number(_SAMPLES, 1)
    bits = directory.read_numbers(_BITS, (1,))
    bits = bits * samples if len(bits) == 1 and samples <= 5 else bits
    extra = directory.read_numbers(_EXTRA)
    if len(bits) != samples or (bits, extra) not in _KINDS[photometric]:
        raise NotImplementedError(
            f"it has {samples} samples of {bits[:5]} bits, extra ones {extra[:5]}, for colours of "
            f"{photometric}"
        )
    if set(directory.read_numbers(_SAMPLE_FORMAT, (1,))) != {1}:
        raise NotImplementedError("its samples are no unsigned whole numbers")
    reasons = {
        "planes of these samples": number(_PLANES, 1) != 1
        and not (photometric == _RGB and (bits, compression) in _PLANES_DECODED),
        "YCbCr without JPEG": photometric == _YCBCR and compression != _JPEG,
        "JPEG of such samples": compression == _JPEG and set(bits) != {8},
        "CCITT of such samples": compression in _CCITT and bits != (1,),
        "bits in reverse": number(_FILL_ORDER, 1) != 1 and bits != (1,),
        "another predictor than differences": number(_PREDICTOR, 1) not in (1, 2),
        "inks other than CMYK": photometric == _CMYK and number(_INKS, 1) != 1,
    }
    for reason, applies in reasons.items():
        if applies:
            raise NotImplementedError(f"it has {reason}")


def _check_parts(directory: _Directory) -> int:
    """Check that all strips or tiles are in the file; return the pixels of them together."""
    number, (width, height) = directory.read_number, directory.size
    starts, lengths = directory.read_places()
    is_tiled = _TILES in directory.places
    if is_tiled:
        across, down = number(_TILE_WIDTH, 0), number(_TILE_HEIGHT, 0)
    else:
        across, down = width, min(number(_ROWS, height), height)
    if min(width, height, across, down) < 1:
        raise ValueError("its width, its height or those of its tiles are 0")
    if number(_COMPRESSION, _UNCOMPRESSED) in _CCITT and height > _MAX_FAX_ROWS:
        message = f"the TIFF has {height} rows of a fax; the limit is {_MAX_FAX_ROWS}"
        raise build_decode_error(Code.IMAGE_TOO_LARGE, message)
    columns, rows = -(-width // across), -(-height // down)
    planes = number(_SAMPLES, 1) if number(_PLANES, 1) == 2 else 1
    count = columns * rows * planes
    if count > _MAX_PARTS:
        message = f"the TIFF has {count} strips or tiles; the limit is {_MAX_PARTS}"
        raise build_decode_error(Code.IMAGE_TOO_LARGE, message)
    if not len(starts) == len(lengths) == count:
        raise ValueError(f"it has {len(starts)} strips or tiles of {count}")
    for start, length in zip(starts, lengths, strict=True):
        if not 0 < length <= len(directory.content) - start:
            raise ValueError("its data are cut short")
    if sum(lengths) > len(directory.content) + _MAX_SHARED_BYTES:
        message = f"the TIFF has {sum(lengths)} bytes of strips or tiles, most of them shared"
        raise build_decode_error(Code.IMAGE_TOO_LARGE, message)
    # The last strip may be lower than the others; a tile has all of its rows and columns.
    return columns * across * rows * down if is_tiled else width * height


def _check_sums(directory: _Directory, pixels: int) -> None:
    """Check the checksums of strips or tiles in Deflate, of so many pixels together.

    libtiff does not read one that follows the last pixel: it missed an eighth of single-bit errors.
    Takes as long as decoding.

    Raises:
        zlib.error: one is wrong. Data without one are not refused.
    """
    view = memoryview(directory.content)
    # Data beyond what the pixels need are not read.
    left = pixels * directory.read_number(_SAMPLES, 1) * 2
    for start, length in zip(*directory.read_places(), strict=True):
        inflating = zlib.decompressobj()
        # By pieces, because the rest of a piece is copied each time.
        for first in range(start, start + length, _PIECE_BYTES):
            piece = bytes(view[first : min(first + _PIECE_BYTES, start + length)])
            while piece and left >= 0 and not inflating.eof:
                left -= len(inflating.decompress(piece, _INFLATED_BYTES))
                piece = inflating.unconsumed_tail
