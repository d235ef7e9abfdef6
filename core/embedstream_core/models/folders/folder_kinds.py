"""Models that `save_pretrained` or sentence-transformers wrote into a folder.

What a folder holds is recognised from its files; `_KINDS` is the list of what there is.
"""

from __future__ import annotations

import logging
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from embedstream_core.errors import SetupError
from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.media.modalities import Preprocessing
from embedstream_core.media.text.preprocessing import TextPreprocessing
from embedstream_core.models.failures import convert_errors
from embedstream_core.models.files.file_kinds import refuse_other_kinds
from embedstream_core.models.folders import image_processors
from embedstream_core.models.folders.audio_models import (
    AUDIO_MODEL_TYPES,
    load_audio,
    pack_audio,
    read_audio_inputs,
)
from embedstream_core.models.folders.image_models import load_vision, pack_vision
from embedstream_core.models.folders.image_processors import PROCESSOR_FILES
from embedstream_core.models.folders.image_text_models import (
    load_image_text,
    pack_image_text,
    read_text_half,
)
from embedstream_core.models.folders.packed_folders import WAY_OUT, read_json, unpack
from embedstream_core.models.folders.text_models import (
    bind_tokenizer,
    load_text,
    pack_text,
    read_text_inputs,
)

__all__ = ["bind_input", "load_folder", "pack_folder", "read_inputs", "recognise_folder"]

_log = logging.getLogger(__name__)

_TOKENIZER_FILES = ("tokenizer_config.json", "vocab.txt", "vocab.json", "*.model")


@dataclass(frozen=True, slots=True)
class FolderKind:
    """What a folder may hold.

    `pack` takes the folder; `load` takes the packed file, and returns a module, or a ModuleDict
    with a branch for each modality if it has several. `read_inputs` reads the preprocessings of all
    modalities but images, which every kind that takes `images` has in the same files.
    """

    matches: Callable[[_Files], bool]
    pack: Callable[[Path], bytes]
    load: Callable[[Path], nn.Module]
    read_inputs: Callable[[Path], tuple[Preprocessing, ...]] = lambda folder: ()
    images: bool = False


class _Files:
    """What tells the kinds of folders apart; the packed files are enough for it."""

    def __init__(self, folder: Path) -> None:
        self.has_modules = (folder / "modules.json").exists()
        self.has_tokenizer = (folder / "tokenizer.json").exists()
        self.has_any_tokenizer = self.has_tokenizer or any(
            True for pattern in _TOKENIZER_FILES for _ in folder.glob(pattern)
        )
        self.has_processor = any((folder / name).exists() for name in PROCESSOR_FILES)
        path = folder / "config.json"
        self.config: Mapping[str, Any] = read_json(path)
        if not isinstance(self.config, dict):
            raise SetupError(f"'{path}' is not a JSON object; write it with save_pretrained")
        self.has_two_halves = {"text_config", "vision_config"} <= self.config.keys()


def _holds_image_text(files: _Files) -> bool:
    # Without its tokenizer, it serves as a model of images.
    return files.has_tokenizer and files.has_two_halves


def _holds_audio(files: _Files) -> bool:
    return files.config.get("model_type") in AUDIO_MODEL_TYPES


def _holds_text(files: _Files) -> bool:
    if files.has_modules:
        return True
    speaks = files.has_any_tokenizer or "vocab_size" in files.config
    return speaks and not files.has_processor and "image_size" not in files.config


# The first that matches; the last matches every folder. Models of audio have processors and
# sometimes tokenizers, so their `model_type` decides before those do.
_KINDS: Mapping[str, FolderKind] = {
    "image-text": FolderKind(
        _holds_image_text, pack_image_text, load_image_text, read_text_half, images=True
    ),
    "audio": FolderKind(_holds_audio, pack_audio, load_audio, read_audio_inputs),
    "text": FolderKind(_holds_text, pack_text, load_text, read_text_inputs),
    "image": FolderKind(lambda files: True, pack_vision, load_vision, images=True),
}


