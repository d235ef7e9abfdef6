"""What a HEIC's items refer to: a few bytes of references must not cost more than their picture."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

import pillow_heif
import pytest
from PIL import Image

from embedstream_core.errors import Code, ItemError
from embedstream_core.media.image.decode import open_image, render
from embedstream_core.media.image.formats.iso_media import read_still_image
from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.settings import DecodeSettings
from pictures import encoded

pillow_heif.register_heif_opener()

SIDE = 64
SETTINGS = DecodeSettings(formats=("HEIC",), max_pixels=100_000)
SQUARE = ImagePreprocessing(SIDE, SIDE, "bilinear", (0, 0, 0), (1, 1, 1))
COLOUR = (200, 30, 40)
PRIMARY = 1


def box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(body), kind) + body


def numbers(*values: int) -> bytes:
    return struct.pack(f">{len(values)}H", *values)


def code_tile(side: int) -> tuple[bytes, bytes]:
    """Return the data of an image in HEVC, and its properties."""
    content = encoded(Image.new("RGB", (side, side), COLOUR), "HEIF")
    item = read_still_image(content).primary
    kept = (b"hvcC", b"ispe")
    return item.data, b"".join(
        box(kind, bytes(data)) for kind, data in item.properties if kind in kept
    )


DATA, PROPERTIES = code_tile(SIDE)


def grid(rows: int, columns: int) -> tuple[bytes, bytes]:
    """Return the kind and the data of a grid of tiles."""
    sides = numbers(columns * SIDE, rows * SIDE)
    return b"grid", bytes([0, 0, rows - 1, columns - 1]) + sides


def build_properties(properties: bytes, items: int) -> bytes:
    """Return a box that gives an item the size of its image, as one of its two properties."""
    entries = b"".join(numbers(number) + b"\2\1\2" for number in range(1, items + 1))
    given = box(b"ipma", bytes(4) + struct.pack(">I", items) + entries)
    return box(b"iprp", box(b"ipco", properties) + given)


def build(
    items: Sequence[tuple[bytes, bytes]],
    references: Mapping[tuple[bytes, int], Sequence[int]],
    *,
    properties: Sequence[bytes] = (PROPERTIES,),
) -> bytes:
    """Return a file with items, numbered from 1; the first is shown."""
    count = len(items)
    kinds = (
        box(b"infe", b"\2\0\0\0" + numbers(number, 0) + kind + b"\0")
        for number, (kind, _) in enumerate(items, start=1)
    )
    refers = (
        box(kind, numbers(number, len(targets), *targets))
        for (kind, number), targets in references.items()
    )
    data, places = b"", b""
    for number, (_, own) in enumerate(items, start=1):
        places += numbers(number, 1, 0, 1) + struct.pack(">II", len(data), len(own))
        data += own
    meta = (
        box(b"hdlr", bytes(8) + b"pict" + bytes(13)),
        box(b"pitm", bytes(4) + numbers(PRIMARY)),
        box(b"iloc", b"\1\0\0\0\x44\0" + numbers(count) + places),
        box(b"iinf", bytes(4) + numbers(count) + b"".join(kinds)),
        box(b"iref", bytes(4) + b"".join(refers)),
        *(build_properties(one, count) for one in properties),
        box(b"idat", data),
    )
    return box(b"ftyp", b"heic\0\0\0\0mif1heic") + box(b"meta", bytes(4) + b"".join(meta))


TILE = (b"hvc1", DATA)
CANVAS = bytes(2) + bytes(8) + numbers(SIDE, SIDE) + bytes(4)
REFUSED = {
    "a tile that is repeated": build([grid(1, 2), TILE], {(b"dimg", 1): [2, 2]}),
    "a grid of grids": build(
        [grid(1, 1), grid(1, 1), TILE], {(b"dimg", 1): [2], (b"dimg", 2): [3]}
    ),
    "a canvas with an image over it": build(
        [grid(1, 1), (b"iovl", CANVAS), TILE], {(b"dimg", 1): [2], (b"dimg", 2): [3]}
    ),
    "transparency of tiles": build(
        [grid(1, 1), TILE, TILE], {(b"dimg", 1): [2], (b"auxl", 3): [2]}
    ),
    "transparency of transparency": build(
        [TILE, TILE, TILE], {(b"auxl", 2): [1], (b"auxl", 3): [2]}
    ),
    "transparency on a canvas": build(
        [TILE, (b"iovl", CANVAS), TILE], {(b"auxl", 2): [1], (b"dimg", 2): [3]}
    ),
}


def test_an_image_of_one_tile_is_decoded() -> None:
    """Otherwise the refusals below would say nothing."""
    for content in (
        build([TILE], {}),
        build([grid(1, 1), TILE], {(b"dimg", 1): [2]}),
    ):
        (pixels,) = render(open_image(content, SETTINGS), SQUARE)
        assert abs(pixels.astype(int) - COLOUR).max() < 4


@pytest.mark.parametrize("content", REFUSED.values(), ids=REFUSED.keys())
def test_what_would_be_decoded_more_than_once_is_unsupported(content: bytes) -> None:
    with pytest.raises(ItemError) as caught:
        open_image(content, SETTINGS)
    assert caught.value.code == Code.IMAGE_UNSUPPORTED


def test_references_are_counted() -> None:
    content = build([TILE], {(b"cdsc", number): [1] * 900 for number in range(2, 30)})
    with pytest.raises(ItemError, match="boxes and parts") as caught:
        open_image(content, SETTINGS)
    assert caught.value.code == Code.IMAGE_TOO_LARGE


def test_a_box_that_readers_choose_from_two_is_corrupt() -> None:
    """libheif takes the first properties, and the last meta: the others would name the size."""
    large, of_large = code_tile(1024)
    small = build([TILE], {})
    two = build([(b"hvc1", large)], {}, properties=(of_large, PROPERTIES))
    metas = small + build([(b"hvc1", large)], {}, properties=(of_large,))[24:]
    for content, found in ((two, "b'iprp' twice"), (metas, "b'meta' twice")):
        with pytest.raises(ItemError, match=found) as caught:
            open_image(content, SETTINGS)
        assert caught.value.code == Code.IMAGE_CORRUPT


def test_an_item_that_is_there_twice_is_corrupt() -> None:
    content = build([TILE, TILE], {})
    second = b"infe\2\0\0\0" + numbers(2)
    assert second in content
    with pytest.raises(ItemError, match="the item 1 twice"):
        open_image(content.replace(second, b"infe\2\0\0\0" + numbers(1)), SETTINGS)
