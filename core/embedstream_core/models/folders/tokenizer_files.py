"""The tokenizer in a folder of transformers, and the length of text that its model takes.

transformers reads the folder, because its classes change what `tokenizer.json` says. The tokenizer
that is kept is the one of the package `tokenizers` inside: it needs neither transformers nor the
folder, and threads use it at the same time. In the end both must make the same tokens.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from embedstream_core.errors import SetupError
from embedstream_core.extras import require_extra
from embedstream_core.media.text.preprocessing import TextPreprocessing
from embedstream_core.models.failures import convert_errors
from embedstream_core.models.folders.packed_folders import WAY_OUT, read_json

__all__ = [
    "PADDED_MODELS",
    "TOKENIZER_FILES",
    "bind_tokenizer",
    "open_config",
    "open_tokenizer",
    "read_max_tokens",
]

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)

# Above this, `model_max_length` is a placeholder of transformers, which means that none is known.
_MOST_TOKENS = 10**6

# Their first position is the one after the padding token's id, as in
# `create_position_ids_from_input_ids` of transformers.
_OFFSET_POSITIONS = frozenset(
    {
        "camembert",
        "data2vec-text",
        "esm",
        "ibert",
        "longformer",
        "luke",
        "mpnet",
        "roberta",
        "roberta-prelayernorm",
        "xlm-roberta",
        "xlm-roberta-xl",
        "xmod",
    }
)

# Trained on texts that are padded to the full length, with a padding that their layers see:
# https://huggingface.co/docs/transformers/model_doc/siglip
PADDED_MODELS = frozenset({"siglip", "siglip2"})

_SAMPLE = "Grüße! An <unk> example's  2nd line:\n中文 🙂 and enough words to be cut. " * 3


def open_tokenizer(folder: Path) -> Any:
    """Read the folder's tokenizer with transformers.

    Raises:
        SetupError: the folder has no `tokenizer.json`, or it cannot be read.
        MissingExtra: transformers is not installed.
    """
    if not (folder / "tokenizer.json").exists():
        raise SetupError(
            f"'{folder}' holds no tokenizer.json; write it with "
            "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
    with require_extra("huggingface", feature="a text model in a folder"):
        import transformers
    with convert_errors(f"the tokenizer of '{folder}' cannot be opened", "save it again"):
        return transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def open_config(folder: Path) -> Any:
    """Read the folder's configuration with transformers.

    Raises:
        SetupError: it cannot be read, or asks for code in the folder.
        MissingExtra: transformers is not installed.
    """
    with require_extra("huggingface", feature="a text model in a folder"):
        import transformers
    with convert_errors(f"the configuration of '{folder}' cannot be opened", WAY_OUT):
        return transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)


def read_max_tokens(folder: Path, tokenizer: Any, declared: int | None = None) -> int:
    """Return how many tokens the model takes, the special ones included.

    The least of what sentence-transformers declares, the tokenizer's `model_max_length`, and the
    positions that the network has.

    Raises:
        SetupError: the folder states none of these.
    """
    text = open_config(folder).get_text_config()
    positions = getattr(text, "max_position_embeddings", None)
    if positions is not None and text.model_type in _OFFSET_POSITIONS:
        positions -= text.pad_token_id + 1
    limits = (declared, tokenizer.model_max_length, positions)
    known = [limit for limit in limits if limit is not None and 0 < limit < _MOST_TOKENS]
    if not known:
        raise SetupError(
            f"'{folder}' does not state how many tokens its model takes; add model_max_length to "
            "its tokenizer_config.json"
        )
    return min(known)


def bind_tokenizer(
    preprocessing: TextPreprocessing, folder: Path, *, lowers: bool = False
) -> TextPreprocessing:
    """Return the preprocessing with the folder's tokenizer, which cuts at `max_tokens`.

    `lowers` puts texts in lower case first, which some folders of sentence-transformers ask for.

    Raises:
        SetupError: the tokenizer cannot be used without transformers, or leaves texts no room.
        MissingExtra: transformers is not installed.
    """
    theirs = open_tokenizer(folder)
    from tokenizers import Tokenizer, normalizers

    # A tokenizer that is written in Python has no backend.
    backend = getattr(theirs, "backend_tokenizer", None)
    tokenizer = Tokenizer.from_str(
        backend.to_str() if backend else (folder / "tokenizer.json").read_text("utf-8")
    )
    tokenizer.no_padding()
    tokenizer.enable_truncation(preprocessing.max_tokens, direction=theirs.truncation_side)
    if read_json(folder / "config.json").get("model_type") in PADDED_MODELS:
        tokenizer.enable_padding(
            length=preprocessing.max_tokens, pad_id=theirs.pad_token_id, pad_token=theirs.pad_token
        )
    _compare(theirs, tokenizer, folder)
    if lowers:
        own = [tokenizer.normalizer] if tokenizer.normalizer else []
        tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])
    for prefix in (preprocessing.prefix, preprocessing.query_prefix):
        if tokenizer.encode(prefix).ids == tokenizer.encode(f"{prefix} {_SAMPLE}").ids:
            raise SetupError(
                f"the prefix {prefix!r} leaves a text no room in {preprocessing.max_tokens} tokens"
            )
    return replace(preprocessing, tokenizer=tokenizer)


def _compare(theirs: Any, tokenizer: Any, folder: Path) -> None:
    """Raise SetupError if transformers makes other inputs than the tokenizer."""
    limits = tokenizer.truncation["max_length"]
    pads = "max_length" if tokenizer.padding else False
    for text in (_SAMPLE, "a"):
        expected = theirs(text, truncation=True, max_length=limits, padding=pads)
        if expected["input_ids"] != tokenizer.encode(text).ids:
            problem = "makes other tokens than its tokenizer.json"
        elif any(expected.get("token_type_ids", ())):
            problem = "gives tokens types other than 0"
        else:
            continue
        raise SetupError(
            f"the tokenizer of '{folder}' is not supported: {type(theirs).__name__} {problem}; "
            f"{WAY_OUT}"
        )
