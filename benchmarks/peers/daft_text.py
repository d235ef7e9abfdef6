"""Daft's `embed_text`, with sentence-transformers in this process (its provider `transformers`).

The form follows Daft's guide to text embeddings
(https://docs.daft.ai/en/stable/modalities/text/); the model is a local folder, and everything else
as it comes. Daft opens the model for each query: that is a part of every run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import daft
from daft.functions import embed_text

from minilm import FOLDER
from protocol import EMBEDDINGS, Backend, Precision, Run, serve


@contextmanager
def prepare(contents: Path, precision: Precision, backend: Backend) -> Iterator[Run]:
    os.environ.setdefault("DAFT_PROGRESS_BAR", "0")

    def run() -> int:
        rows = daft.read_parquet(str(contents))
        text = rows["content"].cast(daft.DataType.string())
        embedding = embed_text(text, provider="transformers", model=FOLDER)
        found = rows.select("id", embedding.alias("embedding")).to_arrow()["embedding"]
        return sum(len(vector) == EMBEDDINGS["minilm"] for vector in found.to_pylist())

    yield run


if __name__ == "__main__":
    serve(prepare, ["daft", "sentence-transformers", "transformers"])
