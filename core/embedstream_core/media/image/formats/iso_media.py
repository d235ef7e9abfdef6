"""The boxes of ISO media files, in which AVIF and HEIC keep their items (ISO/IEC 23008-12).

Only what decides about pixels, memory and time is read: the items with the places of their data,
and the properties of each.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from PIL import Image

from embedstream_core.errors import Code, build_decode_error
from embedstream_core.media.image.colours import is_srgb_code
from embedstream_core.media.image.opened_image import OpenedImage

__all__ = ["Item", "StillImage", "read_still_image"]

# A phone's picture of 48 megapixels has 200 items, each a tile; libheif accepts 1,000.
_MAX_ITEMS = 1000
# Each takes a microsecond or more to read. A picture has a few units of data in each item.
_MAX_BOXES = 20_000
_MAX_UNITS = 20_000
_MAX_SHARED = 4

_SINGLE = frozenset((b"meta", b"pitm", b"iinf", b"iloc", b"iprp", b"ipco", b"idat", b"iref"))

_MEGAPIXEL = 2**20


@dataclass(slots=True)
class Item:
    """One coded image, a grid of others, or metadata.

    `kind` is its type, such as av01. `parts` are where its data are stored; `properties` are in the
    file's order.
    """

    kind: bytes = b""
    parts: list[memoryview] = field(default_factory=list)
    properties: list[tuple[bytes, memoryview]] = field(default_factory=list)

    @property
    def data(self) -> bytes:
        """The data, copied."""
        return b"".join(self.parts)

    def find(self, kind: bytes) -> memoryview | None:
        """Return the first property of a type, without its box's header."""
        return next((data for name, data in self.properties if name == kind), None)


@dataclass(frozen=True, slots=True)
class StillImage:
    """The items of a file, by number, and the one that is shown.

    `references` are their types, such as dimg, the item that refers and those that it refers to.
    """

    items: dict[int, Item]
    primary: Item
    references: list[tuple[bytes, int, list[int]]]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height before the image is turned."""
        extents = self.primary.find(b"ispe")
        if extents is None:
            raise ValueError("its size is missing")
        width, height = struct.unpack_from(">II", extents, 4)
        return width, height

    @property
    def turns(self) -> int:
        """The quarter turns, anticlockwise, by which the image is shown."""
        found = self.primary.find(b"irot")
        return found[0] & 3 if found else 0

    @property
    def mirror(self) -> int | None:
        """0 if the image is shown upside down after its turn, 1 if left to right, else None."""
        found = self.primary.find(b"imir")
        return found[0] & 1 if found else None

    @property
    def profile(self) -> bytes | None:
        """The ICC profile."""
        for kind, data in self.primary.properties:
            if kind == b"colr" and bytes(data[:4]) in (b"prof", b"rICC"):
                return bytes(data[4:])
        return None

    def open(
        self,
        format_: str,
        decode: Callable[[], Image.Image],
        coded_pixels: Iterable[int],
        *,
        size: tuple[int, int] | None = None,
        orientation: int = 1,
    ) -> OpenedImage:
        """Return the image, whose data have units of so many pixels, 0 for those without a picture.

        A picture of a few bytes may be larger than the image, and there may be many: their sum
        counts as scans of the image, or of a megapixel if it is smaller.
        """
        size = size or self.size
        largest = total = 0
        for number, pixels in enumerate(coded_pixels):
            if number == _MAX_UNITS:
                raise _refuse(f"over {_MAX_UNITS} units of data")
            largest, total = max(largest, pixels), total + pixels
        return OpenedImage(
            format_,
            size,
            decode,
            orientation,
            scans=-(-total // max(size[0] * size[1], _MEGAPIXEL)),
            coded_pixels=largest,
            profile=self.profile,
            unconverted=self.unconverted,
        )

    @property
    def unconverted(self) -> str:
        """Colours that are no profile's and not sRGB's, in words; empty for all others."""
        for kind, data in self.primary.properties:
            if kind == b"colr" and bytes(data[:4]) == b"nclx" and self.profile is None:
                primaries, transfer = struct.unpack_from(">HH", data, 4)
                if not is_srgb_code(primaries, transfer):
                    return f"primaries {primaries} and transfer {transfer} of CICP"
        return ""


def read_still_image(content: bytes) -> StillImage:
    """Read the items of a file's meta box.

    Raises:
        ValueError: it is cut short, or a box is broken.
        NotImplementedError: it holds a sequence alone.
        ItemError: it has too many boxes or items.
    """
    view = memoryview(content)
    count = iter(range(_MAX_BOXES))
    meta = _read_single(_read_boxes(view, count)).get(b"meta")
    if meta is None:
        raise NotImplementedError("it has no still image")
    boxes = _read_single(_read_boxes(meta[4:], count))
    primary = boxes.get(b"pitm")
    if primary is None:
        raise ValueError("no item is its image")
    kinds, places, properties, data, references = (
        boxes.get(kind, view[:0]) for kind in (b"iinf", b"iloc", b"iprp", b"idat", b"iref")
    )
    items: dict[int, Item] = {}
    for number, kind in _read_kinds(kinds, count):
        if number in items:
            raise ValueError(f"it has the item {number} twice")
        items[number] = Item(kind)
    _read_places(places, items, (view, data), count)
    _read_properties(properties, items, count)
    number = int.from_bytes(primary[4:6] if primary[0] == 0 else primary[4:8])
    if number not in items:
        raise ValueError(f"its image, item {number}, is missing")
    return StillImage(items, items[number], list(_read_references(references, count)))


def _read_single(boxes: Iterable[tuple[bytes, memoryview]]) -> dict[bytes, memoryview]:
    """Return the boxes by type; raise ValueError for a second one of a type that is read here.

    Which of them counts differs between readers.
    """
    found: dict[bytes, memoryview] = {}
    for kind, box in boxes:
        if kind in found and kind in _SINGLE:
            raise ValueError(f"it has the box {kind!r} twice")
        found[kind] = box
    return found


def _read_boxes(view: memoryview, count: Iterator[int]) -> Iterator[tuple[bytes, memoryview]]:
    """Yield each box's type and what follows its header."""
    position = 0
    while position + 8 <= len(view):
        if next(count, None) is None:
            raise _refuse(f"over {_MAX_BOXES} boxes and parts")
        size, kind = struct.unpack_from(">I4s", view, position)
        start = position + 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", view, start)
            start += 8
        elif size == 0:
            size = len(view) - position
        end = position + size
        if not start <= end <= len(view):
            raise ValueError(f"its box {kind!r} is cut short")
        yield kind, view[start:end]
        position = end


