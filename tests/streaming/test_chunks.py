"""How much is done in one commit."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from pyspark import SparkConf

from embedstream.chunks import rows_a_commit


@pytest.mark.parametrize(
    ("gpus", "rows"), [(None, 2 * 1024), ("0", 2 * 1024), ("1", 2 * 65_536), ("0.5", 2 * 65_536)]
)
def test_rows_of_a_commit_follow_the_tasks(gpus: str | None, rows: int) -> None:
    conf = SparkConf(loadDefaults=False)
    if gpus is not None:
        conf.set("spark.task.resource.gpu.amount", gpus)
    session: Any = SimpleNamespace(
        sparkContext=SimpleNamespace(defaultParallelism=2, getConf=lambda: conf)
    )

    assert rows_a_commit(session) == rows
