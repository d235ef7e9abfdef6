"""Daft's side of two published benchmarks, in our own words: see `benchmarks/public_jobs.py`.

`image_classification` follows `benchmarking/ai/image_classification/daft_main.py` of
Eventual-Inc/Daft (commit 0e235257e533), and `large_image_embedding` follows
`release/nightly_tests/multimodal_inference_benchmarks/large_image_embedding/daft_main.py` of
ray-project/ray (commit 205081dc566e), in which the authors of Ray Data wrote Daft's side. Both are
under the Apache License 2.0. The operators and their order are theirs: read Parquet, download or
decode base64, `image.decode` to RGB, a Python function that prepares each image, a class with a
batch method that runs the network, and Parquet out.

What is different without GPUs and without a cluster: the native runner, which is Daft's default,
in the place of the one on Ray; an instance for each core, in a process of its own as an actor has
it, with one thread; the batch given by `--batch`. The class is written as Daft's own script has it,
with `daft.cls`; the other script uses the older `daft.udf`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import daft
import numpy as np
import pybase64
import torch
from daft import DataType, Series
from numpy.typing import NDArray

from protocol import CORES, Backend, Precision, Run, serve
from public_models import JOBS, clear, count_rows, embed

SIDE_PX = 224


def decode(rows: daft.DataFrame) -> daft.Expression:
    """The column of decoded images."""
    if name == "image_classification":
        contents = rows["image_url"].download()
    else:
        contents = rows["image"].apply(pybase64.b64decode, return_dtype=DataType.binary())
    return contents.decode_image(mode=daft.ImageMode.RGB)


def build_network(folder: Path) -> Any:
    """An instance of a class whose call is a column of embeddings."""
    # Its type is a part of the decorator. With `embedding`, Daft 0.7.26 ignores `use_process` and
    # runs one instance in this process.
    floats = JOBS[name].floats

    @daft.cls(max_concurrency=CORES, use_process=True)
    class Network:
        def __init__(self, job: str) -> None:
            torch.set_num_threads(1)
            self.network = JOBS[job].load(folder)

        @daft.method.batch(
            return_dtype=DataType.fixed_size_list(DataType.float32(), floats), batch_size=batch
        )
        def __call__(self, images: Series) -> NDArray[np.float32]:
            return embed(self.network, np.array(images.to_pylist()))

    return Network(name)


@contextmanager
def prepare(folder: Path, precision: Precision, backend: Backend) -> Iterator[Run]:
    os.environ.setdefault("DAFT_PROGRESS_BAR", "0")
    job = JOBS[name]
    # Daft's threads would import transformers at the same time, which fails.
    preprocess = job.build_preprocess()
    network = build_network(folder)
    output = folder / "out-daft"
    tensor = DataType.tensor(DataType.float32(), shape=(3, SIDE_PX, SIDE_PX))

    def run() -> int:
        rows = daft.read_parquet(str(folder / "input"))
        rows = rows.with_column("decoded", decode(rows))
        prepared = rows["decoded"].apply(preprocess, return_dtype=tensor)
        rows = rows.with_column("prepared", prepared)
        rows = rows.with_column("embedding", network(rows["prepared"]))
        rows.select(job.key, "embedding").write_parquet(clear(output))
        return count_rows(output)

    yield run


if __name__ == "__main__":
    # What remains is the protocol's.
    batch, name = int(sys.argv.pop()), sys.argv.pop()
    serve(prepare, ["daft", "transformers"])
