"""A bug in embedstream itself, in every process with this folder on its PYTHONPATH: an image that
is 41 pixels wide cannot be described."""

from embedstream_core.media.image.modality import ImageModality
from embedstream_core.media.image.opened_image import OpenedImage
from embedstream_core.records import Media

_describe = ImageModality.describe


def _fail_to_describe(self: ImageModality, header: OpenedImage) -> Media:
    if header.width == 41:
        raise ZeroDivisionError("a bug, met at http://me:c4n4ry@x.test/")
    return _describe(self, header)


ImageModality.describe = _fail_to_describe  # type: ignore[method-assign]
