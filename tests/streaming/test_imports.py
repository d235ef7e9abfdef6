"""What an import costs: only what its users need."""

from __future__ import annotations

import subprocess
import sys

import pytest

ROOMS_OF_A_STREAM = {"recovery", "stream", "bulk", "cli", "monitor", "kafka"}


def imported(statement: str) -> set[str]:
    program = f"{statement}; import sys; print(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    )
    return set(run.stdout.split())


def test_a_batch_user_loads_no_recovery_and_no_command() -> None:
    modules = imported("from embedstream import featurize")

    assert "embedstream.api.dataframe" in modules
    rooms = {name.split(".")[1] for name in modules if name.startswith("embedstream.")}
    assert not rooms & ROOMS_OF_A_STREAM


@pytest.mark.parametrize("module", ["embedstream.table.rows", "embedstream.table.delta"])
def test_the_tables_schema_needs_no_torch(module: str) -> None:
    modules = imported(f"import {module}")

    assert module in modules
    assert "torch" not in modules


def test_the_configuration_needs_neither_spark_nor_what_computes() -> None:
    modules = imported("import embedstream.config.sections")

    assert "embedstream_core.settings" in modules
    assert not modules & {"torch", "numpy", "PIL", "httpcore", "pyspark", "pandas"}


def test_the_command_starts_without_spark_and_torch() -> None:
    modules = imported("import embedstream.cli.app")

    assert not modules & {"torch", "pyspark", "pandas"}
