"""Common JPEGs, decoded by libjpeg-turbo alone and scaled by torch, in two thirds of the time."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch.nn.functional import interpolate

from embedstream_core.media.image.colours import is_srgb
from embedstream_core.media.image.decode import apply_orientation, render, uses_draft
from embedstream_core.media.image.opened_image import OpenedImage, Pixels
from embedstream_core.media.image.preprocessing import ImagePreprocessing, locate_crop
from embedstream_core.settings import Fidelity

__all__ = ["render_quickly"]

# Torch's kernel for bytes is vectorized for these processors only. A GPU machine with little more
# than torch has no simplejpeg.
_IS_FASTER = (
    torch.backends.cpu.get_cpu_capability().startswith("AVX")
    and find_spec("simplejpeg") is not None
)
if _IS_FASTER:
    import simplejpeg

# This path scales the whole image, and `render` only the crop: far less of a long, narrow image.
_MAX_SCALED_CROPS = 4


def render_quickly(
    content: bytes,
    opened: OpenedImage,
    *preprocessings: ImagePreprocessing,
    fidelity: Fidelity = "exact",
) -> list[Pixels]:
    """Return what `render` makes of the image that was opened from `content`, to 1 of 255 levels.

    `render` itself handles every other image, and a broken one, which it refuses with a message.
    """
    crops = [locate_crop(opened.size, one, opened.orientation) for one in preprocessings]
    is_common = (
        _IS_FASTER
        and opened.format == "JPEG"
        and not uses_draft(opened, preprocessings, fidelity)
        and (opened.profile is None or is_srgb(opened.profile))
        and all(
            one.interpolation in ("bilinear", "bicubic")
            and min(start) >= 0
            and width * height <= _MAX_SCALED_CROPS * one.crop_px**2
            for one, ((width, height), start) in zip(preprocessings, crops, strict=True)
        )
    )
    stored = _decode_rgb(content, opened.size) if is_common else None
    if stored is None:
        return render(opened, *preprocessings, fidelity=fidelity)
    # Channels last: the kernel takes them as they are.
    pixels = torch.from_numpy(stored).unsqueeze(0).permute(0, 3, 1, 2)
    rendered = []
    for one, ((width, height), (left, top)) in zip(preprocessings, crops, strict=True):
        scaled = interpolate(pixels, size=(height, width), mode=one.interpolation, antialias=True)
        right, bottom = left + one.crop_px, top + one.crop_px
        cropped = scaled[0, :, top:bottom, left:right].permute(1, 2, 0).contiguous()
        rendered.append(apply_orientation(cropped.numpy(), opened.orientation))
    return rendered


def _decode_rgb(content: bytes, size: tuple[int, int]) -> Pixels | None:
    """Return the whole image, if libjpeg sees the header that was read and finds no error."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
        # A second header could name another size than the one that passed the limits.
        if (width, height) != size or colours != "YCbCr":
            return None
        pixels: Pixels = simplejpeg.decode_jpeg(content)
    except MemoryError:
        raise
    except Exception:
        # A KeyError for a sampling that it has no name for, a ValueError for broken data:
        # Pillow decodes or refuses whatever this library does not decode.
        return None
    return pixels
