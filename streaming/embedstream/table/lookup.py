"""Find the folder of a table for what reads it without Spark; imports Spark only if it must."""

from __future__ import annotations

from typing import TypeVar

from embedstream.config.sections import BulkFilesConfig, StreamConfig

__all__ = ["find_table"]

Config = TypeVar("Config", bound=StreamConfig | BulkFilesConfig)


def find_table(config: Config) -> Config:
    """Return the configuration with the folder of its table.

    A configured path is taken as it is. Where only a catalog knows the folder, it is asked once:
    through the Spark session that is open in this process, else through a short one of its own.

    Raises:
        SetupError: as `resolve_table` and `open_session`.
    """
    if config.table.path:
        return config
    from pyspark import SparkContext
    from pyspark.sql import SparkSession

    from embedstream.spark.session import open_session
    from embedstream.table.catalog import resolve_table

    if SparkContext._active_spark_context is not None:
        return resolve_table(SparkSession.builder.getOrCreate(), config)
    # Spark runs no task here.
    options = {**config.spark.options, "spark.ui.enabled": "false"}
    here = config.spark.model_copy(update={"master": "local[1]", "options": options})
    with open_session(here, config.pipeline, config.locations) as spark:
        return resolve_table(spark, config)
