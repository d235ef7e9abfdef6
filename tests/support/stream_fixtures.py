"""Fixtures of the tests that need Kafka and Spark.

They import what they need where they need it: every test loads this module, and most need neither.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from embedstream.config.sections import StreamConfig
    from embedstream.kafka.dev_broker import Broker
    from streams import Topic

__all__ = ["broker", "configure", "run_broker", "spark", "topic"]


def run_broker(folder: Path) -> Iterator[Broker]:
    """Run a broker on a free port; it has no topic yet."""
    from embedstream.kafka.dev_broker import start_broker, stop_broker

    try:
        yield start_broker(folder)
    finally:
        stop_broker(folder)


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """The broker of all tests that do not end it."""
    yield from run_broker(tmp_path_factory.mktemp("broker"))


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    """A session with two task slots, as the job opens it."""
    from embedstream.config.sections import PipelineConfig, SparkConfig
    from embedstream.spark.session import open_session

    config = SparkConfig(
        master="local[2,4]",
        log_file=str(tmp_path_factory.mktemp("spark") / "spark.log"),
        options={
            "spark.ui.enabled": "false",
            # VACUUM lists any folder with so many tasks, 10,000 by default.
            "spark.sql.sources.parallelPartitionDiscovery.parallelism": "4",
        },
    )
    # The tests last long enough for the second compiler to pay.
    with open_session(config, PipelineConfig(), lasting=True) as session:
        yield session


@pytest.fixture
def topic(broker: Broker) -> Topic:
    """A new topic of two partitions."""
    from streams import Topic

    return Topic.create(broker.bootstrap_servers, partitions=2)


@pytest.fixture
def configure(topic: Topic, tmp_path: Path) -> Callable[..., StreamConfig]:
    """Make a configuration of the topic, with a table and a checkpoint of the test's own.

    Vectors are compared, so the precision does not depend on the machine.
    """
    from embedstream.config.sections import StreamConfig

    def make(**sections: dict[str, Any]) -> StreamConfig:
        kafka = {"bootstrap_servers": topic.bootstrap_servers, "subscribe": topic.name}
        if sections.get("kafka", {}).keys() & {"assign", "subscribe_pattern"}:
            del kafka["subscribe"]
        defaults: dict[str, Any] = {
            "table": {"path": str(tmp_path / "table")},
            "checkpoint": str(tmp_path / "checkpoint"),
        }
        encoder = {"name": "efficientnet_lite0", "precision": "float32"}
        return StreamConfig.model_validate(
            {
                **defaults,
                **sections,
                "kafka": {**kafka, **sections.get("kafka", {})},
                "encoder": {**encoder, **sections.get("encoder", {})},
            }
        )

    return make
