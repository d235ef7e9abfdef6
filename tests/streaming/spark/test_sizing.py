"""How much runs at once, and how much is done in one commit."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from embedstream.spark.sizing import count_parallel_tasks, count_rows_per_commit


@pytest.mark.parametrize(
    ("settings", "tasks", "rows"),
    [
        ({}, 8, 8 * 1024),
        ({"spark.task.cpus": "4"}, 2, 8 * 1024),
        ({"spark.task.cpus": "16"}, 1, 8 * 1024),
        ({"spark.task.resource.gpu.amount": "0"}, 8, 8 * 1024),
        ({"spark.task.cpus": "4", "spark.task.resource.gpu.amount": "1"}, 2, 2 * 65_536),
        ({"spark.task.cpus": "2", "spark.task.resource.gpu.amount": "0.5"}, 4, 2 * 65_536),
    ],
)
def test_tasks_and_rows_follow_cores_and_gpus(
    settings: dict[str, str], tasks: int, rows: int
) -> None:
    # Eight cores and GPUs, which few machines have that test this.
    spark: Any = SimpleNamespace(
        conf=SimpleNamespace(get=settings.get), sparkContext=SimpleNamespace(defaultParallelism=8)
    )

    assert count_parallel_tasks(spark) == tasks
    assert count_rows_per_commit(spark) == rows
