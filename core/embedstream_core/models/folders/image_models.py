"""Vision models that `save_pretrained` wrote into a folder, run by transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from embedstream_core.extras import require_extra
from embedstream_core.models.folders.image_processors import PROCESSOR_FILES
from embedstream_core.models.folders.packed_folders import (
    WEIGHT_FILES,
    load_transformer,
    pack_files,
    unpack,
)

__all__ = ["VisionModel", "load_vision", "pack_vision"]


class VisionModel(nn.Module):
    """A vision model's embedding: `image_embeds`, `pooler_output`, or the mean over positions."""

    def __init__(self, model: Any, *, pooled: bool) -> None:
        super().__init__()
        self.model = model
        self.pooled = pooled

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the vectors of normalized float images of shape (n, 3, side, side)."""
        # Models of images and texts, such as CLIP, have the method.
        embed = getattr(self.model, "get_image_features", self.model)
        output = embed(pixel_values=images)
        vectors: torch.Tensor | None = getattr(output, "image_embeds", None)
        if vectors is None and self.pooled:
            vectors = getattr(output, "pooler_output", None)
        if vectors is not None:
            return vectors.flatten(1)
        states: torch.Tensor = output.last_hidden_state
        return states.mean(1) if states.ndim == 3 else states.mean((2, 3))


def pack_vision(folder: Path) -> bytes:
    """Pack the folder's configuration and tensors; errors as in `pack_files`."""
    return pack_files(folder, ("config.json", *PROCESSOR_FILES, *WEIGHT_FILES))


def load_vision(packed: Path) -> nn.Module:
    """Load a packed folder as a network.

    Raises:
        SetupError: it lacks weights that the model needs.
        MissingExtra: transformers is not installed.
    """
    with require_extra("huggingface", feature="encoder 'huggingface'"):
        import transformers
    with unpack(packed) as folder:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        architecture = (config.architectures or [""])[0]
        projects = architecture.endswith("WithProjection")
        kind = getattr(transformers, architecture) if projects else transformers.AutoModel
        model, pooled = load_transformer(kind, folder, config)
    return VisionModel(model, pooled=pooled)
