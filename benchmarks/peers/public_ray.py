"""Ray Data's side of two published benchmarks, in our own words: see `benchmarks/public_jobs.py`.

`image_classification` and `large_image_embedding` follow the scripts `ray_data_main.py` of those
names in `release/nightly_tests/multimodal_inference_benchmarks/` of ray-project/ray (commits
065d16663b27 and 205081dc566e, Apache License 2.0). The operators and their order are theirs: read
Parquet, `download` or decode base64, Pillow to RGB, a map that prepares each image, `map_batches`
with a class that runs the network, and Parquet out.

What is different without GPUs and without a cluster: an actor for each core in the place of one
for each GPU, and the batch given by `--batch`. An actor reserves no CPU, as Ray's actors on GPUs do
not; `download` reserves one for an actor that plans, so Ray is told of one more than there are.
With fewer, no CPU is left for the tasks that read and decode, and the pipeline waits forever. Ray
gives a worker one thread (OMP_NUM_THREADS=1).
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pybase64
import ray
from numpy.typing import NDArray
from PIL import Image
from ray.data.expressions import download

from protocol import CORES, Backend, Precision, Run, serve
from public_models import JOBS, clear, count_rows, embed

Row = dict[str, Any]


def decode_bytes(row: Row) -> Row:
    pixels = np.asarray(Image.open(io.BytesIO(row["bytes"])).convert("RGB"))
    return {"image_url": row["image_url"], "image": pixels}


def decode_base64(row: Row) -> Row:
    content = pybase64.b64decode(row["image"], None, True)
    return {
        "url": row["url"],
        "image": np.asarray(Image.open(io.BytesIO(content)).convert("RGB")),
    }


def preprocess(row: Row, job: str) -> Row:
    return row | {"image": JOBS[job].build_preprocess()(row["image"])}


class Network:
    def __init__(self, job: str, folder: Path) -> None:
        self.key = JOBS[job].key
        self.network = JOBS[job].load(folder)

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return {self.key: batch[self.key], "embedding": embed(self.network, batch["image"])}


@contextmanager
def prepare(folder: Path, precision: Precision, backend: Backend) -> Iterator[Run]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    downloads = name == "image_classification"
    ray.init(num_cpus=CORES + downloads, include_dashboard=False)
    output = folder / "out-ray"

    def run() -> int:
        rows = ray.data.read_parquet(str(folder / "input"))
        if downloads:
            images = rows.with_column("bytes", download("image_url")).map(decode_bytes)
        else:
            images = rows.map(decode_base64)
        embeddings = images.map(partial(preprocess, job=name)).map_batches(
            Network,
            fn_constructor_args=[name, folder],
            compute=ray.data.ActorPoolStrategy(size=CORES),
            batch_size=batch,
            num_cpus=0,
        )
        embeddings.write_parquet(clear(output))
        return count_rows(output)

    yield run
    ray.shutdown()


if __name__ == "__main__":
    # What remains is the protocol's.
    batch, name = int(sys.argv.pop()), sys.argv.pop()
    serve(prepare, ["ray", "pandas", "transformers"])
