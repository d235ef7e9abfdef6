"""Image bytes become uint8 pixels of the encoder's size, within limits.

What a picture's mode means here:

| stored as | read as |
| --- | --- |
| RGB | itself |
| grey, 1-bit | the same value in all three channels |
| palette | its colours; black where it has none |
| alpha, or a transparent colour | laid over white |
| a BMP's alpha, where no pixel shows | opaque |
| CMYK, YCCK | Pillow's plain conversion to RGB |
| 16 bits a channel | the high byte; a transparent colour is compared in all 16 bits |
| EXIF orientation, or XMP's | applied, wherever it stands in the file; a broken one is ignored |
| animation | its first frame, or an APNG's still picture |
| a first frame smaller than its screen | white around it |
| a PNG's broken or unknown ancillary chunks | ignored; a broken critical chunk is corrupt |
| a PNG's data that end before its last row | corrupt, whatever Pillow makes of them |
| a JPEG's metadata, and what follows the end | ignored |
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from embedstream_core.errors import Code, ItemError, decode_error
from embedstream_core.media.image.formats import OpenedImage, read_header
from embedstream_core.media.image.preprocessing import Preprocessing, scaled_and_cut
from embedstream_core.settings import DecodeLimits, Fidelity

__all__ = [
    "DecodeLimits",
    "OpenedImage",
    "Picture",
    "Pixels",
    "Preprocessing",
    "drafts",
    "open_image",
    "render",
    "upright",
]

# Pillow warns of metadata that it skips, such as broken EXIF: only the pixels matter here.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
# It warns of large pictures too, which the limits here refuse.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

Pixels = npt.NDArray[np.uint8]
"""RGB, of shape (height, width, 3), or more of them of one size."""

_RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
}

# As EXIF's orientations are undone.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, slots=True)
class Picture:
    """Pixels ready for the encoder: uint8 of shape (crop_px, crop_px, 3).

    `width` and `height` are the original's, in pixels, as displayed.
    """

    pixels: Pixels
    width: int
    height: int


def open_image(content: bytes, limits: DecodeLimits) -> OpenedImage:
    """Read the header and apply the limits; no pixel is decoded.

    Raises:
        ItemError: empty, too large, of a format that is not allowed, or not an image.
    """
    if not content:
        raise decode_error(Code.IMAGE_EMPTY, "the image has no bytes")
    if len(content) > limits.max_bytes:
        raise decode_error(
            Code.IMAGE_TOO_LARGE,
            f"the image has {len(content)} bytes; the limit is {limits.max_bytes}",
        )
    opened = read_header(content, formats=limits.formats, most_scans=limits.max_scans)
    width, height = opened.size
    if width < 1 or height < 1:
        raise decode_error(Code.IMAGE_CORRUPT, f"the image has {width}x{height} pixels")
    if width * height > limits.max_pixels:
        raise decode_error(
            Code.IMAGE_TOO_LARGE,
            f"the image has {width}x{height} pixels; the limit is {limits.max_pixels}",
        )
    if opened.scans > limits.max_scans:
        raise decode_error(
            Code.IMAGE_TOO_LARGE,
            f"the image has at least {opened.scans} scans; the limit is {limits.max_scans}",
        )
    return opened


def render(
    opened: OpenedImage, preprocessing: Preprocessing, *, fidelity: Fidelity = "exact"
) -> Picture:
    """Decode, scale and crop an opened image.

    `exact` equals Pillow's resize of the whole picture followed by a centre crop; only the cropped
    part is computed. `fast` lets the JPEG decoder scale large pictures down first, which moves
    embeddings: to a cosine similarity of 0.998 at worst, measured with EfficientNet-Lite0.

    Raises:
        ItemError: the image data is broken.
        MemoryError: this process has not enough.
    """
    try:
        pixels = _pixels(opened, preprocessing, fidelity)
    except (ItemError, MemoryError):
        raise
    except Exception as error:
        # Pillow's decoders raise a dozen types on broken data; none of them may end the stream.
        raise decode_error(
            Code.IMAGE_CORRUPT, f"the image cannot be decoded: {type(error).__name__}: {error}"
        ) from error
    return Picture(pixels, width=opened.width, height=opened.height)


def drafts(opened: OpenedImage, preprocessing: Preprocessing, fidelity: Fidelity) -> bool:
    """Whether `render` lets the JPEG decoder scale it down."""
    is_large = min(opened.size) > 2 * preprocessing.resize_px
    return fidelity == "fast" and opened.format == "JPEG" and is_large


def upright(pixels: Pixels, orientation: int) -> Pixels:
    """A picture as it is displayed, from how it is stored."""
    if orientation == 1:
        return pixels
    return np.asarray(Image.fromarray(pixels).transpose(_UPRIGHT[orientation]))


def _pixels(opened: OpenedImage, preprocessing: Preprocessing, fidelity: Fidelity) -> Pixels:
    image = opened.decode()
    # The limits were held against the header's size.
    if image.size != opened.size:
        raise ValueError(f"its data have {image.width}x{image.height} pixels, not the header's")
    if drafts(opened, preprocessing, fidelity):
        _draft(image, preprocessing.resize_px)
    cut = _scaled_cut(_to_rgb(image), preprocessing, opened.orientation)
    return upright(np.asarray(cut), opened.orientation)


def _draft(image: Image.Image, resize_px: int) -> None:
    """Let the JPEG decoder scale by 1/2, 1/4 or 1/8, to no less than twice the size needed."""
    scale = 2 * resize_px / min(image.size)
    image.draft("RGB", (int(image.width * scale), int(image.height * scale)))


def _scaled_cut(image: Image.Image, preprocessing: Preprocessing, orientation: int) -> Image.Image:
    """Scale and cut a stored picture; only the part that is kept is computed."""
    crop = preprocessing.crop_px
    scaled, cut = scaled_and_cut(image.size, preprocessing, orientation)
    # In pixels of the scaled picture, from left and top to right and bottom.
    first = [max(0, start) for start in cut]
    last = [min(start + crop, side) for start, side in zip(cut, scaled, strict=True)]
    factors = [side / whole for side, whole in zip(image.size, scaled, strict=True)]
    resized = image.resize(
        (last[0] - first[0], last[1] - first[1]),
        _RESAMPLING[preprocessing.interpolation],
        box=(
            first[0] * factors[0],
            first[1] * factors[1],
            min(last[0] * factors[0], image.width),
            min(last[1] * factors[1], image.height),
        ),
    )
    if resized.size == (crop, crop):
        return resized
    whole = Image.new("RGB", (crop, crop), preprocessing.fill)
    whole.paste(resized, (first[0] - cut[0], first[1] - cut[1]))
    return whole


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "I;16", "I;16B", "I;16L"):
        return _sixteen_bits(image)
    if image.has_transparency_data:
        return _over_white(image.convert("RGBA"))
    image.load()
    return image if image.mode == "RGB" else image.convert("RGB")


def _sixteen_bits(image: Image.Image) -> Image.Image:
    # convert("RGB") would clip: every value above 255 would turn white.
    values = np.asarray(image)
    grey = (values >> 8).clip(0, 255).astype(np.uint8)
    grey[values == image.info.get("transparency", -1)] = 255
    return Image.fromarray(grey).convert("RGB")


def _over_white(image: Image.Image) -> Image.Image:
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image).convert("RGB")
