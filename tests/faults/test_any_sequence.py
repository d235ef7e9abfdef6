"""Whatever is sent, damaged, killed and started again: the oracle accepts the table."""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from pyspark.sql import SparkSession
from pyspark.sql.streaming.query import StreamingQuery

from drivers import python_workers
from embedstream.config.sections import StreamConfig
from embedstream.index.search import embed_queries
from embedstream.kafka.dev_broker import Broker
from embedstream.stream.job import start_stream
from embedstream_core.models.card import PreparedModel
from oracle import check_outcomes
from pictures import real_pictures
from small import shrink
from streams import Topic, image, prepared

pytestmark = [pytest.mark.kafka, pytest.mark.spark, pytest.mark.long]

LOG = logging.getLogger(__name__)

SEED = int(os.getenv("EMBEDSTREAM_SEED") or random.randrange(2**32))
PICTURES = 6


@dataclass
class Life:
    """One topic, and the stream over it, which is killed and started again."""

    spark: SparkSession
    topic: Topic
    config: StreamConfig
    models: tuple[PreparedModel, ...]
    sent: int = 0
    query: StreamingQuery | None = field(default=None, init=False)

    def send(self, count: int) -> None:
        """Pictures that are whole."""
        numbers = range(self.sent, self.sent + count)
        self.topic.send(image(f"good-{n}", pictures()[n % PICTURES]) for n in numbers)
        self.sent += count

    def send_damaged(self, seed: int) -> None:
        """Send the next image, damaged."""
        content = damaged(pictures()[self.sent % PICTURES], random.Random(seed))
        self.topic.send([image(f"damaged-{self.sent}", content)])
        self.sent += 1

    def start(self) -> None:
        """Start the stream unless it runs; it runs until it is killed."""
        if self.query is None or not self.query.isActive:
            self.query = start_stream(self.spark, self.config, self.models).query

    def kill_query(self, after_s: float) -> None:
        """Stop the query after a while, whatever it does."""
        time.sleep(after_s)
        if self.query is not None:
            self.query.stop()

    def kill_worker(self, after_s: float) -> None:
        """Kill one of its Python workers."""
        time.sleep(after_s)
        for worker in islice(python_workers(), 1):
            worker.kill()

    def drain(self) -> None:
        """Start again, and process what is left."""
        self.kill_query(0)
        stream = start_stream(self.spark, self.config, self.models, until="drained")
        stream.query.awaitTermination()

    def check(self) -> None:
        """Check that each message has its row, and each undamaged image its vector."""
        rows = check_outcomes(Path(self.config.table.path), self.topic.positions())
        assert len(rows) == self.sent
        model_id = self.models[0].card.model_id
        expected = embed_queries(pictures(), model_ids=[model_id])[1] if rows else []
        for row in rows.values():
            kind, _, number = row["image_id"].partition("-")
            if kind == "good":
                assert row["error"] is None, row
                vector = expected[int(number) % PICTURES]
                assert cosine(np.array(row["embedding"]), vector) > 0.999


Operation = tuple[Callable[..., None], object]

DELAYS = st.floats(0, 1.5).map(lambda delay: round(delay, 2))
OPERATIONS: st.SearchStrategy[Operation] = st.one_of(
    st.tuples(st.just(Life.send), st.integers(1, 8)),
    st.tuples(st.just(Life.send_damaged), st.integers(0, 2**32 - 1)),
    st.tuples(st.just(Life.kill_query), DELAYS),
    st.tuples(st.just(Life.kill_worker), DELAYS),
)


def live(spark: SparkSession, broker: Broker, folder: Path, operations: list[Operation]) -> None:
    """Start the stream before each operation; in the end process what is left, and check it."""
    LOG.info("%s", [(operation.__name__, argument) for operation, argument in operations])
    topic = Topic.create(broker.bootstrap_servers, partitions=2, prefix="life")
    config = StreamConfig.model_validate(
        {
            "kafka": {
                "bootstrap_servers": topic.bootstrap_servers,
                "subscribe": topic.name,
                "max_offsets_per_trigger": 4,
            },
            "encoder": {"name": "efficientnet_lite0"},
            "table": {"path": str(folder / topic.name / "table")},
            "checkpoint": str(folder / topic.name / "checkpoint"),
            "trigger": {"interval_s": 0},
        }
    )
    life = Life(spark, topic, config, prepared(config))
    life.send(4)
    try:
        for operation, argument in operations:
            life.start()
            operation(life, argument)
        life.drain()
    finally:
        life.kill_query(0)
    life.check()


SETTINGS = settings(
    database=None,
    deadline=None,
    # To shrink an example that failed would take hours: its seed repeats it.
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)


@settings(SETTINGS, max_examples=2, derandomize=True)
@given(operations=st.lists(OPERATIONS, min_size=2, max_size=4))
def test_a_short_life(
    spark: SparkSession,
    broker: Broker,
    tmp_path_factory: pytest.TempPathFactory,
    operations: list[Operation],
) -> None:
    live(spark, broker, tmp_path_factory.mktemp("lives"), operations)


@pytest.mark.timeout(1800)
@seed(SEED)
@settings(SETTINGS, max_examples=20)
@given(operations=st.lists(OPERATIONS, min_size=4, max_size=12))
def test_any_life(
    spark: SparkSession,
    broker: Broker,
    tmp_path_factory: pytest.TempPathFactory,
    operations: list[Operation],
) -> None:
    LOG.warning("EMBEDSTREAM_SEED=%d", SEED)
    live(spark, broker, tmp_path_factory.mktemp("lives"), operations)


def damaged(content: bytes, chance: random.Random) -> bytes:
    """The content cut, with bytes flipped, or something else altogether."""
    match chance.randrange(4):
        case 0:
            return content[: chance.randrange(len(content))]
        case 1:
            return b"{" + chance.randbytes(30)
        case 2:
            return chance.randbytes(chance.randrange(200))
        case _:
            flipped = bytearray(content)
            for _ in range(chance.randint(1, 20)):
                flipped[chance.randrange(len(flipped))] = chance.randrange(256)
            return bytes(flipped)


def pictures() -> list[bytes]:
    """Real ones, made tiny."""
    return [shrink(content) for content in islice(real_pictures().values(), PICTURES)]


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))
