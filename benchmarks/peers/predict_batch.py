"""Spark's own function for batch inference, `predict_batch_udf`.

The form follows its documentation
(https://spark.apache.org/docs/latest/api/python/reference/api/pyspark.ml.functions.predict_batch_udf.html):
`make_predict_fn` loads the model once for a Python worker, and `predict` takes a batch of the
column as a NumPy array, here of JPEG bytes, so that no decoded pixels cross to the JVM and back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pyspark.ml.functions import predict_batch_udf
from pyspark.sql.types import ArrayType, FloatType

from protocol import Backend, Precision, Run, serve
from resnet import embed, load_model, preprocess
from spark import local_session, runner

BATCH = 50
ARROW_RECORDS = 500

Predict = Callable[[NDArray[np.object_]], NDArray[np.float32]]


@contextmanager
def prepare(images: Path, precision: Precision, backend: Backend) -> Iterator[Run]:
    def make_predict() -> Predict:
        model = load_model(precision)

        def predict(contents: NDArray[np.object_]) -> NDArray[np.float32]:
            return embed(model, torch.stack([preprocess(content) for content in contents]))

        return predict

    with local_session(ARROW_RECORDS) as spark:
        featurize = predict_batch_udf(
            make_predict, return_type=ArrayType(FloatType()), batch_size=BATCH
        )
        yield runner(spark, images, featurize)


if __name__ == "__main__":
    serve(prepare, ["pyspark", "pandas"])
