"""Two images that every encoder must distinguish.

A dead layer, an export without its weights, or a device that computes wrongly gives vectors that
look valid but are all the same, and would fill a table unnoticed. The check runs once when a model
is prepared and once when it is loaded, never on a stream's own images: these may be equal, or
differ so little that their vectors round to one, and bad input must not stop a stream.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from embedstream_core.errors import SetupError
from embedstream_core.media.image.opened_image import Pixels
from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.models.failures import convert_errors
from embedstream_core.models.files.file_formats import FixedModule
from embedstream_core.records import Vectors

__all__ = ["embed_probes", "find_flaw", "make_probe_images"]

# Kernels may round the numbers of one image differently from those of the next.
_ROUNDING = 1e-6


def make_probe_images(side_px: int) -> Pixels:
    """Return a ramp and noise, always the same: uint8 of shape (2, side_px, side_px, 3)."""
    noise = np.random.default_rng(0).integers(256, size=(side_px, side_px, 3), dtype=np.uint8)
    ramp = np.linspace(0, 255, side_px).astype(np.uint8)[:, None, None]
    return np.stack([np.broadcast_to(ramp, noise.shape), noise])


def find_flaw(vectors: Vectors) -> str | None:
    """Return the problem with the vectors of the probe images; None if there is none."""
    if not np.isfinite(vectors).all():
        return "numbers that are not finite"
    one, other = vectors
    if np.abs(one - other).max() <= _ROUNDING * np.abs(vectors).max():
        return "the same vector for different images"
    return None


def embed_probes(model: nn.Module, preprocessing: ImagePreprocessing) -> Vectors:
    """Return a model's vectors of the probe images: float32 of shape (2, dimension).

    Raises:
        SetupError: the model fails, gives no vectors, or does not distinguish the images.
    """
    kind = type(model).__name__.removeprefix("_")
    mean, std = (
        torch.tensor(values).view(3, 1, 1) for values in (preprocessing.mean, preprocessing.std)
    )
    images = torch.from_numpy(make_probe_images(preprocessing.crop_px)).permute(0, 3, 1, 2)
    pixels = (images / 255 - mean) / std
    what = f"{kind} cannot embed any number of images of {preprocessing.crop_px} pixels squared"
    way_out = "export it for any number, and make crop_px what it was made for"
    with convert_errors(what, way_out), torch.inference_mode():
        output = model(pixels)
        if isinstance(model, FixedModule):
            # A model that was exported for exactly two images fails with three.
            model(torch.cat([pixels, pixels[:1]]))
    if not isinstance(output, torch.Tensor) or output.ndim != 2 or len(output) != 2:
        given = tuple(output.shape) if torch.is_tensor(output) else type(output).__name__
        raise SetupError(
            f"{kind} gives {given} for two images, not two vectors: give a network whose output "
            "is one, such as its features, pooled and flattened"
        )
    if output.is_complex() or output.shape[1] == 0:
        raise SetupError(
            f"{kind} gives {output.dtype} of shape {tuple(output.shape)}, not vectors of real "
            "numbers: give a network that does"
        )
    vectors: Vectors = output.float().numpy()
    if problem := find_flaw(vectors):
        raise SetupError(
            f"{kind} gives {problem}: its weights are damaged, or were not saved with it; fetch "
            "or export them again"
        )
    return vectors
