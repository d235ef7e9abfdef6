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

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from pyspark.sql import SparkSession
from pyspark.sql.streaming.query import StreamingQuery

from drivers import python_workers
from embedstream.config.sections import StreamConfig
from embedstream.kafka.dev_broker import Broker
from embedstream.kafka.produce import OutgoingMessage
from embedstream.stream.job import start_stream
from embedstream_core.models.card import PreparedModel
from embedstream_core.pipeline.steps import Outcomes
from mixed_streams import Mix, import_encoders
from oracle import CAREFUL, check_messages
from streams import Topic, prepared

pytestmark = [pytest.mark.kafka, pytest.mark.spark, pytest.mark.long]

LOG = logging.getLogger(__name__)

SEED = int(os.getenv("EMBEDSTREAM_SEED") or random.randrange(2**32))


@dataclass
class Life:
    """One topic of all modalities, and the stream over it, which is killed and started again."""

    spark: SparkSession
    topic: Topic
    mix: Mix
    config: StreamConfig
    models: tuple[PreparedModel, ...]
    damaged: dict[str, bytes] = field(default_factory=dict)
    sent: int = 0
    query: StreamingQuery | None = field(default=None, init=False)

    def send(self, count: int) -> None:
        """Messages of all kinds by turns."""
        self.topic.send(self.mix.messages(self.sent, count))
        self.sent += count

    def send_damaged(self, seed: int) -> None:
        """Send the next message, damaged."""
        (message,) = self.mix.messages(self.sent, 1)
        value = damage(message.value or b"", random.Random(seed))
        key = f"damaged.{self.sent}"
        self.topic.send([OutgoingMessage(key, value)])
        self.damaged[key] = value
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
        """Check that each message has the rows that the core makes of it."""
        table, positions = Path(self.config.table.path), self.topic.positions()
        assert len(positions) == self.sent
        check_messages(table, positions, self.expect, tolerance=CAREFUL)

    def expect(self, key: str) -> Outcomes:
        """What the core makes of a message."""
        if key in self.damaged:
            return self.mix.core.embed(self.damaged[key])
        return self.mix.expect(key)


Operation = tuple[Callable[..., None], object]

DELAYS = st.floats(0, 1.5).map(lambda delay: round(delay, 2))
OPERATIONS: st.SearchStrategy[Operation] = st.one_of(
    st.tuples(st.just(Life.send), st.integers(1, 8)),
    st.tuples(st.just(Life.send_damaged), st.integers(0, 2**32 - 1)),
    st.tuples(st.just(Life.kill_query), DELAYS),
    st.tuples(st.just(Life.kill_worker), DELAYS),
)


def live(
    spark: SparkSession, broker: Broker, mix: Mix, folder: Path, operations: list[Operation]
) -> None:
    """Start the stream before each operation; in the end process what is left, and check it."""
    LOG.info("%s", [(operation.__name__, argument) for operation, argument in operations])
    import_encoders(spark)
    topic = Topic.create(broker.bootstrap_servers, partitions=2, prefix="life")
    config = StreamConfig.model_validate(
        {
            "kafka": {
                "bootstrap_servers": topic.bootstrap_servers,
                "subscribe": topic.name,
                "max_offsets_per_trigger": 4,
            },
            "table": {"path": str(folder / topic.name / "table")},
            "checkpoint": str(folder / topic.name / "checkpoint"),
            "trigger": {"interval_s": 0},
            **mix.sections,
        }
    )
    life = Life(spark, topic, mix, config, prepared(config))
    life.send(8)
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
    mix: Mix,
    tmp_path_factory: pytest.TempPathFactory,
    operations: list[Operation],
) -> None:
    live(spark, broker, mix, tmp_path_factory.mktemp("lives"), operations)


@pytest.mark.timeout(1800)
@seed(SEED)
@settings(SETTINGS, max_examples=20)
@given(operations=st.lists(OPERATIONS, min_size=4, max_size=12))
def test_any_life(
    spark: SparkSession,
    broker: Broker,
    mix: Mix,
    tmp_path_factory: pytest.TempPathFactory,
    operations: list[Operation],
) -> None:
    LOG.warning("EMBEDSTREAM_SEED=%d", SEED)
    live(spark, broker, mix, tmp_path_factory.mktemp("lives"), operations)


def damage(content: bytes, chance: random.Random) -> bytes:
    """The content cut, with bytes flipped, or something else altogether."""
    if not content:
        return b"{"
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
