"""The tokens that a text encoder expects."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["TextPreprocessing"]


@dataclass(frozen=True)
class TextPreprocessing:
    """The input that a text encoder expects, as read from its files.

    `prefix` is put before each text of the table, `query_prefix` before a query; what is longer
    than `max_tokens`, special tokens included, is cut and recorded as truncated. `pooling` names
    how the vectors of tokens become one; the model's own files decide it, and the card shows it.
    `tokenizer` is a `tokenizers.Tokenizer`, which is stored with the model and not in its card; two
    preprocessings with different tokenizer objects are not equal.
    """

    max_tokens: int
    prefix: str = ""
    query_prefix: str = ""
    pooling: str = "mean"
    tokenizer: Any = field(default=None, repr=False)
    modality: Literal["text"] = field(default="text", repr=False)
