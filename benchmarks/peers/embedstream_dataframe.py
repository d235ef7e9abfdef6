"""embedstream over a DataFrame: the same function that the stream runs on each micro-batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from pyspark.sql import functions as f

from embedstream.featurizer import featurize_messages
from embedstream.job import featurizer
from embedstream.session import open_session
from embedstream_config import config
from embedstream_core.weights import ModelSpec, prepare_model
from protocol import Backend, Precision, Run, serve
from spark import consume


@contextmanager
def prepare(images: Path, precision: Precision, backend: Backend) -> Iterator[Run]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="embedstream-benchmark-")))
        settings = config(folder, precision, backend)
        spark = stack.enter_context(open_session(settings.spark, settings.pipeline))
        model = prepare_model(ModelSpec("resnet50", "random"))
        function = featurizer(spark, settings, model)
        messages = (
            spark.read.parquet(str(images))
            .repartition(spark.sparkContext.defaultParallelism)
            .select(
                f.lit("images").alias("topic"),
                f.lit(0).alias("partition"),
                f.monotonically_increasing_id().alias("offset"),
                f.current_timestamp().alias("timestamp"),
                f.col("id").cast("binary").alias("key"),
                f.col("content").alias("value"),
                f.lit(None).cast("array<struct<key:string,value:binary>>").alias("headers"),
            )
        )
        yield lambda: consume(featurize_messages(messages, function))


if __name__ == "__main__":
    serve(prepare, ["pyspark", "pandas"])
