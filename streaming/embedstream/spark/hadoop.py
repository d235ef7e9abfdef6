"""Hadoop's file systems, through the driver's JVM."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from embedstream.config.locations import get_scheme
from embedstream.spark.errors import find_root_cause, name_causes
from embedstream_core.errors import SetupError

__all__ = ["explain_location", "locate"]

# What Hadoop raises if no jar has the file system of a scheme.
_NO_FILE_SYSTEM = {
    "UnsupportedFileSystemException",
    "ClassNotFoundException",
    "NoClassDefFoundError",
}

_WHERE_TO_FIND_IT: Mapping[str, str] = {
    "abfs": "hadoop-azure has it",
    "abfss": "hadoop-azure has it",
    "dbfs": "only Databricks has it",
    "gs": "Google's gcs-connector has it",
    "s3": "write s3a://, which embedstream fetches",
    "s3a": "add s3 to spark.jar_sets, which fetches it",
    "s3n": "write s3a://, which embedstream fetches",
    "wasb": "hadoop-azure has it",
    "wasbs": "hadoop-azure has it",
}


@contextmanager
def locate(spark: SparkSession, location: str, name: str = "") -> Iterator[tuple[Any, Any]]:
    """Yield the file system of a location, and the path of it or of a file in it, as Java objects.

    Raises:
        SetupError: Java raises an exception, here or in the body.
    """
    jvm: Any = spark.sparkContext._jvm
    java_context: Any = spark.sparkContext._jsc
    try:
        path = jvm.org.apache.hadoop.fs.Path(f"{location}/{name}" if name else location)
        yield path.getFileSystem(java_context.hadoopConfiguration()), path
    except (Py4JJavaError, PySparkException) as error:
        reason = explain_location(location, name_causes(error), find_root_cause(error))
        raise SetupError(reason) from error


def explain_location(location: str, kinds: set[str], reason: str) -> str:
    """Return a sentence about a location for which Java raised exceptions of these classes."""
    if kinds & _NO_FILE_SYSTEM:
        hint = _WHERE_TO_FIND_IT.get(get_scheme(location) or "", "another jar has it")
        return (
            f"Spark has no file system for '{location}' ({reason}): {hint}; add a jar with "
            "spark.jars or spark.jars.packages in spark.options, or set `spark.jars: provided` if "
            "the cluster has it"
        )
    # Hadoop reports an unknown host as an illegal argument.
    if "IllegalArgumentException" in kinds and "UnknownHostException" not in kinds:
        return f"'{location}' is not a location that Spark can read ({reason}); correct it"
    return (
        f"'{location}' cannot be reached ({reason}); correct it, or its credentials and address in "
        "spark.options (`spark.hadoop.fs.…`)"
    )
