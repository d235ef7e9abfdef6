"""Contact sheets: a row for each query, and a tile for each neighbour."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pillow_heif
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from embedstream.search import contact_sheet
from embedstream.search.answer import Neighbour
from embedstream.search.contact_sheet import Tile, draw_contact_sheet, save_sheet
from embedstream_core.errors import SetupError
from pictures import encoded, real_pictures

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


def test_a_tile_shows_every_format_that_a_table_may_have() -> None:
    pillow_heif.register_heif_opener()
    red = Image.new("RGB", (64, 64), "red")
    for format_ in ("AVIF", "TIFF", "JPEG2000", "HEIF"):
        sheet = draw_contact_sheet([(Tile("cat", encoded(red, format_)), [])], lambda one: None)
        assert named(sheet.getpixel((10 + 84, 10 + 84))) == "red", format_


@pytest.mark.parametrize(
    "content",
    [b"", b"overwritten with text", real_pictures()[ROCKET][:2000]],
    ids=["empty", "text", "cut"],
)
def test_a_neighbours_file_that_is_no_longer_an_image_draws_an_empty_tile(content: bytes) -> None:
    rows = [(Tile("cat", jpeg((10, 10), "red")), [neighbour("a")])]
    sheet = draw_contact_sheet(rows, lambda one: content)
    assert center(sheet, 1, 0) == "empty"


def tile(
    content: bytes | None, media_type: str, *, duration_s: float | None = None
) -> tuple[Image.Image, Image.Image]:
    """The tiles of a query and of a neighbour with the same content."""
    found = replace(neighbour("bell.wav"), media_type=media_type, duration_s=duration_s)
    query = Tile("bell.wav", content, media_type, duration_s)
    sheet = draw_contact_sheet([(query, [found])], lambda one: content)
    return sheet.crop((10, 10, 178, 178)), sheet.crop((198, 10, 366, 178))


def rows_with_ink(image: Image.Image) -> set[int]:
    pixels: npt.NDArray[np.uint8] = np.asarray(image)
    return set(np.flatnonzero(pixels.max(axis=2).min(axis=1) < 128).tolist())


def lines_of(image: Image.Image) -> int:
    """How many lines of a text have something in them."""
    return len({(row - 8) // 15 for row in rows_with_ink(image) if (row - 8) % 15 in range(3, 11)})


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", 0),
        (" \n ", 0),
        ("one line", 1),
        ("one\n\nthree", 2),
        ("word " * 12, None),
        ("word " * 5000, 10),
        ("w" * 100_000, 10),
        ("möwe 鳥 \U0001f600", 1),
    ],
    ids=["empty", "blank", "line", "paragraphs", "wrapped", "long", "word", "letters"],
)
def test_a_tile_shows_the_lines_of_a_text(text: str, lines: int | None) -> None:
    for drawn in tile(text.encode(), "text/plain"):
        assert lines_of(drawn) == lines if lines is not None else 2 <= lines_of(drawn) <= 5
        # Nothing is written over the edge.
        assert np.all(np.asarray(drawn)[:, -8:] == 238)


def test_texts_that_differ_beyond_the_tile_look_the_same_and_others_do_not() -> None:
    first, second, other = (
        tile(text.encode(), "text/plain")[1]
        for text in ("word " * 900 + "a", "word " * 900 + "b", "ward " * 900)
    )
    assert first.tobytes() == second.tobytes() != other.tobytes()


@pytest.mark.parametrize(
    "content", [b"\xff\xfe text", b"\0\1\x7f\xc2\x80 text", "\u202e\u0627\u200d text".encode()]
)
def test_odd_bytes_and_characters_are_drawn(content: bytes) -> None:
    assert lines_of(tile(content, "text/plain")[1]) == 1


any_names = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@pytest.mark.parametrize("fonts", [contact_sheet._FONTS, ()], ids=["machine", "pillow"])
@given(content=st.binary(max_size=60) | any_names.map(str.encode), name=any_names)
def test_any_text_and_any_name_can_be_drawn(
    fonts: tuple[str, ...], content: bytes, name: str
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contact_sheet, "_FONTS", fonts)
        contact_sheet._load_font.cache_clear()
        for media_type in ("text/plain", "audio/wav"):
            draw_contact_sheet([(Tile(name, content, media_type), [])], lambda one: None)
    contact_sheet._load_font.cache_clear()


def test_a_tile_shows_the_duration_of_a_sound_without_its_bytes() -> None:
    known = [tile(content, "audio/wav", duration_s=12.34) for content in (None, b"RIFF")]
    assert known[0][0].tobytes() == known[1][1].tobytes()
    assert lines_of(known[0][0]) == 2
    assert lines_of(tile(None, "audio/wav")[1]) == 1


@pytest.mark.parametrize("media_type", ["text/plain", "image/png"])
def test_a_tile_without_bytes_is_empty(media_type: str) -> None:
    assert rows_with_ink(tile(None, media_type)[1]) == set()


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
