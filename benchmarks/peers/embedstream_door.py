"""embedstream through one of its batch doors, in a session as its users have it."""

from __future__ import annotations

import atexit
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as f

from embedstream import (
    EncoderConfig,
    ImageFeaturizer,
    featurize,
    log_encoder,
    register_functions,
    vectorizer,
)
from protocol import EMBEDDINGS, WEIGHTS, Backend, Precision, Run, serve
from spark import consume, local_session

Door = Callable[[SparkSession, EncoderConfig], Callable[[DataFrame], DataFrame]]


def _featurize(spark: SparkSession, encoder: EncoderConfig) -> Callable[[DataFrame], DataFrame]:
    return lambda images: featurize(images, encoder=encoder)


def _column(spark: SparkSession, encoder: EncoderConfig) -> Callable[[DataFrame], DataFrame]:
    vectorize = vectorizer(spark, encoder=encoder)
    return lambda images: images.withColumn("embedding", vectorize("content"))


def _spark_ml(spark: SparkSession, encoder: EncoderConfig) -> Callable[[DataFrame], DataFrame]:
    featurizer = ImageFeaturizer(encoder=encoder, outputCol="embedding", outputType="array")
    return featurizer.transform


def _sql(spark: SparkSession, encoder: EncoderConfig) -> Callable[[DataFrame], DataFrame]:
    register_functions(spark, encoder=encoder)
    return lambda images: images.withColumn("embedding", f.expr("image_embedding(content)"))


def _mlflow(spark: SparkSession, encoder: EncoderConfig) -> Callable[[DataFrame], DataFrame]:
    # The other doors are not to pay for its import.
    import mlflow

    store = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, store)
    mlflow.set_tracking_uri(f"sqlite:///{store}/mlflow.db")
    artifacts = (store / "artifacts").as_uri()
    mlflow.set_experiment(experiment_id=mlflow.create_experiment("door", artifacts))
    model = mlflow.pyfunc.spark_udf(spark, log_encoder(encoder).model_uri, env_manager="local")
    return lambda images: images.withColumn("embedding", model("content")["embedding"])


DOORS: Mapping[str, Door] = {
    "featurize": _featurize,
    "column": _column,
    "spark_ml": _spark_ml,
    "sql": _sql,
    "log_encoder": _mlflow,
}


@contextmanager
def prepare(images: Path, precision: Precision, backend: Backend) -> Iterator[Run]:
    encoder = EncoderConfig(
        name=encoder_name, weights=WEIGHTS[encoder_name], precision=precision, backend=backend
    )
    with local_session() as spark:
        through = DOORS[door](spark, encoder)
        source = spark.read.parquet(str(images))

        def run() -> int:
            rows = source.repartition(spark.sparkContext.defaultParallelism)
            return consume(through(rows).select("id", "embedding"), size=EMBEDDINGS[encoder_name])

        yield run


if __name__ == "__main__":
    # What remains is the protocol's.
    door, encoder_name = sys.argv.pop(), sys.argv.pop()
    serve(prepare, ["pyspark"])
