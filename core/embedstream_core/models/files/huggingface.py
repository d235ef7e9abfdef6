"""Vision models that `save_pretrained` wrote into a folder, run by transformers."""

from __future__ import annotations

import io
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from embedstream_core.errors import SetupError
from embedstream_core.extras import require_extra
from embedstream_core.models.files.file_kinds import refuse_other_kinds
from embedstream_core.models.files.image_processors import PROCESSOR_FILES

__all__ = ["load_folder", "pack_folder"]

_FOLDER_FILES = ("config.json", *PROCESSOR_FILES, "*.safetensors", "*.safetensors.index.json")


class _HuggingFace(nn.Module):
    """A vision model's embedding: `image_embeds`, `pooler_output`, or the mean over positions."""

    def __init__(self, model: Any, *, pooled: bool) -> None:
        super().__init__()
        self.model = model
        self.pooled = pooled

    def forward(self, images: torch.Tensor) -> torch.Tensor:
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


def load_folder(path: Path) -> nn.Module:
    """Load a packed folder as a network.

    Raises:
        SetupError: it lacks weights that the model needs.
        MissingExtra: transformers is not installed.
    """
    with require_extra("huggingface", feature="encoder 'huggingface'"):
        import transformers
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(path) as archive:
        archive.extractall(folder)
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        architecture = (config.architectures or [""])[0]
        projects = architecture.endswith("WithProjection")
        kind = getattr(transformers, architecture) if projects else transformers.AutoModel
        model, report = kind.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
        )
    # transformers fills missing weights with random numbers, different ones in each process.
    missing = set(report["missing_keys"])
    unpooled = {name for name in missing if "pooler." in name}
    if lacking := sorted(missing - unpooled):
        raise SetupError(f"its weights lack {', '.join(lacking[:3])}")
    return _HuggingFace(model, pooled=not unpooled)


def pack_folder(folder: Path) -> bytes:
    """Pack the folder's configuration and tensors into a zip archive, the same bytes each time.

    Raises:
        SetupError: it holds no tensors, or files of another kind.
        OSError: a file cannot be read.
    """
    if folder.is_file():
        refuse_other_kinds(folder, wanted=())
    files = sorted(path for pattern in _FOLDER_FILES for path in folder.glob(pattern))
    if not any(path.suffix == ".safetensors" for path in files):
        raise SetupError(
            f"'{folder}' holds no .safetensors file: give a folder that save_pretrained wrote; "
            "weights in .bin files are pickles, and are not opened"
        )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in files:
            kind = "safetensors" if path.suffix == ".safetensors" else "json"
            refuse_other_kinds(path, wanted=(kind,))
            # A ZipInfo has no modification time unless one is given.
            archive.writestr(zipfile.ZipInfo(path.name), path.read_bytes())
    return buffer.getvalue()
