"""What a GPU decodes equals what the CPU does, and it gets nothing that libjpeg refuses."""

from __future__ import annotations

import io
import random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from embedstream_core.errors import ItemError, SetupError
from embedstream_core.media.image import gpu_jpeg
from embedstream_core.media.image.decode import apply_orientation, open_image
from embedstream_core.media.image.fast_jpeg import find_crops, is_sound, render_quickly
from embedstream_core.media.image.formats.jpeg import strip_baseline
from embedstream_core.media.image.gpu_jpeg import (
    CheckedJpeg,
    TorchvisionDecoder,
    check_jpeg,
    open_gpu_decoder,
)
from embedstream_core.media.image.opened_image import Pixels
from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.settings import DecodeSettings, Fidelity
from jpeg_decoders import CPU, DEVICES
from pictures import encoded, mutated, real_pictures

BILINEAR = ImagePreprocessing(256, 224, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
BICUBIC = ImagePreprocessing(235, 200, "bicubic", BILINEAR.mean, BILINEAR.std)
BOTH = (BILINEAR, BICUBIC)
SMALL = ImagePreprocessing(48, 48, "bilinear", BILINEAR.mean, BILINEAR.std)
# nvJPEG repeats each sample of chroma, and libjpeg interpolates between them. What that makes of
# these images, with libjpeg's own plain upsampling: 13 levels at most, 0.9 on average.
MOST_LEVELS = {"cpu": 1, "cuda": 16}
MEAN_LEVELS = {"cpu": 0.1, "cuda": 1.2}


def photo(size: tuple[int, int] = (500, 375), mode: str = "RGB", **options: Any) -> bytes:
    image = Image.open(io.BytesIO(real_pictures()["chelsea.png"])).convert(mode)
    return encoded(image.resize(size), "JPEG", **options)


def checked(
    content: bytes, *preprocessings: ImagePreprocessing, fidelity: Fidelity = "exact"
) -> CheckedJpeg | None:
    opened = open_image(content, DecodeSettings())
    crops = find_crops(opened, preprocessings or (BILINEAR,), fidelity)
    return check_jpeg(content, opened, crops) if crops else None


def with_segment(marker: int, data: bytes) -> bytes:
    content = photo()
    return content[:2] + bytes([0xFF, marker]) + (len(data) + 2).to_bytes(2) + data + content[2:]


def oriented(orientation: int, size: tuple[int, int]) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return photo(size, exif=exif)


COMMON = {
    "photo": photo(),
    "portrait": photo((300, 451)),
    "small": photo((40, 30)),
    "one pixel": photo((1, 1)),
    "odd sides": photo((333, 251)),
    "4:4:4": photo(subsampling="4:4:4"),
    "4:2:2": photo(subsampling="4:2:2"),
    "restarts": photo(restart_marker_blocks=3),
    "quality 5": photo(quality=5),
    "own tables": photo(optimize=True),
    "comment": photo(comment=b"hello"),
    "broken EXIF": with_segment(0xE1, b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 40),
    "trailing bytes": photo() + b"\xff\xd8more",
    "turned": oriented(6, (300, 451)),
    **{name: real_pictures()[name] for name in ("china.jpg", "flower.jpg", "rocket.jpg")},
}


@pytest.mark.parametrize("device", DEVICES)
class TestDevices:
    def test_pixels_are_those_of_the_cpu(self, device: torch.device) -> None:
        jpegs = {name: checked(content, *BOTH) for name, content in COMMON.items()}
        assert None not in jpegs.values()

        rendered = TorchvisionDecoder(device).decode([one for one in jpegs.values() if one])

        for (name, content), found in zip(COMMON.items(), rendered, strict=True):
            opened = open_image(content, DecodeSettings())
            assert found is not None, name
            for one, expected in zip(found, render_quickly(content, opened, *BOTH), strict=True):
                assert one.dtype == np.uint8
                turned = apply_orientation(one, opened.orientation).astype(int)
                difference = np.abs(turned - expected)
                assert difference.max() <= MOST_LEVELS[device.type], name
                assert difference.mean() <= MEAN_LEVELS[device.type], name

    def test_an_image_of_another_size_than_its_header_is_refused(
        self, device: torch.device
    ) -> None:
        jpeg = checked(photo())
        assert jpeg is not None
        other = CheckedJpeg(jpeg.content, (375, 500), jpeg.crops)

        before, refused, after = TorchvisionDecoder(device).decode([jpeg, other, jpeg])

        assert refused is None
        assert before is not None
        assert after is not None
        np.testing.assert_array_equal(before[0], after[0])

    def test_a_batch_with_a_broken_image_raises(self, device: torch.device) -> None:
        jpeg = checked(photo())
        assert jpeg is not None
        broken = CheckedJpeg(jpeg.content[:200], jpeg.size, jpeg.crops)
        decoder = TorchvisionDecoder(device)

        with pytest.raises(RuntimeError):
            decoder.decode([jpeg, broken])

        decoder.check()
        assert decoder.decode([jpeg])[0] is not None

    def test_the_probe_is_decoded(self, device: torch.device) -> None:
        assert open_gpu_decoder(device) is open_gpu_decoder(device)


def test_floats_are_cut_as_bytes_are() -> None:
    """A GPU scales floats; a bicubic kernel overshoots at the edges of black and white."""
    stripes = np.zeros((300, 300, 3), np.uint8)
    stripes[:, ::20] = 255
    opened = open_image(encoded(Image.fromarray(stripes), "JPEG"), DecodeSettings())
    pixels = torch.from_numpy(stripes).permute(2, 0, 1)
    for crop in find_crops(opened, BOTH, "exact") or ():
        difference = crop.cut(pixels.float()).numpy().astype(int) - crop.cut(pixels).numpy()
        assert np.abs(difference).max() <= 1


@pytest.mark.parametrize(
    "content",
    [
        photo(progressive=True),
        photo(mode="L"),
        photo(mode="CMYK"),
        photo(keep_rgb=True),
        photo((3000, 100)),
        encoded(Image.new("RGB", (300, 300)), "PNG"),
        photo()[:-2],
        photo()[:-300] + b"\xff\xd9",
        photo().replace(b"\xff\xda", b"\0\xff\xda"),
        photo().replace(b"\xff\xda", b"\xff\xdc\0\4\1\x77\xff\xda"),
        photo()[:-300] + b"\xff\xd0" + photo()[-300:],
    ],
    ids=[
        "progressive",
        "grey",
        "CMYK",
        "RGB",
        "banner",
        "PNG",
        "no end",
        "truncated",
        "a byte between segments",
        "number of lines",
        "a restart that is none",
    ],
)
def test_other_images_are_for_the_cpu(content: bytes) -> None:
    assert checked(content) is None


def test_sequential_jpegs_of_several_scans_are_for_the_cpu() -> None:
    content = photo()
    scan = content.index(b"\xff\xda")
    more = content[:-2] + content[scan:]

    assert checked(content) is not None
    assert strip_baseline(more) is None


def test_wide_tables_are_for_the_cpu() -> None:
    content = photo()
    start = content.index(b"\xff\xdb")
    values = content[start + 5 : start + 69]
    wide = b"\xff\xdb" + (2 + 129).to_bytes(2) + b"\x10" + b"".join(b"\0%c" % one for one in values)

    assert strip_baseline(content) is not None
    assert strip_baseline(content[:start] + wide + content[start:]) is None


def test_a_large_image_for_the_fast_fidelity_is_for_the_cpu() -> None:
    content = photo((1600, 1200))

    assert checked(content) is not None
    assert checked(content, fidelity="fast") is None


def test_a_decoder_of_other_pixels_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(self: TorchvisionDecoder, jpegs: list[CheckedJpeg]) -> list[list[Pixels]]:
        side = jpegs[0].crops[0].preprocessing.crop_px
        return [[np.zeros((side, side, 3), np.uint8)]]

    monkeypatch.setattr(TorchvisionDecoder, "decode", decode)
    open_gpu_decoder.cache_clear()

    with pytest.raises(SetupError, match=r"decoded to other pixels; set decode\.device to cpu"):
        open_gpu_decoder(CPU)


def test_without_the_library_that_checks_it_does_not_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gpu_jpeg, "HAS_LIBRARY", False)
    open_gpu_decoder.cache_clear()

    with pytest.raises(SetupError, match="pip install simplejpeg, or set"):
        open_gpu_decoder(CPU)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_cuda_the_decoder_names_the_way_out() -> None:
    with pytest.raises(SetupError) as caught:
        open_gpu_decoder(torch.device("cuda", 0))

    message = str(caught.value)
    assert message.startswith("decode.device is cuda, but torchvision cannot decode a JPEG on cuda")
    assert message.endswith("; set decode.device to cpu")


