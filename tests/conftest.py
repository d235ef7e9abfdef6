"""What holds for every test; one broker and one Spark session serve all that end neither."""

from __future__ import annotations

import os

import pytest

from embedstream_core.model_id import PRECISIONS
from stream_fixtures import broker, configure, spark, topic

__all__ = ["broker", "configure", "spark", "topic"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--precision",
        choices=[*PRECISIONS, "measured"],
        default="float32",
        help="what encoder.precision auto finds; measured: it depends on this machine",
    )


def pytest_configure(config: pytest.StreamConfig) -> None:
    precision = config.getoption("--precision")
    if precision != "measured":
        # Drivers that the tests start as processes inherit it.
        os.environ["EMBEDSTREAM_AUTO_PRECISION"] = precision
