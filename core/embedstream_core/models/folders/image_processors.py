"""Read the image processor in a folder of transformers as a `ImagePreprocessing`.

transformers itself reads the folder, so settings that a file leaves out have the defaults of the
processor's class. Each setting that the class reads is then translated, known to change no image
that is accepted, or refused by its name. Classes also do things that no setting shows, so in the
end both sides prepare images and must agree.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from embedstream_core.errors import SetupError, explain
from embedstream_core.extras import require_extra
from embedstream_core.media.image.decode import open_image, render
from embedstream_core.media.image.preprocessing import CropMode, ImagePreprocessing, Interpolation
from embedstream_core.settings import DecodeSettings

__all__ = ["PROCESSOR_FILES", "read_inputs"]

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")

# Mean difference of an image's levels, which are 0 to 255. It is 0 for most classes, 0.3 for
# DINOv3's, which rescales first, and 13 for LeViT's, which scales a margin that no setting shows.
_TOLERANCE = 3.0

# Below this size, ConvNeXT scales a margin too and cuts it off; from it on, it squashes.
_CONVNEXT_PX = 384

# Images are opened in RGB, whatever `do_convert_rgb` says.
_TRANSLATED = {
    *("crop_pct", "crop_size", "do_center_crop", "do_convert_rgb", "do_flip_channel_order"),
    *("do_normalize", "do_rescale", "do_resize", "image_mean", "image_std", "resample"),
    *("rescale_factor", "size"),
}

# Settings that change no pixel of one image that is made a square of the model's size.
_HARMLESS = {
    # The names of classes.
    *("feature_extractor_type", "image_processor_type", "processor_class"),
    # Where and in which layout the result is.
    *("data_format", "device", "disable_grouping", "input_data_format", "return_tensors"),
    # How a single number is read, which `size` and `crop_size` show already.
    "default_to_square",
    # `do_pad` alone brings the images of a batch to one size, which they have; `pad_size` counts.
    "do_pad",
    # Labels, boxes and masks of training and segmentation.
    *("class_info_file", "do_convert_annotations", "do_reduce_labels", "format", "ignore_index"),
    *("mask_pad_size", "mask_size", "metadata", "num_labels", "num_text", "reduce_labels"),
    *("repo_path", "return_segmentation_masks"),
    # The tokens that stand for an image in a text.
    *("image_seq_length", "image_seq_len", "num_image_tokens"),
    # Numbers of parts, and how they are chosen, for switches that are refused where they are on.
    *("max_patches", "min_patches", "pan_and_scan_max_num_crops", "pan_and_scan_min_crop_size"),
    *("pan_and_scan_min_ratio_to_activate", "use_covering_area_grid"),
    # Depths that are measured in another way, next to the image.
    "prompt_scale_to_meter",
    # FLAVA's second image and its mask.
    *("input_size_patches", "return_codebook_pixels", "return_image_mask", "total_mask_patches"),
    *("mask_group_max_aspect_ratio", "mask_group_max_patches", "mask_group_min_aspect_ratio"),
    "mask_group_min_patches",
}
_CODEBOOK = "codebook_"

# Multiples of one pixel.
_MULTIPLES = ("ensure_multiple_of", "size_divisor")

# The shapes of the images that both sides prepare, in parts of the size that they are scaled to.
_SHAPES = ((15 / 8, 5 / 4), (5 / 4, 15 / 8), (3, 1 / 2), (1 / 2, 5 / 8))


def read_inputs(folder: Path) -> tuple[ImagePreprocessing, ...]:
    """Return the preprocessing of the folder's image processor; none if the folder has none.

    Raises:
        SetupError: a setting is not supported, or the processor cannot be read.
        MissingExtra: transformers is not installed.
    """
    old, new = (folder / name for name in PROCESSOR_FILES)
    try:
        if not old.exists() and not (
            new.exists() and "image_processor" in json.loads(new.read_bytes())
        ):
            return ()
    except ValueError as error:
        raise SetupError(f"'{new}' cannot be read as JSON ({error}); write it again") from error
    with require_extra("huggingface", feature="encoder 'huggingface'"):
        import transformers
    try:
        processor: Any = transformers.AutoImageProcessor.from_pretrained(
            folder, trust_remote_code=False
        )
    except Exception as error:
        # transformers raises many types for settings that it cannot read.
        raise _build_refusal(folder, f"it cannot be opened ({explain(error)})") from error
    settings = processor.to_dict()
    preprocessing = _Settings(folder, settings).translate()
    if unknown := _list_unknown(processor, settings):
        given = ", ".join(f"{key} {settings[key]}" for key in unknown)
        raise _build_refusal(folder, f"{type(processor).__name__} with {given}")
    for across, down in _SHAPES:
        if problem := _compare(processor, preprocessing, (across, down)):
            raise _build_refusal(folder, f"{type(processor).__name__} {problem}")
    return (preprocessing,)


def _list_unknown(processor: Any, settings: Mapping[str, Any]) -> list[str]:
    """Return the settings that are on, that the class reads, and whose effect is not known here."""
    names = getattr(processor, "_valid_kwargs_names", None)
    return [
        key
        for key, value in settings.items()
        if value
        and key not in _TRANSLATED | _HARMLESS
        and not key.startswith(_CODEBOOK)
        and not (key in _MULTIPLES and value == 1)
        # The other keys of a file are kept as well, but nothing reads them.
        and (names is None or key in names or hasattr(type(processor), key))
    ]


def _build_refusal(folder: Path, reason: str) -> SetupError:
    return SetupError(
        f"the image processor of '{folder}' is not supported: {reason}; declare the nearest to it "
        "as encoder.preprocessing, or wrap the model in a function that does it (module:function)"
    )


class _Settings(NamedTuple):
    """A processor's settings with its class's defaults, as `to_dict` returns them."""

    folder: Path
    values: Mapping[str, Any]

    def translate(self) -> ImagePreprocessing:
        """Return the equivalent preprocessing, which is for values of 0 to 1."""
        if not self.values.get("do_resize"):
            raise self._build_refusal("do_resize", "false: its images have many sizes")
        if self.values.get("do_flip_channel_order"):
            raise self._build_refusal("do_flip_channel_order")
        resample = self.values.get("resample")
        # A member or a number of Pillow's enumeration, or a member or a name of torchvision's.
        resample = getattr(resample, "value", resample)
        names: dict[Any, str] = {one.value: one.name.lower() for one in Image.Resampling}
        interpolation: Any = str(names.get(resample, resample)).removesuffix("-exact")
        if interpolation not in get_args(Interpolation):
            raise self._build_refusal("resample")
        resize_px, crop_px, crop_mode = self._read_geometry()
        factor = self.values.get("rescale_factor") if self.values.get("do_rescale") else 1.0
        if not factor or factor < 0:
            raise self._build_refusal("rescale_factor")
        normalizes = self.values.get("do_normalize")
        mean = self._read_channels("image_mean", 255 * factor) if normalizes else (0.0, 0.0, 0.0)
        one = 1 / (255 * factor)
        std = self._read_channels("image_std", 255 * factor) if normalizes else (one, one, one)
        if 0 in std:
            raise self._build_refusal("image_std")
        return ImagePreprocessing(
            resize_px, crop_px, interpolation, mean, std, crop_mode, odd_margin="down"
        )

    def _read_geometry(self) -> tuple[int, int, CropMode]:
        """Return resize_px, crop_px and crop_mode."""
        side: int
        mode: CropMode
        match self.values.get("size"):
            case {"shortest_edge": int(edge), **rest} if not rest:
                side, mode = edge, "center"
            case {"height": int(height), "width": int(width), **rest} if height == width:
                side, mode = height, "squash"
            case _:
                raise self._build_refusal("size")
        crop_pct = self.values.get("crop_pct")
        if crop_pct is not None and not 0 < crop_pct <= 1:
            raise self._build_refusal("crop_pct")
        scaled = side if crop_pct is None else int(side / crop_pct)
        if not self.values.get("do_center_crop"):
            if mode == "squash":
                return side, side, mode
            if crop_pct is None:
                raise self._build_refusal(
                    "size", f"{self.values['size']} without do_center_crop: no square"
                )
            return (side, side, "squash") if side >= _CONVNEXT_PX else (scaled, side, mode)
        match self.values.get("crop_size"):
            case {"height": int(height), "width": int(width)} if height == width <= scaled:
                return scaled, height, mode
        raise self._build_refusal(
            "crop_size", f"{self.values.get('crop_size')} of a size of {scaled}"
        )

    def _read_channels(self, key: str, scale: float) -> tuple[float, float, float]:
        match self.values.get(key):
            case float(one) | int(one) | (one,):
                return one / scale, one / scale, one / scale
            case (red, green, blue):
                return red / scale, green / scale, blue / scale
        raise self._build_refusal(key)

    def _build_refusal(self, key: str, reason: str = "") -> SetupError:
        return _build_refusal(self.folder, f"{key} {reason or self.values.get(key)}")


def _compare(processor: Any, preprocessing: ImagePreprocessing, shape: tuple[float, float]) -> str:
    """Return how an image differs when the processor prepares it; empty if it does not."""
    # Smooth, so that the scaling itself makes no difference.
    colours: npt.NDArray[np.uint8] = np.random.default_rng(0).integers(
        256, size=(4, 6, 3), dtype=np.uint8
    )
    width, height = (int(preprocessing.resize_px * side) for side in shape)
    image = Image.fromarray(colours).resize((width, height), Image.Resampling.BICUBIC)
    try:
        theirs = np.asarray(processor(images=image, return_tensors="pt")["pixel_values"])
    except Exception as error:
        # Each class has code of its own.
        return f"fails on an image ({explain(error)})"
    file = io.BytesIO()
    image.save(file, "PNG")
    (ours,) = render(open_image(file.getvalue(), DecodeSettings()), preprocessing)
    side = preprocessing.crop_px
    if theirs.shape != (1, 3, side, side):
        return f"makes {theirs.shape} of an image of {width}x{height}"
    mean, std = (np.asarray(value) for value in (preprocessing.mean, preprocessing.std))
    levels = (theirs[0].transpose(1, 2, 0) * std + mean) * 255
    apart = float(np.abs(levels - ours).mean())
    return f"prepares images in a way of its own ({apart:.0f} levels off)" * (apart > _TOLERANCE)
