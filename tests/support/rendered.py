"""Render one image for one preprocessing, with its size as displayed."""

from __future__ import annotations

from typing import NamedTuple

from embedstream_core.media.image.decode import open_image, render
from embedstream_core.media.image.fast_jpeg import render_quickly
from embedstream_core.media.image.opened_image import Pixels
from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.settings import DecodeSettings, Fidelity

__all__ = ["Rendered", "render_one", "render_one_quickly"]


class Rendered(NamedTuple):
    """Pixels of shape (crop_px, crop_px, 3), and the image's own size."""

    pixels: Pixels
    width: int
    height: int


def render_one(
    content: bytes,
    preprocessing: ImagePreprocessing,
    *,
    settings: DecodeSettings | None = None,
    fidelity: Fidelity = "exact",
) -> Rendered:
    """Decode with Pillow alone."""
    opened = open_image(content, settings or DecodeSettings())
    (pixels,) = render(opened, preprocessing, fidelity=fidelity)
    return Rendered(pixels, opened.width, opened.height)


def render_one_quickly(
    content: bytes, preprocessing: ImagePreprocessing, *, fidelity: Fidelity = "exact"
) -> Rendered:
    """Decode as a worker does, with libjpeg-turbo where it can."""
    opened = open_image(content, DecodeSettings())
    (pixels,) = render_quickly(content, opened, preprocessing, fidelity=fidelity)
    return Rendered(pixels, opened.width, opened.height)
