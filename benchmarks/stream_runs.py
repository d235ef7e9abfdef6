"""What the benchmarks of whole streams share: settings, a broker with messages, a drained query."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from deltalake import DeltaTable, QueryBuilder
from kafka import KafkaProducer
from pyspark.sql import DataFrame, Observation, SparkSession
from pyspark.sql import functions as f

import free
from embedstream.config.sections import StreamConfig
from embedstream.kafka.admin import create_topic
from embedstream.kafka.dev_broker import start_broker, stop_broker
from embedstream.spark.session import open_session
from embedstream.stream.job import build_featurizer, start_stream
from embedstream.worker.messages import featurize_messages
from embedstream.worker.model import prepare
from embedstream_core.models.card import PreparedModel
from images import jpegs
from processes import ProcessTree, measure
from turns import Turn, Turns, take_turns

__all__ = [
    "APPEND_TIME",
    "CORES",
    "Drained",
    "Workplace",
    "broker",
    "brokerless",
    "compare_drains",
    "drain",
    "embeddings",
    "fill",
    "fresh",
    "messages",
    "opened",
    "over_dataframe",
    "producer",
    "read_spark_cpu_s",
    "send",
    "settings",
    "workplace",
]

CORES = 2

APPEND_TIME = {"log.message.timestamp.type": "LogAppendTime"}
"""A property of the broker: it stamps messages when it appends them."""

_TOPIC = "pictures"
_PER_MICRO_BATCH = 32

_HERE = Path(__file__).parent

# kafka-python queues without bound.
_QUEUED = 1000


@dataclass(frozen=True, slots=True)
class Drained:
    """A query that ended once all messages were in the table; `progress` of its micro-batches.

    The items of `turn` are embeddings; its CPU seconds include the broker's.
    """

    turn: Turn
    progress: Sequence[Any]
    settings: StreamConfig

    @property
    def embeddings(self) -> int:
        return self.turn.items

    @property
    def images_per_s(self) -> float:
        return self.turn.items_per_s


@dataclass(frozen=True, slots=True)
class Workplace:
    """A folder of its own, and a broker that runs in it if there is one."""

    folder: Path
    servers: str = "no broker"


@contextmanager
def brokerless() -> Iterator[Workplace]:
    """All of it is gone afterwards."""
    with tempfile.TemporaryDirectory(
        prefix="embedstream-benchmark-", ignore_cleanup_errors=True
    ) as folder:
        yield Workplace(Path(folder))


@contextmanager
def workplace(properties: Mapping[str, str] | None = None) -> Iterator[Workplace]:
    """All of it is gone afterwards."""
    with brokerless() as place, broker(place.folder, properties) as servers:
        yield replace(place, servers=servers)


@contextmanager
def broker(folder: Path, properties: Mapping[str, str] | None = None) -> Iterator[str]:
    """A broker's address."""
    try:
        yield start_broker(folder / "broker", properties=properties).bootstrap_servers
    finally:
        stop_broker(folder / "broker")


@contextmanager
def producer(servers: str) -> Iterator[Any]:
    client = KafkaProducer(bootstrap_servers=servers, acks="all", max_request_size=16 * 2**20)
    try:
        yield client
        client.flush()
    finally:
        client.close()


def fill(servers: str, topic: str, values: Sequence[bytes], *, partitions: int = CORES) -> None:
    """Messages in a new topic."""
    create_topic(servers, topic, partitions=partitions)
    send(servers, topic, values, partitions=partitions)


def send(servers: str, topic: str, values: Sequence[bytes], *, partitions: int = CORES) -> None:
    """Messages to a topic, dealt to its partitions in turns, so that tasks are alike."""
    with producer(servers) as client:
        for first in range(0, len(values), _QUEUED):
            some = islice(enumerate(values), first, first + _QUEUED)
            sent = [
                client.send(
                    topic, key=b"picture-%d" % index, value=value, partition=index % partitions
                )
                for index, value in some
            ]
            for future in sent:
                future.get(60)


def settings(
    place: Workplace,
    topic: str,
    *,
    encoder: str = free.NAME,
    weights: str | None = None,
    precision: str = "float32",
    backend: str = "torch",
    master: str = f"local[{CORES},4]",
    options: Mapping[str, str] | None = None,
    **sections: dict[str, Any],
) -> StreamConfig:
    """embedstream as it comes, on two cores."""
    folder = place.folder / uuid.uuid4().hex
    chosen: dict[str, Any] = {
        "kafka": {"bootstrap_servers": place.servers, "subscribe": topic},
        "encoder": {
            "name": encoder,
            "weights": weights or ("random" if encoder == free.NAME else "default"),
            "precision": precision,
            "backend": backend,
        },
        "table": {"path": str(folder / "table")},
        "checkpoint": str(folder / "checkpoint"),
        "spark": {
            "master": master,
            "log_file": str(place.folder / "spark.log"),
            "options": {
                "spark.ui.enabled": "false",
                "spark.sql.warehouse.dir": str(place.folder / "warehouse"),
                **(options or {}),
            },
        },
    }
    return StreamConfig.model_validate({**chosen, **sections})


