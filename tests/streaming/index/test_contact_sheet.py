"""Contact sheets: a row for each query, and a tile for each neighbour."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from embedstream.index.contact_sheet import Tile, draw_contact_sheet, save_sheet
from embedstream.index.search import Neighbour
from embedstream_core.errors import SetupError
from pictures import real_pictures

ROCKET = "rocket.jpg"


def jpeg(size: tuple[int, int], color: str) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", size, color).save(data, "JPEG")
    return data.getvalue()


def neighbour(image_id: str = "cat", uri: str | None = None, offset: int = 0) -> Neighbour:
    return Neighbour(0.5, image_id, uri, topic="images", partition=0, offset=offset)


def test_a_contact_sheet_has_a_row_for_each_query_and_a_tile_for_each_neighbour() -> None:
    blue = jpeg((300, 200), "blue")
    rows = [
        (Tile("cat", jpeg((10, 10), "red")), [neighbour("a"), neighbour("b")]),
        (Tile("dog", jpeg((10, 10), "lime")), [neighbour("c")]),
    ]

    sheet = draw_contact_sheet(rows, lambda one: None if one.image_id == "b" else blue)

    assert (sheet.mode, sheet.size) == ("RGB", (3 * 178 + 20, 2 * 212 + 10))
    assert [center(sheet, at, line) for line in (0, 1) for at in (0, 1, 2)] == [
        "red",
        "blue",
        "empty",
        "lime",
        "blue",
        "paper",
    ]


def test_a_contact_sheet_of_nothing_is_a_sheet() -> None:
    assert draw_contact_sheet([], lambda one: None).size == (198, 10)
    assert draw_contact_sheet([(Tile("cat", jpeg((9, 9), "red")), [])], lambda one: None).size == (
        198,
        222,
    )


def test_a_tile_shows_an_image_whole_and_upright() -> None:
    data = io.BytesIO()
    turned = Image.Exif()
    turned[0x0112] = 6
    half = Image.new("RGB", (200, 100), "red")
    half.paste("blue", (100, 0, 200, 100))
    half.save(data, "JPEG", exif=turned, quality=95)

    sheet = draw_contact_sheet([(Tile("cat", data.getvalue()), [])], lambda one: None)

    middle = 10 + 84
    assert named(sheet.getpixel((middle, 10 + 20))) == "red"
    assert named(sheet.getpixel((middle, 10 + 148))) == "blue"
    assert named(sheet.getpixel((10 + 10, middle))) == "empty"


@pytest.mark.parametrize(
    "content",
    [b"", b"overwritten with text", real_pictures()[ROCKET][:2000]],
    ids=["empty", "text", "cut"],
)
def test_a_neighbours_file_that_is_no_longer_an_image_draws_an_empty_tile(content: bytes) -> None:
    rows = [(Tile("cat", jpeg((10, 10), "red")), [neighbour("a")])]
    sheet = draw_contact_sheet(rows, lambda one: content)
    assert center(sheet, 1, 0) == "empty"


@pytest.mark.parametrize("image_id", ["", "x" * 500, "鳥/möwe\n1", "https://e.org/a/"])
def test_any_name_can_be_drawn(image_id: str) -> None:
    rows = [(Tile(image_id, jpeg((10, 10), "red")), [neighbour(image_id)])]
    sheet = draw_contact_sheet(rows, lambda one: None)
    assert center(sheet, 0, 0) == "red"


def center(sheet: Image.Image, column: int, line: int) -> str:
    left = 10 + column * 178 + (10 if column else 0)
    return named(sheet.getpixel((left + 84, 10 + line * 212 + 84)))


def named(pixel: Any) -> str:
    colors = {
        "red": (254, 0, 0),
        "lime": (0, 255, 0),
        "blue": (0, 0, 254),
        "empty": (238, 238, 238),
        "paper": (255, 255, 255),
    }
    return min(colors, key=lambda name: float(np.abs(np.subtract(colors[name], pixel)).sum()))


def test_a_sheet_that_cannot_be_saved_is_an_error(tmp_path: Path) -> None:
    sheet = draw_contact_sheet([], lambda one: None)
    (tmp_path / "sheet.png").mkdir()
    with pytest.raises(SetupError, match="cannot be written: Is a directory"):
        save_sheet(sheet, tmp_path / "sheet.png")
