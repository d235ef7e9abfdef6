"""A row UDF with a broadcast model: one image at a time.

The form follows the PySpark documentation of `udf`
(https://spark.apache.org/docs/latest/api/python/reference/pyspark.sql/api/pyspark.sql.functions.udf.html)
and of broadcast variables
(https://spark.apache.org/docs/latest/rdd-programming-guide.html#broadcast-variables).
Spark starts a Python worker for each core and gives each one thread (OMP_NUM_THREADS=1).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyspark.sql.functions import udf
from pyspark.sql.types import ArrayType, FloatType

from protocol import Backend, Precision, Run, serve
from resnet import embed, load_model, preprocess
from spark import local_session, runner


@contextmanager
def prepare(images: Path, precision: Precision, backend: Backend) -> Iterator[Run]:
    with local_session() as spark:
        model = spark.sparkContext.broadcast(load_model(precision))

        @udf(returnType=ArrayType(FloatType()))
        def featurize(content: bytes) -> list[float]:
            image = preprocess(content)
            return embed(model.value, image.unsqueeze(0))[0].tolist()

        yield runner(spark, images, featurize)


if __name__ == "__main__":
    serve(prepare, ["pyspark"])
