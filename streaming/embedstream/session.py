"""The SparkSession: jars, Delta, Arrow limits, redaction. Nothing else configures Spark."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyspark import SparkConf, SparkContext
from pyspark.sql import SparkSession

from embedstream.config import PipelineConfig, SparkConfig, revealed
from embedstream.jars import default_jars_folder, fetch_jars
from embedstream.java import find_java

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["open_session", "warm_workers"]

# Four attempts for each task: plain local[*] fails the whole job at a task's first failure.
DEFAULT_MASTER = "local[*,4]"

_JVM_END_TIMEOUT_S = 30

_SECRETS = "(?i)secret|password|token|credential|access[.]?key|sasl|jaas"

_SETTINGS: Mapping[str, str] = {
    "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
    "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
    "spark.sql.session.timeZone": "UTC",
    "spark.python.worker.reuse": "true",
    "spark.python.daemon.module": "embedstream.daemon",
    "spark.redaction.regex": _SECRETS,
    "spark.sql.redaction.options.regex": f"{_SECRETS}|url",
    "spark.ui.showConsoleProgress": "false",
    # By default each commit to the table runs 50 to 200 tasks over a log of a few kilobytes: on two
    # cores the first then took 40 s, and takes 16 s so; see docs/decisions/0006.
    "spark.databricks.delta.snapshotPartitions": "1",
    "spark.sql.shuffle.partitions": "1",
}


@contextmanager
def open_session(config: SparkConfig, pipeline: PipelineConfig) -> Iterator[SparkSession]:
    """A session for the stream, stopped on leaving.

    Raises:
        SetupError: Java is missing or too old, or a jar cannot be had.
    """
    _use_java()
    builder = SparkSession.builder.appName(config.app_name)
    for name, value in _settings(config, pipeline).items():
        builder = builder.config(name, value)
    with _standard_error_to(config.log_file):
        spark = builder.getOrCreate()
    try:
        yield spark
    finally:
        _end(spark)


def warm_workers(spark: SparkSession) -> None:
    """Start the Python workers, whose imports take seconds, and wait until they are there."""
    slots = spark.sparkContext.defaultParallelism
    spark.range(0, slots, 1, slots).mapInPandas(_same, "id long").write.format("noop").mode(
        "overwrite"
    ).save()


def _same(frames: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    return frames


def _end(spark: SparkSession) -> None:
    """Stop Spark and wait until its JVM is gone: nothing is left running.

    A JVM that PySpark did not launch, as under spark-submit, is not ours to end.
    """
    gateway: Any = SparkContext._gateway
    spark.stop()
    jvm: subprocess.Popen[bytes] | None = getattr(gateway, "proc", None)
    if jvm is None or jvm.stdin is None:
        return
    gateway.shutdown()
    jvm.stdin.close()
    jvm.wait(_JVM_END_TIMEOUT_S)
    # PySpark launches a new one when it finds none.
    SparkContext._gateway = SparkContext._jvm = None


def _settings(config: SparkConfig, pipeline: PipelineConfig) -> dict[str, str]:
    settings = {
        **_SETTINGS,
        "spark.sql.execution.arrow.maxRecordsPerBatch": str(pipeline.arrow_batch_rows),
        "spark.sql.execution.arrow.maxBytesPerBatch": str(pipeline.arrow_batch_bytes),
        **revealed(config.options),
    }
    if config.jars == "fetch":
        jars = fetch_jars(config.jar_sets, default_jars_folder())
        settings["spark.jars"] = ",".join(map(str, jars))
    master = config.master or SparkConf().get("spark.master") or DEFAULT_MASTER
    if master.startswith("local["):
        settings.setdefault("spark.driver.host", "127.0.0.1")
    return {**settings, "spark.master": master}


def _use_java() -> None:
    """Let PySpark launch the very Java that was checked."""
    os.environ["JAVA_HOME"] = str(find_java().resolve().parent.parent)
    # Workers must run the interpreter that embedstream is installed in.
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)


@contextmanager
def _standard_error_to(log_file: str | None) -> Iterator[None]:
    """Give the JVM, which inherits standard error when it is launched, a file instead."""
    if log_file is None:
        yield
        return
    path = Path(log_file)
    path.parent.mkdir(parents=True, exist_ok=True)
    own = os.dup(sys.__stderr__.fileno() if sys.__stderr__ else 2)
    with path.open("ab") as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(own, 2)
            os.close(own)
