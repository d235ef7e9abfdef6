"""What holds for every test; one broker and one Spark session serve all that end neither."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Generator
from typing import Any

import hypothesis
import pytest

from embedstream_core.model_id import PRECISIONS
from stream_fixtures import broker, configure, spark, topic

__all__ = ["broker", "configure", "spark", "topic"]

JVM_MARKS = {"spark": "spark", "broker": "kafka"}
"""What a fixture starts."""

# `make test-all` names the second: with it Hypothesis finds more, and takes longer.
hypothesis.settings.register_profile("quick", max_examples=40, deadline=None)
hypothesis.settings.register_profile("all", max_examples=400, deadline=None)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--precision",
        choices=[*PRECISIONS, "measured"],
        default="float32",
        help="what encoder.precision auto finds; measured: it depends on this machine",
    )


def pytest_configure(config: pytest.Config) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        # Threads of several processes that wait for one another would take half of the time.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    precision = config.getoption("--precision")
    if precision != "measured":
        # Drivers that the tests start as processes inherit it.
        os.environ["EMBEDSTREAM_AUTO_PRECISION"] = precision
    if not config.getoption("--hypothesis-profile"):
        hypothesis.settings.load_profile("quick")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need a JVM, and put them first, so that the short ones fill the end."""
    for item in items:
        for fixture in JVM_MARKS.keys() & set(getattr(item, "fixturenames", ())):
            item.add_marker(JVM_MARKS[fixture])
    items.sort(key=lambda item: not any(map(item.get_closest_marker, JVM_MARKS.values())))


def pytest_collection_finish() -> None:
    """Keep the garbage collector from visiting the modules and test items again and again."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """Let pytest-xdist send what tests print: it takes no lone surrogates."""
    return _replace_surrogates((yield))


def _replace_surrogates(value: Any) -> Any:
    match value:
        case str():
            return value.encode(errors="backslashreplace").decode()
        case list() | tuple():
            return type(value)(map(_replace_surrogates, value))
        case dict():
            return {key: _replace_surrogates(each) for key, each in value.items()}
        case _:
            return value


@pytest.fixture(autouse=True)
def enabled_loggers() -> None:
    """Enable our loggers: `logging.config.fileConfig`, as alembic calls it, disables all others."""
    for name, logger in logging.root.manager.loggerDict.items():
        if name.startswith("embedstream") and isinstance(logger, logging.Logger):
            logger.disabled = False
