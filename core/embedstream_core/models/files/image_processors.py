"""What a folder of transformers says of its pictures, as a `Preprocessing`.

transformers itself reads the folder, so what a file leaves out is what the processor's class has as
its default. Each setting is then done here or refused by its name. Classes also do things of their
own that no setting shows, so in the end both prepare a picture, and have to agree.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from embedstream_core.errors import SetupError, explain
from embedstream_core.extras import require_extra
from embedstream_core.media.image.decode import DecodeLimits, Preprocessing, open_image, render
from embedstream_core.media.image.preprocessing import CropMode, Interpolation

__all__ = ["PROCESSOR_FILES", "read_preprocessing"]

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")

# By Pillow's number, or by torchvision's name.
_RESAMPLE: Mapping[object, Interpolation] = {
    0: "nearest",
    1: "lanczos",
    2: "bilinear",
    3: "bicubic",
    "nearest": "nearest",
    "nearest-exact": "nearest",
    "lanczos": "lanczos",
    "bilinear": "bilinear",
    "bicubic": "bicubic",
}

# Mean difference of a picture's levels, of 0 to 255. It is 0 for most classes, 0.3 for DINOv3's,
# which rescales first, and 13 for LeViT's, which scales a margin more than its settings say.
_TOLERANCE = 3.0

# Below it ConvNeXT scales a margin too, and cuts it off; from it on, it squeezes.
_CONVNEXT_PX = 384

# Settings that are translated here; others are named where the pictures differ.
_TRANSLATED = {
    "crop_pct",
    "crop_size",
    "do_center_crop",
    "do_convert_rgb",
    "do_normalize",
    "do_rescale",
    "do_resize",
    "image_mean",
    "image_processor_type",
    "image_std",
    "resample",
    "rescale_factor",
    "size",
}


def read_preprocessing(folder: Path) -> Preprocessing | None:
    """What the folder's image processor does to a picture; None where the folder has none.

    Raises:
        SetupError: it asks for what is not done here, or cannot be read.
        MissingExtra: transformers is not installed.
    """
    if not _has_processor(folder):
        return None
    processor = _open_processor(folder)
    settings = processor.to_dict()
    preprocessing = _Settings(folder, settings).translate()
    if problem := _compare(processor, preprocessing):
        others = [key for key in settings if settings[key] and key not in _TRANSLATED]
        of_keys = f" with {', '.join(others)}" if others else ""
        raise _refusal(folder, f"{type(processor).__name__}{of_keys} {problem}")
    return preprocessing


def _has_processor(folder: Path) -> bool:
    old, new = (folder / name for name in PROCESSOR_FILES)
    try:
        return old.exists() or (new.exists() and "image_processor" in json.loads(new.read_bytes()))
    except ValueError as error:
        raise SetupError(f"'{new}' cannot be read as JSON ({error}); write it again") from error


def _open_processor(folder: Path) -> Any:
    with require_extra("huggingface", feature="encoder 'huggingface'"):
        import transformers
    try:
        return transformers.AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        # transformers raises types of many kinds on settings that it cannot read.
        raise _refusal(folder, f"it cannot be opened ({explain(error)})") from error


def _refusal(folder: Path, what: str) -> SetupError:
    return SetupError(
        f"what the image processor of '{folder}' does is not done here: {what}; declare the "
        "nearest to it as encoder.preprocessing, or wrap the model in a function that does it "
        "(module:function)"
    )


class _Geometry(NamedTuple):
    resize_px: int
    crop_px: int
    crop_mode: CropMode


class _Settings(NamedTuple):
    """A processor's settings with its class's defaults, as `to_dict` gives them."""

    folder: Path
    values: Mapping[str, Any]

    def translate(self) -> Preprocessing:
        if not self.values.get("do_resize"):
            raise self._refusal("do_resize", "false: its pictures have many sizes")
        if self.values.get("do_flip_channel_order"):
            raise self._refusal("do_flip_channel_order")
        resample = self.values.get("resample")
        # Of both libraries' enumerations.
        resample = getattr(resample, "value", resample)
        if resample not in _RESAMPLE:
            raise self._refusal("resample")
        resize_px, crop_px, crop_mode = self._geometry()
        mean, std = self._scale()
        return Preprocessing(resize_px, crop_px, _RESAMPLE[resample], mean, std, crop_mode)

    def _refusal(self, key: str, what: str = "") -> SetupError:
        return _refusal(self.folder, f"{key} {what or self.values.get(key)}")

    def _geometry(self) -> _Geometry:
        side, mode = self._size()
        crop_pct = self.values.get("crop_pct")
        if crop_pct is not None and not 0 < crop_pct <= 1:
            raise self._refusal("crop_pct")
        if not self.values.get("do_center_crop"):
            if mode == "squash":
                return _Geometry(side, side, mode)
            if crop_pct is None:
                raise self._refusal(
                    "size", f"{self.values['size']} without do_center_crop: no square"
                )
            if side >= _CONVNEXT_PX:
                return _Geometry(side, side, "squash")
            return _Geometry(int(side / crop_pct), side, mode)
        scaled = side if crop_pct is None else int(side / crop_pct)
        match self.values.get("crop_size"):
            case {"height": int(height), "width": int(width)} if height == width <= scaled:
                return _Geometry(scaled, height, mode)
        raise self._refusal("crop_size", f"{self.values.get('crop_size')} of a size of {scaled}")

    def _size(self) -> tuple[int, CropMode]:
        match self.values.get("size"):
            case {"shortest_edge": int(side), **rest} if not rest:
                return side, "center"
            case {"height": int(height), "width": int(width), **rest} if height == width:
                return height, "squash"
        raise self._refusal("size")

    def _scale(self) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        """Mean and deviation for values of 0 to 1, whatever they are scaled to."""
        factor = self.values.get("rescale_factor") if self.values.get("do_rescale") else 1.0
        if not factor or factor < 0:
            raise self._refusal("rescale_factor")
        scale = 255 * factor
        normalizes = self.values.get("do_normalize")
        mean = self._channels("image_mean") if normalizes else (0.0, 0.0, 0.0)
        std = self._channels("image_std") if normalizes else (1.0, 1.0, 1.0)
        if 0 in std:
            raise self._refusal("image_std")
        (a, b, c), (d, e, f) = mean, std
        return (a / scale, b / scale, c / scale), (d / scale, e / scale, f / scale)

    def _channels(self, key: str) -> tuple[float, float, float]:
        match self.values.get(key):
            case float(one) | int(one) | (one,):
                return one, one, one
            case (red, green, blue):
                return red, green, blue
        raise self._refusal(key)


def _compare(processor: Any, preprocessing: Preprocessing) -> str:
    """How a wide picture differs when the processor prepares it; empty where it does not."""
    picture = _wide_picture(preprocessing.resize_px)
    try:
        theirs = np.asarray(processor(images=picture, return_tensors="pt")["pixel_values"])
    except Exception as error:
        # Each class has code of its own.
        return f"fails on a picture ({explain(error)})"
    file = io.BytesIO()
    picture.save(file, "PNG")
    ours = render(open_image(file.getvalue(), DecodeLimits()), preprocessing).pixels
    side = preprocessing.crop_px
    if theirs.shape != (1, 3, side, side):
        return f"makes {theirs.shape} of a picture"
    mean, std = (np.asarray(value) for value in (preprocessing.mean, preprocessing.std))
    levels = (theirs[0].transpose(1, 2, 0) * std + mean) * 255
    apart = float(np.abs(levels - ours).mean())
    return f"prepares pictures in a way of its own ({apart:.0f} levels off)" * (apart > _TOLERANCE)


def _wide_picture(resize_px: int) -> Image.Image:
    """A smooth picture, half again as wide as high: what differs then is not how it is scaled."""
    colours: npt.NDArray[np.uint8] = np.random.default_rng(0).integers(
        256, size=(4, 6, 3), dtype=np.uint8
    )
    size = (resize_px * 15 // 8, resize_px * 5 // 4)
    return Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC)
