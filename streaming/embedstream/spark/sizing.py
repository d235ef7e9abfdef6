"""How much runs at once, and how much is done between two commits for it."""

from __future__ import annotations

from pyspark.sql import SparkSession

__all__ = ["rows_a_commit", "task_cores", "task_gpus", "tasks_at_once"]

# These should take a minute or so: a fault repeats no more than that, and the commit is a small
# part of it.
_ROWS_A_CORE = 1024
_ROWS_A_GPU = 65_536


def task_cores(spark: SparkSession) -> int:
    """The cores of one task."""
    return int(spark.conf.get("spark.task.cpus", "1") or 1)


def task_gpus(spark: SparkSession) -> float:
    """The GPUs of one task; 0.5 where two share one."""
    return float(spark.conf.get("spark.task.resource.gpu.amount", "0") or 0)


def tasks_at_once(spark: SparkSession) -> int:
    """How many tasks the executors that are there run at once."""
    return max(1, spark.sparkContext.defaultParallelism // task_cores(spark))


def rows_a_commit(spark: SparkSession) -> int:
    """How many rows to embed between two commits."""
    gpus = tasks_at_once(spark) * task_gpus(spark)
    cores = spark.sparkContext.defaultParallelism
    return int(gpus * _ROWS_A_GPU) or cores * _ROWS_A_CORE
