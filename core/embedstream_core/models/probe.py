"""Two samples that every encoder must distinguish.

A dead layer, an export without its weights, or a device that computes wrongly gives vectors that
look valid but are all the same, and would fill a table unnoticed. The check runs once when a model
is prepared and once when it is loaded, never on a stream's own content: it may be equal, or
differ so little that its vectors round to one, and bad input must not stop a stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from torch import nn

from embedstream_core.errors import SetupError
from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.media.modalities import MODALITIES, Preprocessing
from embedstream_core.media.modality import Array
from embedstream_core.models.failures import convert_errors
from embedstream_core.models.files.fixed_module import FixedModule
from embedstream_core.records import Vectors
from embedstream_core.settings import ModalityName, Normalization

__all__ = ["NOUNS", "embed_probes", "find_flaw", "normalize_vectors"]

NOUNS: Final[dict[ModalityName, str]] = {"image": "images", "text": "texts", "audio": "clips"}
"""What messages call the contents of a modality."""

# Kernels may round the numbers of one sample differently from those of the next.
_ROUNDING = 1e-6


def find_flaw(vectors: Vectors, modality: ModalityName) -> str | None:
    """Return the problem with the vectors of the probes; None if there is none."""
    if not np.isfinite(vectors).all():
        return "numbers that are not finite"
    one, other = vectors
    if np.abs(one - other).max() <= _ROUNDING * np.abs(vectors).max():
        return f"the same vector for different {NOUNS[modality]}"
    return None


def normalize_vectors(vectors: Vectors) -> Vectors:
    """Divide each vector by its length; one without a direction stays as it is."""
    # In float64, in which the squares of float32 neither overflow nor vanish.
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    has_direction = np.isfinite(norms) & (norms > 0)
    return (vectors / np.where(has_direction, norms, 1)).astype(np.float32)


def embed_probes(
    model: nn.Module, preprocessing: Preprocessing, *, normalize: Normalization = "none"
) -> Vectors:
    """Return a model's vectors of the probes, not normalized: float32 of shape (2, dimension).

    Raises:
        SetupError: the model fails, gives no vectors, or does not distinguish the probes; with
            `normalize` l2, also if it distinguishes them by their vectors' lengths alone.
    """
    kind = type(model).__name__.removeprefix("_")
    noun = NOUNS[preprocessing.modality]
    probes = MODALITIES[preprocessing.modality].make_probes(preprocessing)
    parts = [probe.parts[0] for probe in probes]
    what, way_out = f"{kind} cannot embed any number of {noun}", "save it again"
    if isinstance(preprocessing, ImagePreprocessing):
        what += f" of {preprocessing.crop_px} pixels squared"
        way_out = "export it for any number, and make crop_px what it was made for"
    with convert_errors(what, way_out), torch.inference_mode():
        output = model(*_build_inputs(preprocessing, parts))
        if isinstance(model, FixedModule):
            # A model that was exported for exactly two images fails with three.
            model(*_build_inputs(preprocessing, [*parts, parts[0]]))
    if not isinstance(output, torch.Tensor) or output.ndim != 2 or len(output) != 2:
        given = tuple(output.shape) if torch.is_tensor(output) else type(output).__name__
        raise SetupError(
            f"{kind} gives {given} for two {noun}, not two vectors: give a network whose output "
            "is one, such as its features, pooled and flattened"
        )
    if output.is_complex() or output.shape[1] == 0:
        raise SetupError(
            f"{kind} gives {output.dtype} of shape {tuple(output.shape)}, not vectors of real "
            "numbers: give a network that does"
        )
    vectors: Vectors = output.float().numpy()
    _refuse_flaws(kind, vectors, preprocessing.modality, normalize=normalize)
    return vectors


def _refuse_flaws(
    kind: str, vectors: Vectors, modality: ModalityName, *, normalize: Normalization
) -> None:
    if problem := find_flaw(vectors, modality):
        raise SetupError(
            f"{kind} gives {problem}: its weights are damaged, or were not saved with it; fetch "
            "or export them again"
        )
    if normalize == "l2" and (problem := find_flaw(normalize_vectors(vectors), modality)):
        raise SetupError(
            f"{kind} gives {problem} once each is divided by its length: its vectors differ in "
            "length alone; set encoder.normalize to none"
        )


def _build_inputs(preprocessing: Preprocessing, parts: Sequence[Array]) -> list[torch.Tensor]:
    """Return what a network takes: pixels are normalized, other arrays are as collated."""
    arrays = MODALITIES[preprocessing.modality].collate(parts)
    inputs = [torch.from_numpy(one) for one in arrays]
    if isinstance(preprocessing, ImagePreprocessing):
        mean, std = (
            torch.tensor(values).view(3, 1, 1) for values in (preprocessing.mean, preprocessing.std)
        )
        inputs = [(inputs[0].permute(0, 3, 1, 2) / 255 - mean) / std]
    return inputs
