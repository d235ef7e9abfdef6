"""GIF: the first frame, on a transparent screen."""

from __future__ import annotations

import io

from PIL import GifImagePlugin, Image

from embedstream_core.media.image.opened_image import OpenedImage

__all__ = ["open_gif"]


def open_gif(content: bytes) -> OpenedImage:
    """Read the header of a GIF; no pixel is decoded."""

    def decode() -> Image.Image:
        image = GifImagePlugin.GifImageFile(io.BytesIO(content))
        frame = image.tile[0].extents
        if frame is None or frame == (0, 0, *image.size):
            return image
        # Pillow fills the rest of the screen with the palette's first colour.
        screen = Image.new("RGBA", image.size)
        screen.paste(image.convert("RGBA").crop(frame), frame)
        return screen

    return OpenedImage("GIF", GifImagePlugin.GifImageFile(io.BytesIO(content)).size, decode)
