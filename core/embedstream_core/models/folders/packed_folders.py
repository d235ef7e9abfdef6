"""Folders of transformers as one file: packed on the driver, and unpacked where they are loaded."""

from __future__ import annotations

import io
import json
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from embedstream_core.errors import SetupError
from embedstream_core.models.files.file_kinds import refuse_other_kinds

__all__ = [
    "WAY_OUT",
    "WEIGHT_FILES",
    "load_transformer",
    "pack_files",
    "read_json",
    "unpack",
    "write_archive",
]

# It names no function of the user's own, because those give models of images only.
WAY_OUT = "correct the folder's files, or choose another model"
"""What to do about a folder that asks for what is not supported."""

WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json")


def pack_files(folder: Path, patterns: Sequence[str]) -> bytes:
    """Pack the files of the patterns into a zip archive, the same bytes each time.

    Raises:
        SetupError: there are no tensors among them, or files of another kind than their names say.
        OSError: a file cannot be read.
    """
    files = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    if not any(path.suffix == ".safetensors" for path in files):
        raise SetupError(
            f"'{folder}' holds no .safetensors file: give a folder that save_pretrained wrote; "
            "weights in .bin files are pickles, and are not opened"
        )
    for path in files:
        kind = "safetensors" if path.suffix == ".safetensors" else "json"
        refuse_other_kinds(path, wanted=(kind,))
    return write_archive(folder, files)


def write_archive(folder: Path, files: Sequence[Path]) -> bytes:
    """Return a zip archive of files of the folder, the same bytes each time."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in files:
            # A ZipInfo has no modification time unless one is given.
            name = path.relative_to(folder).as_posix()
            archive.writestr(zipfile.ZipInfo(name), path.read_bytes())
    return buffer.getvalue()


@contextmanager
def unpack(packed: Path, *, weights: bool = True) -> Iterator[Path]:
    """Yield a temporary folder with the packed files, with or without the tensors."""
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(packed) as archive:
        names = [name for name in archive.namelist() if weights or name.endswith(".json")]
        archive.extractall(folder, names)
        yield Path(folder)


def read_json(path: Path) -> Any:
    """Return the content of a JSON file, or an empty dict if there is no such file.

    Raises:
        SetupError: the file is not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        refuse_other_kinds(path, wanted=("json",))
        raise SetupError(f"'{path}' cannot be read as JSON ({error}); write it again") from error


@contextmanager
def _hide_progress() -> Iterator[None]:
    """Keep transformers from drawing a progress bar for files that load in a moment."""
    from transformers.utils import logging

    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()


def load_transformer(kind: Any, folder: Path, config: Any) -> tuple[nn.Module, bool]:
    """Load a model of a class of transformers from tensors, in float32.

    Returns:
        The model, and whether its weights have what its pooling layer needs.

    Raises:
        SetupError: other weights that the model needs are missing.
    """
    with _hide_progress():
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
        raise SetupError(
            f"its weights lack {', '.join(lacking[:3])}; save the whole model with save_pretrained"
        )
    return model, not unpooled
