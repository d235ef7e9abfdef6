"""All servers of references are down: the micro-batch waits, and no row has an error of it."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image
from pyspark.errors import StreamingQueryException
from pyspark.sql import SparkSession

from embedstream.config.sections import StreamConfig
from embedstream.kafka.dev_broker import Broker
from embedstream.stream.job import start_stream
from fetch_places import Site, open_site
from oracle import check_outcomes, read_rows
from streams import Topic, drain, json_message, prepared

pytestmark = [pytest.mark.kafka, pytest.mark.spark]

Configure = Callable[..., StreamConfig]

MESSAGES = 40


@pytest.fixture
def site() -> Iterator[Site]:
    """A server of images that is down."""
    with open_site() as site:
        site.otherwise = lambda visit: visit.answer(503)
        yield site


@pytest.fixture
def topic(broker: Broker) -> Topic:
    """One partition, and so one task: all references are in it."""
    return Topic.create(broker.bootstrap_servers, partitions=1, prefix="outage")


@pytest.fixture
def config(site: Site, topic: Topic, configure: Configure) -> StreamConfig:
    """A stream over references to the site."""
    topic.send(json_message(str(n), uri=f"{site.url}/{n}.png") for n in range(MESSAGES))
    references = {
        "schemes": ["http"],
        "hosts": [f"127.0.0.1:{site.port}"],
        "networks": ["127.0.0.0/8"],
        "attempts": 1,
    }
    return configure(references=references, kafka={"min_partitions": 1})


def repair(site: Site) -> None:
    """Let the site serve its images again."""
    data = io.BytesIO()
    Image.effect_noise((40, 40), 50).convert("RGB").save(data, "PNG")
    site.otherwise = lambda visit: visit.answer(200, data.getvalue())


def check_all_good(config: StreamConfig, topic: Topic) -> None:
    rows = check_outcomes(Path(config.table.path), topic.positions())
    assert [row["error"] for row in rows.values() if row["error"]] == []


@pytest.mark.long
def test_a_total_outage_stops_the_stream_without_a_row_and_nothing_is_lost(
    spark: SparkSession, site: Site, topic: Topic, config: StreamConfig
) -> None:
    started = time.monotonic()
    with pytest.raises(StreamingQueryException) as caught:
        drain(spark, config)
    trace = str(getattr(caught.value, "_stackTrace", ""))
    assert re.search("an outage: [2-4][0-9] references in a row .* the server answered 503", trace)
    # Four attempts: after each a pause, which doubles.
    assert time.monotonic() - started > 1 + 2 + 4
    assert len(site.requests) >= 4 * 20
    assert read_rows(Path(config.table.path)) == {}

    repair(site)
    drain(spark, config)

    check_all_good(config, topic)


def test_an_outage_that_ends_during_the_pause_has_no_effect(
    spark: SparkSession, site: Site, topic: Topic, config: StreamConfig
) -> None:
    stream = start_stream(spark, config, prepared(config), until="drained")
    _wait_for_a_pause(site)
    repair(site)
    stream.query.awaitTermination()

    check_all_good(config, topic)


def _wait_for_a_pause(site: Site) -> None:
    deadline, seen = time.monotonic() + 60, -1
    while len(site.requests) < 20 or len(site.requests) > seen:
        assert time.monotonic() < deadline, "the references are not requested"
        seen = len(site.requests)
        time.sleep(0.3)
