"""Which format an image has, and its header.

Reading a header decodes nothing, not even a PNG whose EXIF may follow its pixels.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial

from PIL import Image, UnidentifiedImageError

from embedstream_core.errors import Code, ItemError, decode_error
from embedstream_core.media.image.bmp import open_bmp
from embedstream_core.media.image.gif import open_gif
from embedstream_core.media.image.jpeg import open_jpeg
from embedstream_core.media.image.opened_image import OpenedImage, read_orientation
from embedstream_core.media.image.png import open_png
from embedstream_core.media.image.webp import open_webp
from embedstream_core.settings import DecodeLimits

__all__ = ["read_header"]

_SIGNATURES: dict[str, tuple[bytes, ...]] = {
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "WEBP": (b"RIFF",),
    "GIF": (b"GIF87a", b"GIF89a"),
    "BMP": (b"BM",),
}


def read_header(content: bytes, limits: DecodeLimits) -> OpenedImage:
    """Identify an image's format by its first bytes, and read its header.

    Raises:
        ItemError: none of the formats, of a kind that is not decoded here, or broken.
    """
    readers: dict[str, Callable[[bytes], OpenedImage]] = {
        "JPEG": partial(open_jpeg, max_scans=limits.max_scans),
        "PNG": open_png,
        "WEBP": open_webp,
        "GIF": open_gif,
        "BMP": open_bmp,
    }
    matching = (name for name, starts in _SIGNATURES.items() if content.startswith(starts))
    found = next(matching, "")
    try:
        if found in limits.formats and (found != "WEBP" or content[8:12] == b"WEBP"):
            return readers[found](content)
        # Pillow reads the headers of all other formats.
        others = [name for name in limits.formats if name not in readers]
        with Image.open(io.BytesIO(content), formats=others) as image:
            return OpenedImage(
                image.format or "",
                image.size,
                lambda: Image.open(io.BytesIO(content), formats=others),
                read_orientation(image.info),
            )
    except UnidentifiedImageError:
        raise decode_error(
            Code.IMAGE_UNSUPPORTED,
            f"the bytes, starting {content[:12]!r}, are none of {', '.join(limits.formats)}",
        ) from None
    except Image.DecompressionBombError as error:
        raise decode_error(Code.IMAGE_TOO_LARGE, str(error)) from None
    except (ItemError, MemoryError):
        raise
    except Exception as error:
        raise decode_error(
            Code.IMAGE_CORRUPT, f"the header cannot be read: {type(error).__name__}: {error}"
        ) from error
