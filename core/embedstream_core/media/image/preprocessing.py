"""The size and the crop that an encoder expects, and where they lie in a stored image."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

__all__ = ["CropMode", "ImagePreprocessing", "Interpolation", "locate_crop"]

Interpolation = Literal["bilinear", "bicubic", "lanczos", "nearest"]

CropMode = Literal["center", "squash", "border"]

# Orientations that store the columns, or the rows, in reverse of the displayed order.
_STORED_RIGHT_TO_LEFT = (2, 3, 7, 8)
_STORED_BOTTOM_UP = (3, 4, 6, 7)


@dataclass(frozen=True)
class ImagePreprocessing:
    """The input that an encoder expects: torchvision's Resize, CenterCrop and Normalize.

    `resize_px` is the shorter side's length after scaling, `crop_px` the side of the square cut
    from the middle; `mean` and `std` are per channel, for values in 0 to 1. `crop_mode` is timm's:
    `center` scales the shorter side and cuts; `squash` scales both sides to `resize_px`, whatever
    the shape, and cuts; `border` scales the longer side to `resize_px` and pads with the mean.
    A crop larger than the scaled image is padded with black, as torchvision does. `odd_margin` is
    where half a pixel of margin goes: torchvision rounds half to even, transformers down. It is not
    part of the hash of a declared preprocessing, which never sets it.
    """

    resize_px: int
    crop_px: int
    interpolation: Interpolation
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_mode: CropMode = "center"
    odd_margin: Literal["even", "down"] = field(default="even", repr=False)
    modality: Literal["image"] = field(default="image", repr=False)

    def find_problem(self) -> str | None:
        """Return what is wrong with these values, or None if nothing is."""
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


def locate_crop(
    size: tuple[int, int], preprocessing: ImagePreprocessing, orientation: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the scaled size of a stored image of `size`, and where the crop begins in it.

    The crop begins at a negative place where it is larger than the scaled image. An odd margin is
    cut unevenly, so the side where the displayed image begins matters.
    """
    resize, crop = preprocessing.resize_px, preprocessing.crop_px
    # Rounded as torchvision and timm do, each in its own way.
    match preprocessing.crop_mode:
        case "center":
            scaled = [int(resize * side / min(size)) for side in size]
        case "squash":
            scaled = [resize, resize]
        case "border":
            ratio = max(size) / resize
            # At least 1, where timm fails.
            scaled = [max(1, round(side / ratio)) for side in size]
    starts = []
    for side, mirrored in zip(scaled, (_STORED_RIGHT_TO_LEFT, _STORED_BOTTOM_UP), strict=True):
        if side < crop:
            margin = -((crop - side) // 2)
        elif preprocessing.odd_margin == "even":
            margin = round((side - crop) / 2)
        else:
            margin = (side - crop) // 2
        starts.append(side - crop - margin if orientation in mirrored else margin)
    return (scaled[0], scaled[1]), (starts[0], starts[1])
