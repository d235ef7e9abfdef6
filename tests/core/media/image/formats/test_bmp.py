"""BMPs of every depth and kind, built by hand, compared with colours computed by hand."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest

from embedstream_core.errors import Code, ItemError
from embedstream_core.media.image.opened_image import Pixels
from embedstream_core.media.image.preprocessing import ImagePreprocessing
from rendered import render_one

SIDE = 8
AS_STORED = ImagePreprocessing(SIDE, SIDE, "nearest", (0, 0, 0), (1, 1, 1))
BLACK_WHITE = bytes([0, 0, 0, 0, 255, 255, 255, 0])
# Blue, green, red, and an unused byte.
COLOURS = bytes([30, 20, 10, 0, 60, 50, 40, 0, 90, 80, 70, 0, 120, 110, 100, 0])


def bmp(
    bits: int,
    row: bytes,
    *,
    compression: int = 0,
    masks: tuple[int, ...] = (),
    palette: bytes = b"",
    colours: int = 0,
    height: int = SIDE,
    header: int = 40,
) -> bytes:
    """Return an image of eight equal rows; masks follow a header of 40 bytes."""
    data = row.ljust((len(row) + 3) // 4 * 4, b"\0") * SIDE
    fields = struct.pack("<iiHHIIiiII", SIDE, height, 1, bits, compression, 0, 0, 0, colours, 0)
    packed = struct.pack(f"<{len(masks)}I", *masks)
    info = struct.pack("<I", header) + fields + packed
    info = info.ljust(header, b"\0")
    start = 14 + len(info) + len(palette)
    return b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + info + palette + data


def pixels(content: bytes) -> Pixels:
    return render_one(content, AS_STORED).pixels


def assert_first(content: bytes, *colours: tuple[int, int, int]) -> None:
    """Check that all rows are equal, and begin with these colours."""
    found = pixels(content)
    assert (found == found[0]).all()
    np.testing.assert_array_equal(found[0, : len(colours)], colours)


def failure(content: bytes) -> ItemError:
    with pytest.raises(ItemError) as caught:
        pixels(content)
    return caught.value


RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255,) * 3, (0,) * 3


@pytest.mark.parametrize(
    ("bits", "row"),
    [(1, b"\x5a"), (4, bytes.fromhex("01011010")), (8, bytes([0, 1, 0, 1, 1, 0, 1, 0]))],
)
@pytest.mark.parametrize("colours", [0, 2])
def test_black_and_white_of_any_depth(bits: int, row: bytes, colours: int) -> None:
    palette = BLACK_WHITE if colours else BLACK_WHITE.ljust(4 << bits, b"\0")
    content = bmp(bits, row, palette=palette, colours=colours)
    assert_first(content, BLACK, WHITE, BLACK, WHITE, WHITE, BLACK, WHITE, BLACK)
    inverted = bmp(bits, row, palette=BLACK_WHITE[4:] + BLACK_WHITE[:4], colours=2)
    assert_first(inverted, WHITE, BLACK, WHITE, BLACK, BLACK, WHITE, BLACK, WHITE)


@pytest.mark.parametrize(
    ("bits", "row"), [(4, bytes.fromhex("01230000")), (8, bytes([0, 1, 2, 3, 0, 0, 0, 0]))]
)
def test_palettes(bits: int, row: bytes) -> None:
    content = bmp(bits, row, palette=COLOURS, colours=4)
    assert_first(content, (10, 20, 30), (40, 50, 60), (70, 80, 90), (100, 110, 120))


@pytest.mark.parametrize("bits", [4, 8])
def test_a_palette_of_greys(bits: int) -> None:
    greys = b"".join(bytes([grey, grey, grey, 0]) for grey in range(1 << bits))
    row = bytes.fromhex("01f20000") if bits == 4 else bytes([0, 1, 15, 2, 0, 0, 0, 0])
    assert_first(bmp(bits, row, palette=greys), BLACK, (1,) * 3, (15,) * 3, (2,) * 3)


def test_an_index_beyond_the_palette_is_black() -> None:
    content = bmp(8, bytes([1, 9] * 4), palette=COLOURS, colours=4)
    assert_first(content, (40, 50, 60), BLACK)


def test_true_colours() -> None:
    assert_first(bmp(24, bytes([3, 2, 1, 6, 5, 4] * 4)), (1, 2, 3), (4, 5, 6))
    # The fourth byte is not an alpha channel.
    assert_first(bmp(32, bytes([3, 2, 1, 0, 6, 5, 4, 255] * 4)), (1, 2, 3), (4, 5, 6))


def test_rows_from_top_to_bottom() -> None:
    for height, first in ((SIDE, 7), (-SIDE, 0)):
        content = bytearray(bmp(24, bytes(24), height=height))
        content[54:57] = bytes([3, 2, 1])
        found = pixels(bytes(content))
        assert found[first, 0].tolist() == [1, 2, 3]
        assert found.sum() == 6


def words(kind: str, *values: int) -> bytes:
    return struct.pack(f"<{len(values)}{kind}", *values) * (SIDE // len(values))


@pytest.mark.parametrize(
    ("content", "colours"),
    [
        (bmp(16, words("H", 0x7C00, 0x3E0, 0x1F, 0x7FFF)), [RED, GREEN, BLUE, WHITE]),
        (
            bmp(16, words("H", 0xF800, 0x7E0, 0x1F, 0), compression=3, masks=(0xF800, 0x7E0, 0x1F)),
            [RED, GREEN, BLUE, BLACK],
        ),
        (
            bmp(16, words("H", 0xF00, 0x80, 1, 0xFFF), compression=3, masks=(0xF00, 0xF0, 15)),
            [RED, (0, 136, 0), (0, 0, 17), WHITE],
        ),
        # Three, two and one bit.
        (
            bmp(16, words("H", 0b111000, 0b110, 1, 0b001010), compression=3, masks=(56, 6, 1)),
            [RED, GREEN, BLUE, (36, 85, 0)],
        ),
        # Ten bits each.
        (
            bmp(
                32,
                words("I", 0x3FF00000, 0x000FFC00, 0x200, 0x10040100),
                compression=3,
                masks=(0x3FF00000, 0xFFC00, 0x3FF),
            ),
            [RED, GREEN, (0, 0, 128), (64, 64, 64)],
        ),
        (
            bmp(32, words("I", 0x01020304, 0xFF), compression=3, masks=(0xFF, 0xFF00, 0xFF0000)),
            [(4, 3, 2), RED],
        ),
    ],
    ids=["555", "565", "444", "321", "10 bits", "red last"],
)
def test_masks(content: bytes, colours: list[Any]) -> None:
    assert_first(content, *colours)


@pytest.mark.parametrize("header", [56, 108, 124])
def test_alpha_lies_over_white(header: int) -> None:
    masks = (0xF00, 0xF0, 0xF, 0xF000)
    row = words("H", 0xFF00, 0x0F00, 0x3F00, 0xF00F)
    content = bmp(16, row, compression=3, masks=masks, header=header)
    assert_first(content, RED, WHITE, (255, 204, 204), BLUE)


def test_an_alpha_channel_that_hides_every_pixel_is_ignored() -> None:
    masks = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    content = bmp(32, words("I", 0x010203, 0xFF0000), compression=3, masks=masks, header=56)
    assert_first(content, (1, 2, 3), RED)


def test_run_lengths() -> None:
    # A run of four, two literal pairs, the end of each row, and the end of the image.
    row = bytes([4, 1, 0, 4, 2, 3, 3, 2, 0, 0])
    content = bmp(8, b"", compression=1, palette=COLOURS, colours=4) + row * SIDE + b"\0\1"
    assert_first(content, *[(40, 50, 60)] * 4, (70, 80, 90), (100, 110, 120), (100, 110, 120))
    row = bytes([4, 0x12, 0, 4, 0x33, 0x21, 0, 0])
    content = bmp(4, b"", compression=2, palette=COLOURS, colours=4) + row * SIDE + b"\0\1"
    assert_first(content, (40, 50, 60), (70, 80, 90), (40, 50, 60), (70, 80, 90), (100, 110, 120))


def test_run_lengths_may_begin_anywhere() -> None:
    row = bytes([4, 1, 0, 3, 2, 3, 3, 0, 1, 0, 0, 0])
    content = bmp(8, b"", compression=1, palette=COLOURS, colours=4)
    start = (len(content) + 1).to_bytes(4, "little")
    content = content[:10] + start + content[14:] + b"\0" + row * SIDE + b"\0\1"
    assert_first(content, *[(40, 50, 60)] * 4, (70, 80, 90), (100, 110, 120), (100, 110, 120))


def test_runs_leave_out_rows_and_the_rest_of_one() -> None:
    # From below: a row, an empty one, one that ends early, a jump to the middle of the next but
    # one, and three more.
    runs = [8, 1, 0, 0, 0, 0, 2, 2, 0, 0, 0, 2, 3, 1, 2, 3, 0, 0, *[8, 1, 0, 0] * 3, 0, 1]
    found = pixels(bmp(8, b"", compression=1, palette=COLOURS, colours=4) + bytes(runs))[::-1]
    first, second, third, fourth = (10, 20, 30), (40, 50, 60), (70, 80, 90), (100, 110, 120)
    expected = [
        [second] * SIDE,
        [first] * SIDE,
        [third] * 2 + [first] * 6,
        [first] * SIDE,
        [first] * 3 + [fourth] * 2 + [first] * 3,
        *[[second] * SIDE] * 3,
    ]
    np.testing.assert_array_equal(found, expected)


def test_a_run_does_not_go_on_in_the_next_row() -> None:
    row = bytes([7, 1, 9, 2, 0, 3, 3, 3, 3, 0, 0, 0])
    content = bmp(8, b"", compression=1, palette=COLOURS, colours=4) + row * SIDE + b"\0\1"
    assert_first(content, *[(40, 50, 60)] * 7, (70, 80, 90))


def test_padding_of_the_last_row_may_be_missing() -> None:
    masked = bmp(16, words("H", 0x7C00, 0x3E0), compression=3, masks=(0x7C00, 0x3E0, 0x1F))
    for content, filling in (
        (bmp(24, bytes(24)), 3),
        (bmp(16, words("H", 0x7C00, 0x3E0)), 2),
        (masked, 2),
    ):
        narrow = content[:18] + struct.pack("<i", SIDE - 1) + content[22:]
        np.testing.assert_array_equal(pixels(narrow[:-filling]), pixels(narrow))
        assert failure(narrow[: -filling - 1]).code == Code.IMAGE_CORRUPT


def test_the_oldest_header() -> None:
    palette = bytes([30, 20, 10, 60, 50, 40]).ljust(768, b"\0")
    info = struct.pack("<IHHHH", 12, SIDE, SIDE, 1, 8) + palette
    start = 14 + len(info)
    content = b"BM" + struct.pack("<IHHI", 0, 0, 0, start) + info + bytes([0, 1] * 32)
    assert_first(content, (10, 20, 30), (40, 50, 60))


@pytest.mark.parametrize(
    "content",
    [
        bmp(2, bytes(2)),
        bmp(64, bytes(64)),
        bmp(24, bytes(24), compression=4),
        bmp(24, bytes(24), compression=5),
        bmp(32, bytes(32), compression=6),
        bmp(24, bytes(24), compression=1),
        bmp(8, bytes(8), compression=3, masks=(1, 2, 4)),
        bmp(16, bytes(16), compression=3, masks=(0xF0F, 0xF0, 0xF000)),
        bmp(16, bytes(16), compression=3, masks=(0xFF0000, 0xFF00, 0xFF)),
        bmp(24, bytes(24), header=16),
        b"BMW is no image",
        b"BM",
    ],
)
def test_other_kinds_are_unsupported(content: bytes) -> None:
    assert failure(content).code == Code.IMAGE_UNSUPPORTED


@pytest.mark.parametrize(
    "content",
    [
        bmp(24, bytes(24))[:40],
        bmp(24, bytes(24))[:-30],
        bmp(16, bytes(16))[:-30],
        bmp(8, bytes(8), palette=COLOURS, colours=300),
        bmp(8, b"", compression=1, palette=COLOURS, colours=4),
        bmp(8, b"", compression=1, palette=COLOURS, colours=4) + bytes([8, 1, 0, 0] * 7) + b"\0\1",
    ],
)
def test_broken_ones_are_corrupt(content: bytes) -> None:
    assert failure(content).code == Code.IMAGE_CORRUPT
