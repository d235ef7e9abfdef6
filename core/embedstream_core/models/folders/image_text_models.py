"""Models of images and texts in a folder of transformers: CLIP, SigLIP and their relatives.

Their vectors are what `get_image_features` and `get_text_features` give, without normalization.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from embedstream_core.errors import SetupError
from embedstream_core.media.text.preprocessing import TextPreprocessing
from embedstream_core.models.folders.image_models import VisionModel
from embedstream_core.models.folders.image_processors import PROCESSOR_FILES
from embedstream_core.models.folders.packed_folders import (
    WEIGHT_FILES,
    load_transformer,
    pack_files,
    unpack,
)
from embedstream_core.models.folders.tokenizer_files import (
    PADDED_MODELS,
    TOKENIZER_FILES,
    open_config,
    open_tokenizer,
    read_max_tokens,
)

__all__ = ["load_image_text", "pack_image_text", "read_text_half"]


class TextHalf(nn.Module):
    """The text half: its forward takes `ids` and `mask`, int64 (n, tokens), padded at the end."""

    def __init__(self, model: Any, *, masked: bool) -> None:
        super().__init__()
        self.model = model
        self.masked = masked

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        features = self.model.get_text_features(ids, mask if self.masked else None)
        vectors: torch.Tensor = getattr(features, "pooler_output", features)
        return vectors


def pack_image_text(folder: Path) -> bytes:
    """Pack the files that make the vectors; errors as in `pack_files`."""
    return pack_files(folder, ("config.json", *PROCESSOR_FILES, *TOKENIZER_FILES, *WEIGHT_FILES))


def load_image_text(packed: Path) -> nn.ModuleDict:
    """Load a packed folder as a network with the branches `image` and `text`.

    Raises:
        SetupError: it lacks weights, or the model has no features of both kinds.
        MissingExtra: transformers is not installed.
    """
    with unpack(packed) as folder:
        config = open_config(folder)
        import transformers

        model, _ = load_transformer(transformers.AutoModel, folder, config)
    for method in ("get_image_features", "get_text_features"):
        if not hasattr(model, method):
            raise SetupError(
                f"{type(model).__name__} has no {method}: its images and texts have no vectors "
                "that can be compared; choose a model such as CLIP or SigLIP"
            )
    masked = config.model_type not in PADDED_MODELS
    return nn.ModuleDict(
        {"image": VisionModel(model, pooled=True), "text": TextHalf(model, masked=masked)}
    )


def read_text_half(folder: Path) -> tuple[TextPreprocessing, ...]:
    """Return the preprocessing of the texts.

    Raises:
        SetupError: a file cannot be read, or asks for what is not supported.
        MissingExtra: transformers is not installed.
    """
    max_tokens = read_max_tokens(folder, open_tokenizer(folder))
    return (TextPreprocessing(max_tokens, pooling="model"),)
