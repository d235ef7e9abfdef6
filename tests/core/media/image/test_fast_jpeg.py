"""Common JPEGs are decoded like by Pillow, and Pillow decodes everything else."""

from __future__ import annotations

import io
import random
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision import transforms

from embedstream_core.errors import Code, ItemError
from embedstream_core.media.image import fast_jpeg
from embedstream_core.media.image.opened_image import Pixels
from embedstream_core.media.image.preprocessing import ImagePreprocessing, Interpolation
from embedstream_core.settings import Fidelity
from pictures import encoded, mutated, real_pictures
from rendered import Rendered, render_one, render_one_quickly

BILINEAR = ImagePreprocessing(256, 224, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
PREPROCESSINGS = [
    BILINEAR,
    ImagePreprocessing(255, 224, "bicubic", BILINEAR.mean, BILINEAR.std),
    ImagePreprocessing(224, 224, "bilinear", BILINEAR.mean, BILINEAR.std),
]


def photo(size: tuple[int, int] = (500, 375), **options: Any) -> bytes:
    image = Image.open(io.BytesIO(real_pictures()["chelsea.png"])).convert("RGB")
    return encoded(image.resize(size), "JPEG", **options)


def rendered_quickly(
    content: bytes, preprocessing: ImagePreprocessing = BILINEAR, *, fidelity: Fidelity = "exact"
) -> Rendered:
    return render_one_quickly(content, preprocessing, fidelity=fidelity)


def rendered(content: bytes, preprocessing: ImagePreprocessing = BILINEAR) -> Rendered:
    return render_one(content, preprocessing)


@pytest.fixture
def without_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make it an error to leave an image to `render`."""

    def refuse(*_: object, **__: object) -> list[Pixels]:
        raise AssertionError("this image was left to Pillow")

    monkeypatch.setattr(fast_jpeg, "render", refuse)


common = pytest.mark.usefixtures("without_pillow")


@common
@pytest.mark.parametrize("preprocessing", PREPROCESSINGS, ids=str)
@pytest.mark.parametrize("name", [name for name in real_pictures() if name.endswith("jpg")])
def test_pixels_equal_torchvisions(name: str, preprocessing: ImagePreprocessing) -> None:
    content = real_pictures()[name]
    mode = transforms.InterpolationMode(preprocessing.interpolation)
    transform = transforms.Compose(
        [
            transforms.Resize(preprocessing.resize_px, mode, antialias=True),
            transforms.CenterCrop(preprocessing.crop_px),
        ]
    )
    expected = np.asarray(transform(Image.open(io.BytesIO(content)).convert("RGB")))

    picture = rendered_quickly(content, preprocessing)

    assert np.abs(picture.pixels.astype(int) - expected).max() <= 1
    assert picture.pixels.flags.c_contiguous


@common
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(300, 451), (451, 300)])
def test_orientation_is_undone(orientation: int, size: tuple[int, int]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = photo(size, exif=exif)

    picture = rendered_quickly(content)

    expected = rendered(content)
    assert (picture.width, picture.height) == (expected.width, expected.height)
    assert np.abs(picture.pixels.astype(int) - expected.pixels).max() <= 1


def with_sampling(factors: int) -> bytes:
    """Return a square JPEG with these sampling factors of luma; those of chroma are 1x1."""
    content = bytearray(photo((256, 256), subsampling="4:2:0"))
    content[content.index(b"\xff\xc0") + 11] = factors
    return bytes(content)


@pytest.mark.parametrize(
    "factors", [0x11, 0x12, 0x21, 0x22, 0x14, 0x41, 0x24, 0x42, 0x44, 0x13, 0x31]
)
def test_any_sampling_is_decoded_as_by_pillow(factors: int) -> None:
    content = with_sampling(factors)
    found, expected = outcome(content, rendered_quickly), outcome(content, rendered)
    assert found == expected
    # With as many blocks as were stored, the image is whole.
    if factors in (0x22, 0x14, 0x41):
        assert found is None
        difference = rendered_quickly(content).pixels.astype(int) - rendered(content).pixels
        assert np.abs(difference).max() <= 1


@common
@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((40, 30), {}),
        ((1, 1), {}),
        ((500, 375), {"progressive": True}),
        ((500, 375), {"subsampling": "4:4:4"}),
        ((500, 375), {"quality": 5}),
    ],
    ids=str,
)
def test_any_common_jpeg_is_decoded_as_by_pillow(
    size: tuple[int, int], options: dict[str, Any]
) -> None:
    content = photo(size, **options)
    difference = rendered_quickly(content).pixels.astype(int) - rendered(content).pixels
    assert np.abs(difference).max() <= 1


def converted(mode: str, format_: str = "JPEG") -> bytes:
    return encoded(Image.open(io.BytesIO(photo())).convert(mode), format_)


def of_interpolation(name: Interpolation) -> ImagePreprocessing:
    return ImagePreprocessing(256, 224, name, BILINEAR.mean, BILINEAR.std)


@pytest.mark.parametrize(
    ("content", "preprocessing"),
    [
        (converted("CMYK"), BILINEAR),
        (converted("L"), BILINEAR),
        (converted("RGB", "PNG"), BILINEAR),
        (photo((3000, 100)), BILINEAR),
        (photo(), of_interpolation("nearest")),
        (photo(), of_interpolation("lanczos")),
    ],
    ids=["CMYK", "grey", "PNG", "banner", "nearest", "lanczos"],
)
def test_pillow_decodes_everything_else(content: bytes, preprocessing: ImagePreprocessing) -> None:
    picture = rendered_quickly(content, preprocessing)
    np.testing.assert_array_equal(picture.pixels, rendered(content, preprocessing).pixels)


def test_fidelity_fast_scales_a_large_jpeg_in_the_decoder() -> None:
    content = photo((1600, 1200))
    expected = render_one(content, BILINEAR, fidelity="fast")

    picture = rendered_quickly(content, fidelity="fast")

    np.testing.assert_array_equal(picture.pixels, expected.pixels)


def test_without_the_library_pillow_decodes_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_jpeg, "_IS_FASTER", False)
    content = photo()
    np.testing.assert_array_equal(rendered_quickly(content).pixels, rendered(content).pixels)


def test_a_second_header_does_not_pass_the_limits() -> None:
    content = photo((100, 80))
    start = content.index(b"\xff\xc0")
    length = int.from_bytes(content[start + 2 : start + 4])
    header = bytearray(content[start : start + 2 + length])
    header[5:9] = (60_000).to_bytes(2) + (60_000).to_bytes(2)
    # Pillow uses the last one before the scan, and libjpeg refuses a second one.
    twice = content[:start] + bytes(header) + content[start:]

    with pytest.raises(ItemError) as caught:
        rendered_quickly(twice)

    assert caught.value.code in (Code.IMAGE_CORRUPT, Code.IMAGE_TOO_LARGE)


def outcome(content: bytes, render_: Any) -> tuple[Code, str] | None:
    try:
        render_(content)
    except ItemError as error:
        return error.code, error.message
    return None


def test_broken_jpegs_fail_as_with_pillow() -> None:
    source = random.Random(0)
    original = photo((160, 120))
    outcomes = set()
    for _ in range(500):
        content = mutated(original, source)
        found = outcome(content, rendered_quickly)
        assert found == outcome(content, rendered)
        outcomes.add(found and found[0])
    assert outcomes >= {None, Code.IMAGE_CORRUPT}
