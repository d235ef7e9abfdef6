"""How an encoder wants its pictures, and where in a stored picture that is found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

__all__ = ["CropMode", "Interpolation", "Preprocessing", "scaled_and_cut"]

Interpolation = Literal["bilinear", "bicubic", "lanczos", "nearest"]

CropMode = Literal["center", "squash", "border"]

# Orientations whose stored columns, or rows, run against the displayed picture's.
_STORED_RIGHT_TO_LEFT = (2, 3, 7, 8)
_STORED_BOTTOM_UP = (3, 4, 6, 7)


@dataclass(frozen=True)
class Preprocessing:
    """How an encoder wants its input: torchvision's Resize, CenterCrop and Normalize.

    `resize_px` is the shorter side's length after scaling, `crop_px` the side of the square cut
    from the middle; `mean` and `std` are per channel, for values in 0 to 1. `crop_mode` is timm's:
    `center` scales the shorter side and cuts; `squash` scales both sides to `resize_px`, whatever
    the shape, and cuts; `border` scales the longer side to `resize_px` and fills up with the mean.
    What a crop larger than the scaled picture leaves free is black, as torchvision does.
    """

    resize_px: int
    crop_px: int
    interpolation: Interpolation
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_mode: CropMode = "center"

    def problem(self) -> str | None:
        """Why no picture can be prepared so; None where one can."""
        sizes = (self.resize_px, self.crop_px)
        if not all(isinstance(side, int) and side > 0 for side in sizes):
            return f"resize_px and crop_px are whole numbers above 0, not {sizes}"
        for name, known in (("interpolation", Interpolation), ("crop_mode", CropMode)):
            if (value := getattr(self, name)) not in get_args(known):
                return f"{name} is one of {', '.join(get_args(known))}, not {value!r}"
        for name in ("mean", "std"):
            try:
                red, green, blue = map(float, getattr(self, name))
            except (TypeError, ValueError):
                return f"{name} is three numbers, not {getattr(self, name)!r}"
            if name == "std" and not min(red, green, blue) > 0:
                return f"std is three numbers above 0, not {self.std!r}"
        return None

    @property
    def fill(self) -> tuple[int, int, int]:
        """The colour around a picture that is smaller than the crop."""
        red, green, blue = self.mean if self.crop_mode == "border" else (0, 0, 0)
        return round(255 * red), round(255 * green), round(255 * blue)


def scaled_and_cut(
    size: tuple[int, int], preprocessing: Preprocessing, orientation: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the scaled size of a stored picture of `size`, and where the crop begins in it.

    The crop begins at a negative place where it is larger than the scaled picture. An odd margin
    is cut unevenly, so the side where the displayed picture begins matters.
    """
    crop = preprocessing.crop_px
    mirrored = orientation in _STORED_RIGHT_TO_LEFT, orientation in _STORED_BOTTOM_UP
    width, height = _scaled(size, preprocessing)
    left, top = (
        side - crop - _margin(side, crop) if flip else _margin(side, crop)
        for side, flip in zip((width, height), mirrored, strict=True)
    )
    return (width, height), (left, top)


def _scaled(size: tuple[int, int], preprocessing: Preprocessing) -> tuple[int, int]:
    # Rounded as torchvision and timm do, each in its own way.
    width, height = size
    resize = preprocessing.resize_px
    match preprocessing.crop_mode:
        case "center":
            return int(resize * width / min(size)), int(resize * height / min(size))
        case "squash":
            return resize, resize
        case "border":
            ratio = max(size) / resize
            # timm fails where the shorter side becomes none.
            return max(1, round(width / ratio)), max(1, round(height / ratio))


def _margin(side: int, crop: int) -> int:
    return round((side - crop) / 2) if side >= crop else -((crop - side) // 2)
