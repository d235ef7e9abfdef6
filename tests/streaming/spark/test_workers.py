"""Python workers that are started before they are needed."""

from __future__ import annotations

from collections.abc import Callable
from uuid import uuid4

from pyspark.sql import SparkSession

from embedstream.spark.session import start_workers, warm_workers


def count_tasks(spark: SparkSession, run: Callable[[], object]) -> int:
    """Count the tasks of the jobs that a call runs."""
    context, group = spark.sparkContext, str(uuid4())
    context.setJobGroup(group, "")
    run()
    # Spark takes None to mean no group.
    context.setLocalProperty("spark.jobGroup.id", None)  # type: ignore[arg-type]
    tracker = context.statusTracker()
    jobs = [tracker.getJobInfo(job) for job in tracker.getJobIdsForGroup(group)]
    stages = [tracker.getStageInfo(stage) for job in jobs if job for stage in job.stageIds]
    return sum(stage.numTasks for stage in stages if stage)


def test_while_the_workers_import_their_libraries_another_job_has_a_slot(
    spark: SparkSession,
) -> None:
    assert count_tasks(spark, lambda: start_workers(spark)) == 1


def test_each_worker_is_warmed_and_loads_the_model(spark: SparkSession) -> None:
    loads = spark.sparkContext.accumulator(0)

    assert count_tasks(spark, lambda: warm_workers(spark, lambda: loads.add(1))) == 2
    assert loads.value == 2
