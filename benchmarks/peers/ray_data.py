"""Ray Data: `map` decodes in tasks, and `map_batches` runs the network in a pool of actors.

The form follows Ray Data's guides to batch inference
(https://docs.ray.io/en/latest/data/batch_inference.html) and to images
(https://docs.ray.io/en/latest/data/working-with-images.html): a class that loads the model once,
with `compute=ActorPoolStrategy(size=...)`, an explicit `batch_size`, and `num_cpus` for a stage.

The network takes far more time than decoding, so each core has one actor. Actors that reserved
all CPUs would leave none for the tasks that list, read and decode, and the pipeline would wait
forever: an actor reserves half a CPU, and the tasks share the other half of both, at Ray Data's
default of one CPU a task. A file of one row group is one block, which one actor would take whole,
so the rows are repartitioned, as a warning of Ray Data advises. Ray itself gives a worker one
thread (OMP_NUM_THREADS=1). Ray Data starts the actors for each execution: their start, with the
import of torch, is a part of every run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from protocol import CORES, EMBEDDING, Backend, Precision, Run, serve
from resnet import embed, load_model, preprocess

BATCH = 16
BLOCK = 32
CPUS_OF_AN_ACTOR = 0.5


def decode(row: dict[str, Any]) -> dict[str, Any]:
    return {"id": row["id"], "image": preprocess(row["content"]).numpy()}


class Featurizer:
    def __init__(self, precision: Precision) -> None:
        self.model = load_model(precision)

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        images = torch.as_tensor(np.array(batch["image"]))
        return {"id": batch["id"], "embedding": embed(self.model, images)}


@contextmanager
def prepare(images: Path, precision: Precision, backend: Backend) -> Iterator[Run]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(num_cpus=CORES, include_dashboard=False)

    def run() -> int:
        rows = ray.data.read_parquet(str(images))
        rows = rows.repartition(target_num_rows_per_block=BLOCK)
        embeddings = rows.map(decode).map_batches(
            Featurizer,
            fn_constructor_args=[precision],
            compute=ray.data.ActorPoolStrategy(size=CORES),
            batch_size=BATCH,
            num_cpus=CPUS_OF_AN_ACTOR,
        )
        seen = 0
        for batch in embeddings.iter_batches(batch_size=None):
            count, size = batch["embedding"].shape
            seen += count if size == EMBEDDING else 0
        return seen

    yield run
    ray.shutdown()


if __name__ == "__main__":
    serve(prepare, ["ray", "pandas"])
