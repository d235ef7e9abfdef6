"""Usual JPEGs, decoded by libjpeg-turbo alone and scaled by torch, in two thirds of the time."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch.nn.functional import interpolate

from embedstream_core.media.image.decode import (
    OpenedImage,
    Picture,
    Pixels,
    Preprocessing,
    drafts,
    render,
    upright,
)
from embedstream_core.media.image.preprocessing import scaled_and_cut
from embedstream_core.settings import Fidelity

__all__ = ["render_quickly"]

# Torch's kernel for bytes is vectorized for these processors only.
_VECTORIZED = torch.backends.cpu.get_cpu_capability().startswith("AVX")

_AT_HAND = _VECTORIZED and find_spec("simplejpeg") is not None
if _AT_HAND:
    import simplejpeg

_INTERPOLATIONS = ("bilinear", "bicubic")

# Here the whole picture is scaled, and by `render` only what is kept: of a banner, far less.
_MOST_SCALED = 4


def render_quickly(
    content: bytes,
    opened: OpenedImage,
    preprocessing: Preprocessing,
    *,
    fidelity: Fidelity = "exact",
) -> Picture:
    """What `render` makes of the image that was opened from `content`, to one level of 255.

    Any other image goes to `render` itself, and so does a broken one, which it refuses in words.

    Raises:
        ItemError: as `render` does.
    """
    stored = _stored(content, opened) if _is_usual(opened, preprocessing, fidelity) else None
    if stored is None:
        return render(opened, preprocessing, fidelity=fidelity)
    pixels = _scaled(stored, preprocessing, opened.orientation)
    return Picture(upright(pixels, opened.orientation), width=opened.width, height=opened.height)


def _is_usual(opened: OpenedImage, preprocessing: Preprocessing, fidelity: Fidelity) -> bool:
    (width, height), cut = scaled_and_cut(opened.size, preprocessing, opened.orientation)
    return (
        _AT_HAND
        and opened.format == "JPEG"
        and preprocessing.interpolation in _INTERPOLATIONS
        and min(cut) >= 0
        and width * height <= _MOST_SCALED * preprocessing.crop_px**2
        and not drafts(opened, preprocessing, fidelity)
    )


def _stored(content: bytes, opened: OpenedImage) -> Pixels | None:
    """The whole picture, if libjpeg sees what was opened and finds nothing wrong with it."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
        # A second header could name another size than the one that was held against the limits.
        if (width, height) != opened.size or colours != "YCbCr":
            return None
        pixels: Pixels = simplejpeg.decode_jpeg(content)
    except MemoryError:
        raise
    except Exception:
        # A KeyError for a sampling that it has no name for, a ValueError for what is broken:
        # whatever it does not decode is Pillow's to decode or to refuse.
        return None
    return pixels


def _scaled(stored: Pixels, preprocessing: Preprocessing, orientation: int) -> Pixels:
    height, width, _ = stored.shape
    crop = preprocessing.crop_px
    scaled, (left, top) = scaled_and_cut((width, height), preprocessing, orientation)
    # Channels last: the kernel takes them as they are.
    pixels = torch.from_numpy(stored).unsqueeze(0).permute(0, 3, 1, 2)
    resized = interpolate(
        pixels, size=scaled[::-1], mode=preprocessing.interpolation, antialias=True
    )
    cut = resized[0, :, top : top + crop, left : left + crop]
    return cut.permute(1, 2, 0).contiguous().numpy()
