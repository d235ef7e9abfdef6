"""Common JPEGs, decoded, scaled and cropped in batches on a GPU.

libjpeg checks each of them first: a GPU's decoder does not report broken data. Everything that the
GPU does not decode, `render_quickly` does.
"""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np
import torch
from PIL import Image

from embedstream_core.errors import SetupError, explain
from embedstream_core.media.image.decode import open_image
from embedstream_core.media.image.fast_jpeg import HAS_LIBRARY, Crop, is_sound
from embedstream_core.media.image.formats.jpeg import strip_baseline
from embedstream_core.media.image.modality import make_probe_images
from embedstream_core.media.image.opened_image import OpenedImage, Pixels
from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.settings import DecodeSettings

__all__ = ["BatchDecoder", "CheckedJpeg", "TorchvisionDecoder", "check_jpeg", "open_gpu_decoder"]

_PROBE_PX = 64
# Decoders differ by a level or two in a grey ramp. A wrong image differs by 60 on average.
_MAX_PROBE_LEVELS = 4


@dataclass(frozen=True, slots=True)
class CheckedJpeg:
    """A baseline JPEG that libjpeg found sound, without its metadata, and what to cut from it.

    `size` is (across, down), in pixels.
    """

    content: bytearray
    size: tuple[int, int]
    crops: Sequence[Crop]


class BatchDecoder(Protocol):
    """Decodes batches of JPEGs on a device. Called from one thread at a time."""

    def decode(self, jpegs: Sequence[CheckedJpeg]) -> list[list[Pixels] | None]:
        """Return, for each, its crops as stored, of shape (crop_px, crop_px, 3).

        None for one that is not decoded to its header's size. The arrays may be views of a larger
        one.

        Raises:
            RuntimeError: one of them is refused, memory is short, or the device has failed.
        """

    def check(self) -> None:
        """Raise RuntimeError if the device no longer works."""


def check_jpeg(content: bytes, opened: OpenedImage, crops: Sequence[Crop]) -> CheckedJpeg | None:
    """Return what a GPU decodes of an image that was opened from `content`; None for nothing.

    Only libjpeg's own verdict shows what `render_quickly` would refuse: data that end early or have
    a flipped bit look like any others. A GPU gets no metadata, because broken ones crashed nvJPEG
    (NVIDIA/CUDALibrarySamples#116).
    """
    baseline = strip_baseline(content)
    if baseline is None or not is_sound(content, opened):
        return None
    return CheckedJpeg(baseline, opened.size, crops)


class TorchvisionDecoder:
    """Decodes by torchvision: on a GPU by nvJPEG, on a CPU by libjpeg."""

    def __init__(self, device: torch.device) -> None:
        from torchvision.io import ImageReadMode, decode_jpeg

        self._decode_jpeg, self._rgb = decode_jpeg, ImageReadMode.RGB
        self._device = device
        # torchvision's decoder does not wait for work that is queued on its caller's stream, and
        # writes into memory that this work may still read (pytorch/vision#9606). A stream of its
        # own, without work when a batch begins, has no such memory.
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def decode(self, jpegs: Sequence[CheckedJpeg]) -> list[list[Pixels] | None]:
        """Decode all, then scale one after the other; return once the device has finished."""
        contents = [torch.frombuffer(one.content, dtype=torch.uint8) for one in jpegs]
        crops: dict[ImagePreprocessing, list[torch.Tensor]] = defaultdict(list)
        is_whole = []
        with torch.cuda.stream(self._stream):
            images = self._decode_jpeg(contents, mode=self._rgb, device=self._device)
            for one, image in zip(jpegs, images, strict=True):
                is_whole.append(image.shape == (3, one.size[1], one.size[0]))
                if is_whole[-1]:
                    pixels = image if self._stream is None else image.float()
                    for crop in one.crops:
                        crops[crop.preprocessing].append(crop.cut(pixels))
            # Copying to the host waits for the stream.
            batches = {key: iter(torch.stack(cut).cpu().numpy()) for key, cut in crops.items()}
        return [
            [next(batches[crop.preprocessing]) for crop in one.crops] if whole else None
            for one, whole in zip(jpegs, is_whole, strict=True)
        ]

    def check(self) -> None:
        """Wait for the GPU, which reports an earlier failure of whatever it was doing."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


@cache
def open_gpu_decoder(device: torch.device) -> TorchvisionDecoder:
    """Return this process's decoder on a GPU, after it has decoded an image as the CPU does.

    Raises:
        SetupError: torchvision has no decoder for GPUs, or it does not work here.
    """
    if not HAS_LIBRARY:
        raise SetupError(
            "decode.device is cuda, but simplejpeg, which checks the images, is not installed; "
            "pip install simplejpeg, or set decode.device to cpu"
        )
    try:
        decoder = TorchvisionDecoder(device)
        _compare_probe(decoder)
    except Exception as error:
        raise SetupError(
            f"decode.device is cuda, but torchvision cannot decode a JPEG on {device}: "
            f"{explain(error)}; set decode.device to cpu"
        ) from error
    return decoder


def _compare_probe(decoder: BatchDecoder) -> None:
    """Raise ValueError unless a grey ramp is decoded to what was encoded."""
    ramp = make_probe_images(_PROBE_PX)[0]
    file = io.BytesIO()
    Image.fromarray(ramp).save(file, "JPEG", quality=95)
    preprocessing = ImagePreprocessing(_PROBE_PX, _PROBE_PX, "bilinear", (0, 0, 0), (1, 1, 1))
    crop = Crop(preprocessing, (_PROBE_PX, _PROBE_PX), (0, 0))
    jpeg = check_jpeg(file.getvalue(), open_image(file.getvalue(), DecodeSettings()), [crop])
    assert jpeg is not None
    (found,) = decoder.decode([jpeg])
    if found is None or np.abs(found[0].astype(int) - ramp).max() > _MAX_PROBE_LEVELS:
        raise ValueError("a grey ramp is decoded to other pixels")
