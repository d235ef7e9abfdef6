"""How much work runs at once, and how much is done between two commits."""

from __future__ import annotations

from pyspark.sql import SparkSession

__all__ = ["count_parallel_tasks", "count_rows_per_commit", "count_task_cores", "count_task_gpus"]

# About a minute of work: a fault repeats no more than that, and the commit is a small part of it.
_ROWS_A_CORE = 1024
_ROWS_A_GPU = 65_536


def count_task_cores(spark: SparkSession) -> int:
    """Return the number of cores of one task."""
    return int(spark.conf.get("spark.task.cpus", "1") or 1)


def count_task_gpus(spark: SparkSession) -> float:
    """Return the number of GPUs of one task; 0.5 if two tasks share one."""
    return float(spark.conf.get("spark.task.resource.gpu.amount", "0") or 0)


def count_parallel_tasks(spark: SparkSession) -> int:
    """Return how many tasks the running executors execute at once."""
    return max(1, spark.sparkContext.defaultParallelism // count_task_cores(spark))


def count_rows_per_commit(spark: SparkSession) -> int:
    """Return how many rows to embed between two commits."""
    gpus = count_parallel_tasks(spark) * count_task_gpus(spark)
    return int(gpus * _ROWS_A_GPU) or spark.sparkContext.defaultParallelism * _ROWS_A_CORE
