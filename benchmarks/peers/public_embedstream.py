"""embedstream's side of the published jobs: `featurize` of a DataFrame, in a user's session.

The addresses are references that the DataFrame's configuration allows; base64 is Spark's. All
settings but the model are the defaults.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyspark.sql import functions as f

from embedstream import DataFrameConfig, EncoderConfig, featurize
from protocol import Backend, Precision, Run, serve
from public_models import JOBS, clear, count_rows
from spark import local_session


@contextmanager
def prepare(folder: Path, precision: Precision, backend: Backend) -> Iterator[Run]:
    key = JOBS[name].key
    is_reference = name == "image_classification"
    encoder = EncoderConfig(
        name="resnet18" if is_reference else "huggingface",
        weights=str(folder / ("model.pt" if is_reference else "model")),
        precision=precision,
        backend=backend,
    )
    # No image of the other job is fetched.
    allowed = {"schemes": ["file"], "folders": [str(folder / "images")] if is_reference else []}
    config = DataFrameConfig.model_validate({"references": allowed})
    output = folder / "out-embedstream"
    with local_session() as spark:

        def run() -> int:
            rows = spark.read.parquet(str(folder / "input"))
            rows = rows.repartition(spark.sparkContext.defaultParallelism)
            content = f.col(key) if is_reference else f.unbase64("image")
            images = rows.select(key, content.alias("content"))
            embeddings = featurize(images, encoder=encoder, config=config)
            embeddings.select(key, "embedding").write.parquet(clear(output))
            return count_rows(output)

        yield run


if __name__ == "__main__":
    # What remains is the protocol's.
    name = sys.argv.pop()
    serve(prepare, ["pyspark", "transformers"])
