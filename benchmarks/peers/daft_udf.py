"""Daft: a class UDF with a batch method.

The form follows Daft's guide to stateful class UDFs
(https://docs.daft.ai/en/stable/custom-code/cls/): `@daft.cls` loads the model once for an
instance, `@daft.method.batch` takes `batch_size` rows, and of its best practices
`use_process=True` keeps the instances out of each other's GIL. `max_concurrency` is one instance
for each core, each with one thread. Daft starts the instances for each query: their start, with
the import of torch, is a part of every run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import daft
import numpy as np
import torch
from daft import DataType, Series
from numpy.typing import NDArray

from protocol import CORES, EMBEDDING, Backend, Precision, Run, serve
from resnet import embed, load_model, preprocess

BATCH = 16


@daft.cls(max_concurrency=CORES, use_process=True)
class Featurizer:
    def __init__(self, precision: Precision) -> None:
        torch.set_num_threads(1)
        self.model = load_model(precision)

    # With the type `embedding`, Daft 0.7.26 ignores `use_process`: one instance, in this process.
    @daft.method.batch(
        return_dtype=DataType.fixed_size_list(DataType.float32(), EMBEDDING), batch_size=BATCH
    )
    def __call__(self, contents: Series) -> NDArray[np.float32]:
        images = torch.stack([preprocess(content) for content in contents.to_pylist()])
        return embed(self.model, images)


@contextmanager
def prepare(images: Path, precision: Precision, backend: Backend) -> Iterator[Run]:
    os.environ.setdefault("DAFT_PROGRESS_BAR", "0")
    featurize = Featurizer(precision)

    def run() -> int:
        rows = daft.read_parquet(str(images))
        embeddings = rows.select("id", featurize(rows["content"]).alias("embedding")).collect()
        return len(embeddings)

    yield run


if __name__ == "__main__":
    serve(prepare, ["daft"])
