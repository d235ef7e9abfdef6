"""Spark Connect: which sessions are its clients, and what a session is known by."""

from __future__ import annotations

from pyspark.sql import SparkSession

__all__ = ["is_connect", "session_key"]


def is_connect(spark: SparkSession) -> bool:
    """Whether a session is a client of Spark Connect's."""
    return not hasattr(spark, "_jsparkSession")


def session_key(spark: SparkSession) -> str:
    """What a model that was sent belongs to: the application, or the session over Connect."""
    if is_connect(spark):
        return str(spark.session_id)  # type: ignore[attr-defined]
    return str(spark.sparkContext.applicationId)
