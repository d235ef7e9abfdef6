"""What holds for every test."""

from __future__ import annotations

import os

import pytest

from embedstream_core.model_id import PRECISIONS


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--precision",
        choices=PRECISIONS,
        help="what encoder.precision auto finds on this machine, instead of measuring",
    )


def pytest_configure(config: pytest.Config) -> None:
    if precision := config.getoption("--precision"):
        # Drivers that the tests start as processes inherit it.
        os.environ["EMBEDSTREAM_AUTO_PRECISION"] = precision
