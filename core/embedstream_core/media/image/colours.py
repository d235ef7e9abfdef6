"""Colours of an ICC profile, converted to sRGB by littlecms."""

from __future__ import annotations

import hashlib
import io
import threading
from collections import OrderedDict
from typing import Final, TypeAlias

import numpy as np
from PIL import Image, ImageCms

from embedstream_core.errors import Code, ItemError, build_decode_error, explain

__all__ = ["MAX_PROFILE_BYTES", "convert_lab", "convert_to_srgb", "is_srgb", "is_srgb_code"]

MAX_PROFILE_BYTES: Final = 4 * 2**20
"""The largest profile that is read: those of printing presses have up to three million bytes."""

# Each takes up to two megabytes for a profile of CMYK. One takes 0.5 to 20 ms to build.
_MAX_TRANSFORMS = 16

_Transform: TypeAlias = ImageCms.ImageCmsTransform | None

# Digests of profiles and modes; None for one that changes no colour by more than a level.
_transforms: OrderedDict[tuple[bytes, str], _Transform] = OrderedDict()
_lock = threading.Lock()

# The modes that a profile of each colour space converts.
_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}

# Primaries and transfers that are sRGB's or BT.709's, or not specified (ITU-T H.273).
_SRGB_PRIMARIES = (1, 2)
_SRGB_TRANSFERS = (1, 2, 6, 13, 14, 15)


def is_srgb_code(primaries: int, transfer: int) -> bool:
    """Return whether colours of these codes of CICP are shown as sRGB."""
    return primaries in _SRGB_PRIMARIES and transfer in _SRGB_TRANSFERS


def is_srgb(profile: bytes) -> bool:
    """Return whether converting an RGB image changes nothing; false for a broken profile."""
    try:
        return _find_transform(profile, "RGB") is None
    except ItemError:
        return False


def convert_to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Return an image in sRGB, of mode RGB or RGBA; transparency is kept.

    Raises:
        ItemError: the profile is broken or too large, or it is of another kind of colours.
    """
    if image.mode == "CMYK":
        return _apply(_find_transform(profile, "CMYK"), image)
    is_grey = image.mode in ("1", "L", "LA", "La")
    alpha = None
    if image.has_transparency_data:
        image = image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA")
        alpha = image.getchannel("A")
    image = image.convert("RGB")
    if is_grey and _read_colour_space(profile) == "GRAY":
        image = _apply(_find_transform(profile, "L"), image.getchannel(0))
    else:
        image = _apply(_find_transform(profile, "RGB"), image)
    if alpha is not None:
        image.putalpha(alpha)
    return image


def convert_lab(image: Image.Image) -> Image.Image:
    """Return an image of CIE L*a*b* of D50 in sRGB; colours outside of sRGB are clipped."""
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return _apply(ImageCms.buildTransform(lab, srgb, "LAB", "RGB"), image)


def _find_transform(profile: bytes, mode: str) -> _Transform:
    """Return the transform of a mode to sRGB, built once; None for one that changes nothing.

    littlecms lets threads share a transform.
    """
    if len(profile) > MAX_PROFILE_BYTES:
        message = f"the colour profile has over {MAX_PROFILE_BYTES} bytes"
        raise build_decode_error(Code.IMAGE_TOO_LARGE, message)
    key = hashlib.sha256(profile).digest(), mode
    with _lock:
        if key in _transforms:
            _transforms.move_to_end(key)
            return _transforms[key]
    space = _read_colour_space(profile)
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if _MODES.get(space) != mode:
            raise ValueError(f"it is for {space or 'nothing'}, and the image is {mode}")
        srgb = ImageCms.createProfile("sRGB")
        # Perceptual, as browsers and printers do: it matters to profiles with tables alone.
        built = ImageCms.buildTransform(opened, srgb, mode, "RGB", ImageCms.Intent.PERCEPTUAL)
        changes = mode == "CMYK" or _changes_colours(built, mode)
    except MemoryError:
        raise
    except Exception as error:
        message = f"the colour profile cannot be used: {explain(error)}"
        raise build_decode_error(Code.IMAGE_CORRUPT, message) from error
    transform = built if changes else None
    with _lock:
        _transforms[key] = transform
        while len(_transforms) > _MAX_TRANSFORMS:
            _transforms.popitem(last=False)
    return transform


def _changes_colours(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Return whether a transform changes one of some thousand colours by more than a level."""
    levels = np.arange(256, dtype=np.uint8)
    if mode == "RGB":
        few = np.append(levels[::16], np.uint8(255))
        colours = np.stack(np.meshgrid(few, few, few), axis=-1).reshape(len(few), -1, 3)
    else:
        colours = levels[np.newaxis]
    image = Image.fromarray(colours)
    before = np.asarray(image.convert("RGB"), np.int16)
    return bool(np.abs(np.asarray(_apply(transform, image)) - before).max() > 1)


def _apply(transform: _Transform, image: Image.Image) -> Image.Image:
    """Return an image in sRGB."""
    if transform is None:
        return image.convert("RGB")
    converted: Image.Image = transform.apply(image)
    return converted


def _read_colour_space(profile: bytes) -> str:
    """Return the colour space in a profile's header (ICC.1, 7.2.8)."""
    return profile[16:20].decode("ascii", "replace").strip()
