"""What fault tests share."""

from __future__ import annotations

import logging
import os
import random

import pytest
from pyspark.sql import SparkSession

from drivers import Vectors, undisturbed_vectors
from embedstream.kafka.dev_broker import Broker
from mixed_streams import Mix

LOG = logging.getLogger(__name__)

# What make test-all shows as it runs is seeds and faults, not each connection.
for library in ("kafka", "py4j", "werkzeug", "botocore"):
    logging.getLogger(library).setLevel(logging.WARNING)


@pytest.fixture(scope="session")
def vectors(
    spark: SparkSession, broker: Broker, tmp_path_factory: pytest.TempPathFactory
) -> Vectors:
    return undisturbed_vectors(spark, broker, tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture(scope="session")
def mix(tmp_path_factory: pytest.TempPathFactory) -> Mix:
    return Mix.of(tmp_path_factory.mktemp("mix"))


@pytest.fixture
def chance() -> random.Random:
    """Chance that can be had again, by EMBEDSTREAM_SEED."""
    seed = int(os.getenv("EMBEDSTREAM_SEED") or random.randrange(2**32))
    LOG.warning("EMBEDSTREAM_SEED=%d", seed)
    return random.Random(seed)