def flipped(content: bytes, source: random.Random) -> bytes:
    """Change a bit of the scan, or leave out a part of it."""
    data = bytearray(content)
    place = source.randrange(content.index(b"\xff\xda") + 14, len(content) - 2)
    if source.random() < 0.5:
        data[place] ^= 1 << source.randrange(8)
    else:
        del data[place : place + source.randint(1, 64)]
    return bytes(data)


@pytest.mark.parametrize("change", [mutated, flipped])
def test_a_gpu_gets_only_what_the_cpu_decodes_to_the_same_pixels(change: Any) -> None:
    """Its decoder may be lenient: every image that it gets is sound, with and without metadata."""
    source = random.Random(0)
    original = photo((160, 120), exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0")
    decoder = TorchvisionDecoder(CPU)
    outcomes = set()
    for _ in range(300):
        content = change(original, source)
        try:
            opened = open_image(content, DecodeSettings())
        except ItemError:
            continue
        jpeg = checked(content, SMALL)
        try:
            (expected,) = render_quickly(content, opened, SMALL)
        except ItemError:
            outcomes.add("refused")
            assert jpeg is None
            continue
        if jpeg is None:
            outcomes.add("for the CPU")
            continue
        outcomes.add("for the GPU")
        assert is_sound(bytes(jpeg.content), opened)
        (found,) = decoder.decode([jpeg])
        assert found is not None
        difference = apply_orientation(found[0], opened.orientation).astype(int) - expected
        assert np.abs(difference).max() <= 1
    assert outcomes == {"refused", "for the CPU", "for the GPU"}