def recognise_folder(folder: Path) -> str:
    """Return the kind of a folder, or of an unpacked one: a key of `_KINDS`.

    Raises:
        SetupError: it is an adapter, or its model is quantized.
    """
    files = _Files(folder)
    # Older folders of sentence-transformers have the transformer in a folder of its own.
    for root in (folder, *folder.glob("0_*")):
        if (root / "adapter_config.json").exists():
            # transformers would leave the adapter out without a word where PEFT is not installed.
            raise SetupError(
                f"'{root}' has an adapter (adapter_config.json), which is not loaded: merge it into"
                " its model with merge_and_unload() of PEFT, save that with save_pretrained, and "
                "give its folder"
            )
        config = read_json(root / "config.json")
        if isinstance(config, dict) and (quantization := config.get("quantization_config")):
            method = quantization.get("quant_method") if isinstance(quantization, dict) else None
            raise SetupError(
                f"'{root}' holds a quantized model ({method or 'quantization_config'}): give the "
                "folder of the same model with its float weights"
            )
    return next(name for name, kind in _KINDS.items() if kind.matches(files))


def pack_folder(folder: Path) -> bytes:
    """Pack the files that make the vectors into a zip archive, the same bytes each time.

    Raises:
        SetupError: the folder holds no tensors, or asks for what is not supported.
        OSError: a file cannot be read.
    """
    # Raises for a path that does not exist.
    if not stat.S_ISDIR(folder.stat().st_mode):
        refuse_other_kinds(folder, wanted=())
        raise SetupError(f"'{folder}' is a file: give a folder that save_pretrained wrote")
    return _KINDS[recognise_folder(folder)].pack(folder)


def load_folder(packed: Path) -> nn.Module:
    """Load a packed folder as a network, with a branch for each modality if it has several.

    Raises:
        SetupError: it lacks weights, or asks for what is not supported.
        MissingExtra: transformers is not installed.
    """
    with unpack(packed, weights=False) as folder:
        kind = _KINDS[recognise_folder(folder)]
    return kind.load(packed)


def read_inputs(
    folder: Path, declared: ImagePreprocessing | None = None
) -> tuple[Preprocessing, ...]:
    """Return the preprocessings that the folder states, one for each modality.

    In a folder of a model that takes images, a `declared` preprocessing takes the place of theirs,
    which may then be missing or not supported.

    Raises:
        SetupError: a file cannot be read, or asks for what is not supported; or the model takes
            images and texts, and the preprocessing of the images is missing.
        MissingExtra: transformers is not installed.
    """
    with convert_errors(f"the files of '{folder}' cannot be read", WAY_OUT):
        name = recognise_folder(folder)
        kind = _KINDS[name]
        if name == "image" and _Files(folder).has_two_halves:
            _log.warning(
                "'%s' holds no tokenizer.json, so its model embeds images and no texts; write its "
                "tokenizer there with save_pretrained to embed both",
                folder,
            )
        others = kind.read_inputs(folder)
        if not kind.images:
            return others
        images = (declared,) if declared else image_processors.read_inputs(folder)
        if others and not images:
            raise SetupError(
                f"'{folder}' does not say how its model's images are prepared; write its image "
                "processor there with save_pretrained, or declare encoder.preprocessing"
            )
        return (*images, *others)


def bind_input(preprocessing: Preprocessing, packed: Path) -> Preprocessing:
    """Return the preprocessing with what it needs of the packed file: a text's tokenizer.

    Raises:
        SetupError: the tokenizer is not supported.
        MissingExtra: transformers is not installed.
    """
    if not isinstance(preprocessing, TextPreprocessing):
        return preprocessing
    with convert_errors("the tokenizer of the encoder cannot be used", WAY_OUT):
        return bind_tokenizer(preprocessing, packed)
