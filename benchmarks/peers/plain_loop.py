"""No framework: the loop that a user writes, with torch's own threads.

Decode a batch of 16, run the model on it, keep the embeddings. The form is the one in
torchvision's documentation of its weights
(https://docs.pytorch.org/vision/stable/models.html#classification), with a batch for an image.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from protocol import Backend, Precision, Run, serve
from resnet import embed, load_model, preprocess

BATCH = 16


@contextmanager
def prepare(images: Path, precision: Precision, backend: Backend) -> Iterator[Run]:
    model = load_model(precision)

    def run() -> int:
        contents = pq.read_table(images, columns=["content"])["content"].to_pylist()
        embeddings: list[NDArray[np.float32]] = []
        for start in range(0, len(contents), BATCH):
            batch = contents[start : start + BATCH]
            embeddings.extend(embed(model, torch.stack([preprocess(content) for content in batch])))
        return len(embeddings)

    yield run


if __name__ == "__main__":
    serve(prepare)
