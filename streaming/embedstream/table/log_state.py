"""Compute the state of the table's log between two micro-batches; see docs/decisions/0042.

Delta's sink needs it to see whether a micro-batch is in the table already.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession
from pyspark.sql.streaming.query import StreamingQuery

from embedstream.spark.java_classes import compile_class
from embedstream.table.address import TableAddress

__all__ = ["compute_state_ahead"]

_SOURCE = Path(__file__).with_name("LogState.java")


def compute_state_ahead(spark: SparkSession, query: StreamingQuery, table: TableAddress) -> None:
    """Start a thread of the JVM that computes the state after each micro-batch of the query.

    Raises:
        Py4JJavaError: this Delta has other classes than the released ones, as Databricks' has.
    """
    context: Any = spark.sparkContext
    jvm, session = context._jvm, spark._jsparkSession
    log = jvm.org.apache.spark.sql.delta.DeltaLog.forTable(session, table.path)
    arguments = context._gateway.new_array(jvm.Object, 3)
    arguments[:] = session, log, query._jsq
    computing = jvm.Thread(compile_class(spark, _SOURCE).newInstance(arguments), "log-state")
    computing.setDaemon(True)
    computing.start()
