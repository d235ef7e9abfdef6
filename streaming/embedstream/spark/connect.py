"""Spark Connect: which sessions are its clients, and the key of a session."""

from __future__ import annotations

from pyspark.sql import SparkSession

__all__ = ["get_session_key", "is_connect"]


def is_connect(spark: SparkSession) -> bool:
    """Return whether a session is a client of Spark Connect."""
    return not hasattr(spark, "_jsparkSession")


def get_session_key(spark: SparkSession) -> str:
    """Return the id that a broadcast model belongs to: of the application, or a Connect session."""
    if is_connect(spark):
        return str(spark.session_id)  # type: ignore[attr-defined]
    return str(spark.sparkContext.applicationId)
