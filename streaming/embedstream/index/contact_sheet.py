"""A contact sheet: an image of queries and their neighbours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from embedstream.index.search import Neighbour
from embedstream_core.errors import ItemError, SetupError
from embedstream_core.media.image.decode import open_image, render
from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.settings import DecodeSettings

__all__ = ["check_sheet_path", "draw_contact_sheet", "save_sheet"]

# Lengths in pixels.
_TILE, _CAPTION, _GAP = 168, 34, 10
_NAME_LENGTH = 28
_EMPTY = 238
_SUFFIXES = (".png", ".jpg")

# The whole image, with a border where it is not square.
_WHOLE = ImagePreprocessing(
    _TILE, _TILE, "bicubic", mean=(_EMPTY / 255,) * 3, std=(1, 1, 1), crop_mode="border"
)


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
    rows: Sequence[tuple[str, bytes, Sequence[Neighbour]]],
    content: Callable[[Neighbour], bytes | None],
) -> Image.Image:
    """Draw a row for each query: its name and image, then its neighbours, the nearest first.

    `content` returns a neighbour's image bytes, or None. A tile is empty without bytes, and where
    they are not an image, such as those of a file that was overwritten.
    """
    columns = 1 + max((len(neighbours) for _, _, neighbours in rows), default=0)
    width = columns * (_TILE + _GAP) + 2 * _GAP
    height = len(rows) * (_TILE + _CAPTION + _GAP) + _GAP
    sheet = Image.new("RGB", (width, height), "white")
    for index, (name, image, neighbours) in enumerate(rows):
        top = _GAP + index * (_TILE + _CAPTION + _GAP)
        _draw_tile(sheet, (_GAP, top), image, name, "query")
        for column, neighbour in enumerate(neighbours, start=1):
            left = 2 * _GAP + column * (_TILE + _GAP)
            similarity = f"{neighbour.similarity:.3f}"
            _draw_tile(sheet, (left, top), content(neighbour), neighbour.image_id, similarity)
    return sheet


def _draw_tile(
    sheet: Image.Image, corner: tuple[int, int], content: bytes | None, name: str, note: str
) -> None:
    left, top = corner
    sheet.paste((_EMPTY,) * 3, (left, top, left + _TILE, top + _TILE))
    try:
        if content is not None:
            (pixels,) = render(open_image(content, DecodeSettings()), _WHOLE)
            sheet.paste(Image.fromarray(pixels), corner)
    except ItemError:
        # The tile stays empty.
        pass
    short = Path(name).name or name
    if len(short) > _NAME_LENGTH:
        short = f"…{short[-_NAME_LENGTH + 1 :]}"
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(11)
    draw.text((left, top + _TILE + 3), short, fill="black", font=font)
    draw.text((left, top + _TILE + 17), note, fill="#666666", font=font)