@contextmanager
def opened(
    config: StreamConfig, *, lasting: bool = False
) -> Iterator[tuple[SparkSession, PreparedModel]]:
    """A session whose workers can import these modules, and the model.

    It is `lasting` as that of a stream which runs until it is stopped.
    """
    paths = (str(_HERE), *os.getenv("PYTHONPATH", "").split(os.pathsep))
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(filter(None, paths)))
    with open_session(config.spark, config.pipeline, lasting=lasting) as spark:
        yield spark, prepare(config.encoder)


def fresh(config: StreamConfig, topic: str | None = None) -> StreamConfig:
    """The same with an empty table and checkpoint, and another topic where one is given."""
    folder = Path(config.checkpoint).parent.parent / uuid.uuid4().hex
    return config.model_copy(
        update={
            "kafka": config.kafka.model_copy(update={"subscribe": topic or config.kafka.subscribe}),
            "table": config.table.model_copy(update={"path": str(folder / "table")}),
            "checkpoint": str(folder / "checkpoint"),
        }
    )


def drain(
    spark: SparkSession, config: StreamConfig, model: PreparedModel, *, topic: str | None = None
) -> Drained:
    """From the start of the query to its end, all messages into an empty table."""
    new = fresh(config, topic)
    with measure() as spent:
        query = start_stream(spark, new, [model], until="drained").query
        query.awaitTermination()
    return Drained(spent.on(embeddings(new.table.path)), query.recentProgress, new)


def compare_drains(
    images: int,
    turns: int,
    drain: Callable[[SparkSession, StreamConfig, PreparedModel, bool], Turn],
) -> Turns:
    """Drain a topic of JPEG with something, in turns with and without it.

    EfficientNet-Lite0, 32 messages in a micro-batch.
    """
    with workplace() as place:
        fill(place.servers, _TOPIC, list(jpegs(images, size=(500, 375))))
        kafka = {
            "bootstrap_servers": place.servers,
            "subscribe": _TOPIC,
            "max_offsets_per_trigger": _PER_MICRO_BATCH,
        }
        config = settings(place, _TOPIC, encoder="efficientnet_lite0", kafka=kafka)
        with opened(config) as (spark, model):
            taken = take_turns(
                lambda name, _: drain(spark, config, model, name == "with"),
                ("with", "without"),
                turns,
            )
            return Turns(taken["with"], taken["without"])


def read_spark_cpu_s(spark: SparkSession) -> float:
    """The CPU seconds, user and system, of the JVM and of its workers so far."""
    context: Any = spark.sparkContext
    times = ProcessTree(context._gateway.proc.pid).read_times()
    return sum(sum(each) for each in times.values())


def embeddings(table: str) -> int:
    """How many rows of a Delta table have one."""
    outcomes = QueryBuilder().register("outcomes", DeltaTable(table))
    counted = outcomes.execute("SELECT count(embedding) AS embeddings FROM outcomes")
    return int(pa.table(counted)["embeddings"][0].as_py())


def over_dataframe(
    spark: SparkSession, config: StreamConfig, model: PreparedModel, images: Path
) -> Turn:
    """Embed a Parquet file of images; nothing is kept."""
    seen = Observation()
    with measure() as spent:
        function = build_featurizer(spark, config, [model])
        outcomes = featurize_messages(messages(spark, images), function)
        counted = outcomes.observe(seen, f.count("embedding").alias("embeddings"))
        counted.write.format("noop").mode("overwrite").save()
    return spent.on(int(seen.get["embeddings"]))


def messages(spark: SparkSession, images: Path) -> DataFrame:
    """The images of a Parquet file, as the messages that they would be in a topic."""
    rows = spark.read.parquet(str(images)).repartition(spark.sparkContext.defaultParallelism)
    return rows.select(
        f.lit("images").alias("topic"),
        f.lit(0).alias("partition"),
        f.monotonically_increasing_id().alias("offset"),
        f.current_timestamp().alias("timestamp"),
        f.col("id").cast("binary").alias("key"),
        f.col("content").alias("value"),
        f.lit(None).cast("array<struct<key:string,value:binary>>").alias("headers"),
    )