def _read_kinds(box: memoryview, count: Iterator[int]) -> Iterator[tuple[int, bytes]]:
    """Yield the number and the type of each item."""
    first = 6 if bytes(box[:1]) == b"\0" else 8
    for index, (kind, entry) in enumerate(_read_boxes(box[first:], count)):
        if index == _MAX_ITEMS:
            raise _refuse(f"over {_MAX_ITEMS} items")
        if kind == b"infe" and bytes(entry[:1]) in (b"\2", b"\3"):
            wide = 2 * (entry[0] - 2)
            number, _, name = struct.unpack_from(">IH4s" if wide else ">HH4s", entry, 4)
            yield number, name


def _read_places(
    box: memoryview,
    items: dict[int, Item],
    sources: tuple[memoryview, memoryview],
    count: Iterator[int],
) -> None:
    """Add the places of the items' data, which are in the whole file or in the box idat."""
    if len(box) < 8:
        return
    version = box[0]
    offset_bytes, length_bytes, base_bytes = box[4] >> 4, box[4] & 15, box[5] >> 4
    index_bytes = box[5] & 15 if version else 0
    reader = _FieldReader(box, 6)
    # A few items may share their data; without a bound, each could have the whole file.
    left = _MAX_SHARED * len(sources[0])
    for _ in range(min(reader.read(4 if version == 2 else 2), _MAX_ITEMS)):
        number = reader.read(4 if version == 2 else 2)
        method = reader.read(2) & 15 if version else 0
        if method > 1:
            raise NotImplementedError(f"construction method {method} of its data")
        source = sources[method]
        reader.read(2)
        base = reader.read(base_bytes)
        for _ in range(reader.read(2)):
            if next(count, None) is None:
                raise _refuse(f"over {_MAX_BOXES} boxes and parts")
            reader.read(index_bytes)
            start, length = base + reader.read(offset_bytes), reader.read(length_bytes)
            end = start + length if length else len(source)
            left -= end - start
            if not start <= end <= len(source) or left < 0:
                raise ValueError("its data are cut short, or overlap")
            if number in items:
                items[number].parts.append(source[start:end])


def _read_properties(box: memoryview, items: dict[int, Item], count: Iterator[int]) -> None:
    """Add the properties of each item."""
    properties: list[tuple[bytes, memoryview]] = []
    boxes = list(_read_boxes(box, count))
    if b"ipco" in (single := _read_single(boxes)):
        properties = list(_read_boxes(single[b"ipco"], count))
    for kind, body in boxes:
        if kind == b"ipma":
            reader = _FieldReader(body, 4)
            wide = body[3] & 1
            for _ in range(min(reader.read(4), _MAX_ITEMS)):
                number = reader.read(4 if body[0] else 2)
                for _ in range(reader.read(1)):
                    index = reader.read(1 + wide) & (0x7FFF if wide else 0x7F)
                    if number in items and 0 < index <= len(properties):
                        items[number].properties.append(properties[index - 1])


def _read_references(
    box: memoryview, count: Iterator[int]
) -> Iterator[tuple[bytes, int, list[int]]]:
    """Yield the type of each reference, the item that refers, and those that it refers to."""
    wide = 4 if bytes(box[:1]) == b"\1" else 2
    for kind, body in _read_boxes(box[4:], count):
        reader = _FieldReader(body, 0)
        number, targets = reader.read(wide), []
        for _ in range(reader.read(2)):
            if next(count, None) is None:
                raise _refuse(f"over {_MAX_BOXES} boxes and parts")
            targets.append(reader.read(wide))
        yield kind, number, targets


class _FieldReader:
    """Reads the fields of a box, one after the other."""

    def __init__(self, box: memoryview, position: int) -> None:
        self._box, self._position = box, position

    def read(self, length: int) -> int:
        """Return a number of so many bytes; raise ValueError after the end."""
        start, self._position = self._position, self._position + length
        if self._position > len(self._box):
            raise ValueError("one of its boxes is cut short")
        return int.from_bytes(self._box[start : self._position])


def _refuse(found: str) -> Exception:
    return build_decode_error(Code.IMAGE_TOO_LARGE, f"the image has {found}")
