"""What the peers on Spark share: a local session, its input, and a sink that keeps nothing."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pyspark.sql import Column, DataFrame, Observation, SparkSession
from pyspark.sql import functions as F  # noqa: N812

from protocol import CORES, EMBEDDING, Run

Featurize = Callable[[str], Column]
"""A UDF: the name of the column of bytes to the column of embeddings."""


@contextmanager
def local_session(arrow_records: int | None = None) -> Iterator[SparkSession]:
    """A session on `CORES` cores; Spark's defaults but for the rows of an Arrow batch."""
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder = SparkSession.builder.master(f"local[{CORES}]").config("spark.ui.enabled", False)
    builder = builder.config("spark.ui.showConsoleProgress", False)
    builder = builder.config("spark.driver.bindAddress", "127.0.0.1")
    builder = builder.config("spark.driver.host", "127.0.0.1")
    if arrow_records is not None:
        builder = builder.config("spark.sql.execution.arrow.maxRecordsPerBatch", arrow_records)
    spark = builder.getOrCreate()
    try:
        yield spark
    finally:
        spark.stop()


def runner(
    spark: SparkSession, images: Path, featurize: Featurize, *, size: int = EMBEDDING
) -> Run:
    """Featurizes on all cores: a file of one row group is one partition until repartitioned."""
    source = spark.read.parquet(str(images))

    def run() -> int:
        rows = source.repartition(spark.sparkContext.defaultParallelism)
        return consume(rows.select("id", featurize("content").alias("embedding")), size=size)

    return run


def consume(embeddings: DataFrame, *, size: int = EMBEDDING) -> int:
    """Writes to nowhere, and counts the embeddings of so many floats on their way there."""
    seen = Observation()
    whole = F.count_if(F.size("embedding") == size).alias("embeddings")
    observed = embeddings.observe(seen, whole)
    observed.write.format("noop").mode("overwrite").save()
    return int(seen.get["embeddings"])
