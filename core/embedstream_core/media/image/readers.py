"""Which format an image has, and its header.

Reading a header decodes nothing, not even a PNG whose EXIF may follow its pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from PIL import Image, features

from embedstream_core.errors import Code, ItemError, SetupError, build_decode_error
from embedstream_core.media.headers import find_format, read_by_format
from embedstream_core.media.image.formats.avif import open_avif
from embedstream_core.media.image.formats.bmp import open_bmp
from embedstream_core.media.image.formats.gif import open_gif
from embedstream_core.media.image.formats.heic import open_heic, require_heif
from embedstream_core.media.image.formats.jp2 import open_jp2
from embedstream_core.media.image.formats.jpeg import open_jpeg
from embedstream_core.media.image.formats.png import open_png
from embedstream_core.media.image.formats.tiff import open_tiff
from embedstream_core.media.image.formats.webp import open_webp
from embedstream_core.media.image.opened_image import OpenedImage

__all__ = ["READERS", "read_header", "require_decoders"]

# The parts of Pillow that a build of one's own may lack.
_FEATURES = {"AVIF": "avif", "TIFF": "libtiff", "JP2": "jpg_2000"}

# What a file with another major brand can be read as (ISO/IEC 14496-12, 4.3).
_BRANDS = rb"....ftyp(?:mif1|msf1|miaf)....(?:....){0,16}?"

READERS: dict[str, tuple[bytes, Callable[[bytes], OpenedImage]]] = {
    "JPEG": (rb"\xff\xd8\xff", open_jpeg),
    "PNG": (rb"\x89PNG\r\n\x1a\n", open_png),
    "WEBP": (rb"RIFF....WEBP", open_webp),
    "GIF": (rb"GIF8[79]a", open_gif),
    "BMP": (rb"BM", open_bmp),
    "TIFF": (rb"II[*+]\0|MM\0[*+]", open_tiff),
    "JP2": (rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51", open_jp2),
    "AVIF": (rb"....ftyp(?:avi[fs]|MA1[AB])|" + _BRANDS + rb"avi[fs]", open_avif),
    "HEIC": (rb"....ftyp(?:hei[cxms]|hev[cxms]|mif1|msf1)", open_heic),
}
"""How a file of each format begins, as a regular expression, and what reads its header.

An AVIF may begin as a HEIC does, so it comes before.
"""


def require_decoders(formats: Sequence[str]) -> None:
    """Check that this machine can decode images of these formats.

    Raises:
        MissingExtra: HEIC is one of them, and its package is not installed.
        SetupError: Pillow was built without one of them.
    """
    if "HEIC" in formats:
        require_heif()
    for name, feature in _FEATURES.items():
        if name in formats and not features.check(feature):
            raise SetupError(
                f"decode.formats has {name}, which this build of Pillow lacks; install Pillow's "
                "wheel, or remove the format"
            )


def read_header(content: bytes, formats: tuple[str, ...]) -> OpenedImage:
    """Identify an image's format by its first bytes, and read its header.

    Raises:
        ItemError: none of the formats, of a kind that is not decoded here, or broken.
    """
    readers = {name: READERS[name] for name in READERS if name in formats}
    try:
        found = find_format(content, READERS)
        if found is not None and found not in readers:
            message = f"the image is of the format {found}; decode.formats has {', '.join(formats)}"
            raise build_decode_error(Code.IMAGE_UNSUPPORTED, message)
        return read_by_format(content, readers, modality="image")
    except Image.DecompressionBombError as error:
        raise build_decode_error(Code.IMAGE_TOO_LARGE, str(error)) from None
    except (ItemError, MemoryError):
        raise
    except Exception as error:
        message = f"the header cannot be read: {type(error).__name__}: {error}"
        raise build_decode_error(Code.IMAGE_CORRUPT, message) from error
