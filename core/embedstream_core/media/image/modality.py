"""Images, by the contract of a modality."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from embedstream_core.media.image.decode import open_image, render
from embedstream_core.media.image.opened_image import OpenedImage, Pixels
from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.media.modality import Allocate, Array, Arrays, Sample
from embedstream_core.records import Media
from embedstream_core.settings import DecodeSettings, Fidelity, ModalityName

__all__ = ["IMAGE", "ImageModality", "make_probe_images"]


class Render(Protocol):
    """Renders an opened image for each preprocessing, as `render_quickly` does."""

    def __call__(
        self,
        content: bytes,
        opened: OpenedImage,
        *preprocessings: ImagePreprocessing,
        fidelity: Fidelity,
    ) -> list[Pixels]: ...


def render_opened(
    content: bytes,
    opened: OpenedImage,
    *preprocessings: ImagePreprocessing,
    fidelity: Fidelity,
) -> list[Pixels]:
    """Render with Pillow alone: the process that decodes in isolation has no torch."""
    return render(opened, *preprocessings, fidelity=fidelity)


@dataclass(frozen=True, slots=True)
class ImageModality:
    """Images: `render` may be `render_quickly` in a process that has torch."""

    render: Render = render_opened
    name: ModalityName = "image"

    def identify(self, content: bytes, settings: DecodeSettings) -> OpenedImage:
        """Read the header as `open_image` does."""
        return open_image(content, settings)

    def decode(
        self,
        content: bytes,
        header: OpenedImage,
        preprocessings: Sequence[ImagePreprocessing],
        settings: DecodeSettings,
    ) -> list[Sample]:
        """Decode once; return uint8 pixels of shape (crop_px, crop_px, 3) by preprocessing."""
        media = self.describe(header)
        rendered = self.render(content, header, *preprocessings, fidelity=settings.fidelity)
        return [Sample((pixels,), media) for pixels in rendered]

    def collate(self, parts: Sequence[Array], allocate: Allocate = np.empty) -> Arrays:
        """Return pixels of shape (parts, crop_px, crop_px, 3)."""
        return (np.stack(parts, out=allocate((len(parts), *parts[0].shape), parts[0].dtype)),)

    def describe(self, header: OpenedImage) -> Media:
        """Return the format and the size as displayed."""
        kind = f"image/{header.format.lower()}"
        return Media(kind, width=header.width, height=header.height)

    def make_probes(self, preprocessing: ImagePreprocessing) -> list[Sample]:
        """Return a ramp and noise."""
        side = preprocessing.crop_px
        media = Media("image/bmp", width=side, height=side)
        return [Sample((pixels,), media) for pixels in make_probe_images(side)]


IMAGE = ImageModality()


def make_probe_images(side_px: int) -> Pixels:
    """Return a ramp and noise, always the same: uint8 of shape (2, side_px, side_px, 3)."""
    noise = np.random.default_rng(0).integers(256, size=(side_px, side_px, 3), dtype=np.uint8)
    ramp = np.linspace(0, 255, side_px).astype(np.uint8)[:, None, None]
    return np.stack([np.broadcast_to(ramp, noise.shape), noise])
