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

import safetensors
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

# How transformers names the weights that it loads, and the index of those in several files.
_MODEL, _INDEX = "model.safetensors", "model.safetensors.index.json"
_INTEGERS = {"I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64"}


def pack_files(folder: Path, patterns: Sequence[str]) -> bytes:
    """Pack the files of the patterns into a zip archive, the same bytes each time.

    Raises:
        SetupError: there are no tensors among them, not all of them, or files of another kind than
            their names say.
        OSError: a file cannot be read.
    """
    files = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    weights = [path for path in files if path.suffix == ".safetensors"]
    if not weights:
        if (folder / "snapshots").is_dir():
            raise SetupError(
                f"'{folder}' is a model's folder in the cache of Hugging Face: give the folder "
                f"below '{folder / 'snapshots'}'"
            )
        raise SetupError(
            f"'{folder}' holds no .safetensors file: give a folder that save_pretrained wrote; "
            "weights in .bin files are pickles, and are not opened"
        )
    if not any(path.name in (_MODEL, _INDEX) for path in files):
        raise SetupError(
            f"'{folder}' has its weights as '{weights[0].name}', and a folder that save_pretrained "
            f"wrote as {_MODEL}: rename the file if it is the whole model"
        )
    # The whole model in one file takes precedence over the files of an index.
    if not (folder / _MODEL).exists():
        _check_index(folder / _INDEX)
    for path in files:
        kind = "safetensors" if path.suffix == ".safetensors" else "json"
        refuse_other_kinds(path, wanted=(kind,))
    return write_archive(folder, files)


def _check_index(path: Path) -> None:
    """Raise SetupError for an index that names files which are not in its folder."""
    index = read_json(path)
    names = index.get("weight_map", {}).values() if isinstance(index, dict) else ()
    if lacking := sorted({str(name) for name in names if not (path.parent / str(name)).exists()}):
        raise SetupError(
            f"'{path.parent}' lacks {', '.join(lacking[:3])}, which {path.name} names: fetch or "
            "save the model again"
        )


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
        SetupError: other weights that the model needs are missing, or weights are quantized.
    """
    _refuse_quantized(folder)
    # Some configurations ask for tuples.
    config.return_dict = True
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


def _refuse_quantized(folder: Path) -> None:
    """Raise SetupError for weights that a configuration does not call quantized, and that are.

    transformers would take the integers, or the numbers without their scales, for the weights.
    """
    for path in sorted(folder.glob("model*.safetensors")):
        with safetensors.safe_open(path, framework="pt") as file:
            names = sorted(file.keys())
            for name in names:
                if not name.endswith("weight"):
                    continue
                dtype = file.get_slice(name).get_dtype()
                scales = {f"{name}_scale", f"{name}_scale_inv"}
                if dtype in _INTEGERS or (dtype.startswith("F8") and not scales.isdisjoint(names)):
                    raise SetupError(
                        f"'{name}' in its weights is quantized ({dtype}): save the model with its "
                        "float weights"
                    )
