"""A contact sheet: an image of queries and their neighbours.

A tile shows an image whole, the beginning of a text, and the name and the duration of a sound.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from embedstream.search.answer import Neighbour
from embedstream_core.errors import ItemError, MissingExtra, SetupError
from embedstream_core.media.image.decode import open_image, render
from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.settings import IMAGE_FORMATS, DecodeSettings

__all__ = ["Tile", "check_sheet_path", "draw_contact_sheet", "save_sheet"]

# Lengths in pixels.
_TILE, _CAPTION, _GAP = 168, 34, 10
_NAME_LENGTH = 28
_EMPTY = 238
_CAPTION_SIZE = 11
# Fonts of the machine, if it has one: Pillow's own lacks letters such as ä.
_FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "LiberationSans-Regular.ttf", "Arial.ttf")
_SUFFIXES = (".png", ".jpg")

# Of a text in a tile, in pixels, but for the last.
_TEXT_SIZE, _LINE, _MARGIN, _MOST_CHARACTERS = 12, 15, 8, 2_000

# The whole image, with a border where it is not square.
_WHOLE = ImagePreprocessing(
    _TILE, _TILE, "bicubic", mean=(_EMPTY / 255,) * 3, std=(1, 1, 1), crop_mode="border"
)

# The rows were embedded by a configuration that the caller may not have.
_SHOWN = DecodeSettings(formats=IMAGE_FORMATS)


@dataclass(frozen=True, slots=True)
class Tile:
    """What a tile shows; without a media type, an image. Durations are in seconds."""

    name: str
    content: bytes | None
    media_type: str | None = None
    duration_s: float | None = None


def check_sheet_path(path: Path) -> None:
    """Check, before any work, that a contact sheet can be written to a path.

    Raises:
        SetupError: the folder does not exist, or the suffix is not an image's.
    """
    if path.suffix.lower() not in _SUFFIXES:
        raise SetupError(
            f"the contact sheet '{path}' cannot be written: it is an image, and its name ends in "
            f"{' or '.join(_SUFFIXES)}"
        )
    if not path.parent.is_dir():
        raise SetupError(
            f"the contact sheet '{path}' cannot be written: there is no folder '{path.parent}'; "
            "create it first"
        )


def save_sheet(sheet: Image.Image, path: Path) -> None:
    """Write a contact sheet, in the format of the file's suffix.

    Raises:
        SetupError: the file cannot be written.
    """
    try:
        sheet.save(path)
    except OSError as error:
        raise SetupError(
            f"the contact sheet '{path}' cannot be written: {error.strerror or error}"
        ) from None


def draw_contact_sheet(
    rows: Sequence[tuple[Tile, Sequence[Neighbour]]],
    content: Callable[[Neighbour], bytes | None],
) -> Image.Image:
    """Draw a row for each query: its own tile, then its neighbours, the nearest first.

    `content` returns a neighbour's bytes, or None. A tile is empty without bytes, and where they
    are not of the row's media type, such as those of a file that was overwritten.
    """
    columns = 1 + max((len(neighbours) for _, neighbours in rows), default=0)
    width = columns * (_TILE + _GAP) + 2 * _GAP
    height = len(rows) * (_TILE + _CAPTION + _GAP) + _GAP
    sheet = Image.new("RGB", (width, height), "white")
    for index, (query, neighbours) in enumerate(rows):
        top = _GAP + index * (_TILE + _CAPTION + _GAP)
        _draw_tile(sheet, (_GAP, top), query, "query")
        for column, one in enumerate(neighbours, start=1):
            left = 2 * _GAP + column * (_TILE + _GAP)
            found = Tile(one.image_id, content(one), one.media_type, one.duration_s)
            _draw_tile(sheet, (left, top), found, f"{one.similarity:.3f}")
    return sheet


def _draw_tile(sheet: Image.Image, corner: tuple[int, int], tile: Tile, note: str) -> None:
    left, top = corner
    sheet.paste((_EMPTY,) * 3, (left, top, left + _TILE, top + _TILE))
    kind = (tile.media_type or "image").partition("/")[0]
    draw = ImageDraw.Draw(sheet)
    font = _load_font(_CAPTION_SIZE)
    short = _replace_unprintable(Path(tile.name).name or tile.name)
    if kind == "audio":
        duration = "" if tile.duration_s is None else f"\n{tile.duration_s:.1f} s"
        _draw_lines(draw, corner, f"{short}{duration}")
    elif kind == "text" and tile.content is not None:
        _draw_lines(draw, corner, tile.content.decode("utf-8-sig", "replace"))
    elif tile.content is not None:
        try:
            (pixels,) = render(open_image(tile.content, _SHOWN), _WHOLE)
            sheet.paste(Image.fromarray(pixels), corner)
        except (ItemError, MissingExtra):
            # The tile stays empty.
            pass
    if font.getlength(short) > _TILE:
        short = f"…{short[-_NAME_LENGTH + 1 :]}"
    while font.getlength(short) > _TILE:
        short = f"…{short[2:]}"
    draw.text((left, top + _TILE + 3), short, fill="black", font=font)
    draw.text((left, top + _TILE + 17), note, fill="#666666", font=font)


def _draw_lines(draw: ImageDraw.ImageDraw, corner: tuple[int, int], text: str) -> None:
    """Draw as many lines of a text as fit into a tile; the last one of more ends in an ellipsis."""
    font = _load_font(_TEXT_SIZE)
    fits = (_TILE - 2 * _MARGIN) // _LINE
    # More characters than a tile can hold, so that a long text is not measured.
    paragraphs = map(_replace_unprintable, text[:_MOST_CHARACTERS].strip().splitlines())
    lines = list(itertools.islice(_wrap(paragraphs, font.getlength), fits + 1))
    if len(lines) > fits:
        last = lines[fits - 1]
        while last and font.getlength(f"{last}…") > _TILE - 2 * _MARGIN:
            last = last[:-1]
        lines[fits - 1 :] = [f"{last}…"]
    left, top = corner
    for index, line in enumerate(lines):
        draw.text((left + _MARGIN, top + _MARGIN + index * _LINE), line, fill="black", font=font)


def _replace_unprintable(text: str) -> str:
    """Return one line without the characters at which Pillow's layout raises an error."""
    return " ".join("".join(one if one.isprintable() else " " for one in text).split())


def _wrap(paragraphs: Iterable[str], measure: Callable[[str], float]) -> Iterator[str]:
    """Yield lines that are no wider than a tile; a word that is wider is broken."""
    for paragraph in paragraphs:
        line = ""
        for word in paragraph.split():
            joined = f"{line} {word}" if line else word
            if measure(joined) <= _TILE - 2 * _MARGIN:
                line = joined
                continue
            if line:
                yield line
            line = ""
            for character in word:
                if measure(line + character) > _TILE - 2 * _MARGIN:
                    yield line
                    line = ""
                line += character
        yield line


@cache
def _load_font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    for name in _FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)
