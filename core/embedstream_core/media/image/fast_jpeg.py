"""Common JPEGs, decoded by libjpeg-turbo alone and scaled by torch, in two thirds of the time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch.nn.functional import interpolate

from embedstream_core.media.image.colours import is_srgb
from embedstream_core.media.image.decode import apply_orientation, render, uses_draft
from embedstream_core.media.image.opened_image import OpenedImage, Pixels
from embedstream_core.media.image.preprocessing import ImagePreprocessing, locate_crop
from embedstream_core.settings import Fidelity

__all__ = ["HAS_LIBRARY", "Crop", "find_crops", "is_sound", "render_quickly"]

HAS_LIBRARY = find_spec("simplejpeg") is not None
"""A GPU machine with little more than torch has no simplejpeg."""

if HAS_LIBRARY:
    import simplejpeg

# Torch's kernel for bytes is vectorized for these processors only.
_IS_FASTER = HAS_LIBRARY and torch.backends.cpu.get_cpu_capability().startswith("AVX")

# This path scales the whole image, and `render` only the crop: far less of a long, narrow image.
_MAX_SCALED_CROPS = 4

# The smallest scale of libjpeg, 1/8. It still reads every bit, and makes one pixel of each block.
_EIGHTH = 8


@dataclass(frozen=True, slots=True)
class Crop:
    """What a preprocessing keeps of a scaled image; both are (across, down), in pixels."""

    preprocessing: ImagePreprocessing
    scaled: tuple[int, int]
    start: tuple[int, int]

    def cut(self, pixels: torch.Tensor) -> torch.Tensor:
        """Scale pixels of shape (3, height, width), and return (crop_px, crop_px, 3) as uint8.

        On a CPU they are uint8. On other devices they are float32, because torch scales bytes only
        on a CPU.
        """
        side, (width, height), (left, top) = self.preprocessing.crop_px, self.scaled, self.start
        mode = self.preprocessing.interpolation
        scaled = interpolate(pixels.unsqueeze(0), size=(height, width), mode=mode, antialias=True)
        cropped = scaled[0, :, top : top + side, left : left + side].permute(1, 2, 0)
        if cropped.is_floating_point():
            # A bicubic kernel overshoots.
            cropped = cropped.round().clamp(0, 255).to(torch.uint8)
        return cropped.contiguous()


def render_quickly(
    content: bytes,
    opened: OpenedImage,
    *preprocessings: ImagePreprocessing,
    fidelity: Fidelity = "exact",
) -> list[Pixels]:
    """Return what `render` makes of the image that was opened from `content`, to 1 of 255 levels.

    `render` itself handles every other image, and a broken one, which it refuses with a message.
    """
    crops = find_crops(opened, preprocessings, fidelity) if _IS_FASTER else None
    stored = _decode(content, opened.size) if crops else None
    if crops is None or stored is None:
        return render(opened, *preprocessings, fidelity=fidelity)
    # Channels last: the kernel takes them as they are.
    pixels = torch.from_numpy(stored).permute(2, 0, 1)
    return [apply_orientation(one.cut(pixels).numpy(), opened.orientation) for one in crops]


def find_crops(
    opened: OpenedImage, preprocessings: Sequence[ImagePreprocessing], fidelity: Fidelity
) -> list[Crop] | None:
    """Return the crop of each preprocessing, if the image is a JPEG that torch may scale."""
    if (
        opened.format != "JPEG"
        or uses_draft(opened, preprocessings, fidelity)
        or not (opened.profile is None or is_srgb(opened.profile))
    ):
        return None
    crops = [
        Crop(one, *locate_crop(opened.size, one, opened.orientation)) for one in preprocessings
    ]
    is_common = all(
        one.preprocessing.interpolation in ("bilinear", "bicubic")
        and min(one.start) >= 0
        and one.scaled[0] * one.scaled[1] <= _MAX_SCALED_CROPS * one.preprocessing.crop_px**2
        for one in crops
    )
    return crops if is_common else None


def is_sound(content: bytes, opened: OpenedImage) -> bool:
    """Return whether libjpeg decodes a JPEG in YCbCr of this header without a warning.

    It decodes to an eighth of each side, which takes less than a third of the time of
    `render_quickly`.
    """
    return _decode(content, opened.size, least_factor=_EIGHTH) is not None


def _decode(content: bytes, size: tuple[int, int], *, least_factor: int = 1) -> Pixels | None:
    """Return the whole image, if libjpeg sees the header that was read and finds no error.

    With a factor over 1 it is in grey, and its sides are divided by up to that factor.
    """
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
        # A second header could name another size than the one that passed the limits.
        if (width, height) != size or colours != "YCbCr":
            return None
        pixels: Pixels
        if least_factor == 1:
            pixels = simplejpeg.decode_jpeg(content)
        else:
            pixels = simplejpeg.decode_jpeg(
                content, colorspace="GRAY", min_height=1, min_width=1, min_factor=least_factor
            )
    except MemoryError:
        raise
    except Exception:
        # A KeyError for a sampling that it has no name for, a ValueError for broken data:
        # Pillow decodes or refuses whatever this library does not decode.
        return None
    return pixels
