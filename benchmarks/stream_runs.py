"""What the benchmarks of whole streams share: settings, a broker with messages, a drained query."""

from __future__ import annotations

import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
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

__all__ = [
    "CORES",
    "Drained",
    "Run",
    "Workplace",
    "broker",
    "brokerless",
    "drain",
    "embeddings",
    "fill",
    "fresh",
    "messages",
    "opened",
    "over_dataframe",
    "producer",
    "read_spark_cpu_s",
    "run_by_turns",
    "send",
    "settings",
    "workplace",
]

CORES = 2

Run = dict[str, float]
"""Figures of one drain, by their names."""

_TOPIC = "pictures"
_PER_MICRO_BATCH = 32

_HERE = Path(__file__).parent

# kafka-python queues without bound.
_QUEUED = 1000


@dataclass(frozen=True, slots=True)
class Drained:
    """A query that ended once all messages were in the table; `progress` of its micro-batches."""

    embeddings: int
    seconds: float
    progress: Sequence[Any]
    settings: StreamConfig

    @property
    def images_per_s(self) -> float:
        return self.embeddings / self.seconds


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
    weights: str = "random",
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
            "weights": weights,
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
    started = time.perf_counter()
    query = start_stream(spark, new, [model], until="drained").query
    query.awaitTermination()
    seconds = time.perf_counter() - started
    return Drained(embeddings(new.table.path), seconds, query.recentProgress, new)


def run_by_turns(
    images: int,
    rounds: int,
    drain: Callable[[SparkSession, StreamConfig, PreparedModel, bool], Run],
) -> list[dict[bool, Run]]:
    """Drain a topic of JPEG with something and without it; the order changes with each round.

    EfficientNet-Lite0, 32 messages in a micro-batch. A first drain, with it, warms up.
    """
    with workplace() as place:
        fill(place.servers, _TOPIC, list(jpegs(images, size=(500, 375))))
        kafka = {
            "bootstrap_servers": place.servers,
            "subscribe": _TOPIC,
            "max_offsets_per_trigger": _PER_MICRO_BATCH,
        }
        config = settings(
            place, _TOPIC, encoder="efficientnet_lite0", weights="default", kafka=kafka
        )
        with opened(config) as (spark, model):
            drain(spark, config, model, True)
            orders = ([True, False], [False, True]) * rounds
            return [
                {each: drain(spark, config, model, each) for each in order}
                for order in orders[:rounds]
            ]


def read_spark_cpu_s(spark: SparkSession) -> float:
    """The CPU seconds, user and system, of the JVM and of its workers so far."""
    context: Any = spark.sparkContext
    jvm = psutil.Process(context._gateway.proc.pid)
    seconds = 0.0
    for process in (jvm, *jvm.children(recursive=True)):
        # A process that the JVM started for a moment may be gone.
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            seconds += times.user + times.system + times.children_user + times.children_system
    return seconds


def embeddings(table: str) -> int:
    """How many rows of a Delta table have one."""
    outcomes = QueryBuilder().register("outcomes", DeltaTable(table))
    counted = outcomes.execute("SELECT count(embedding) AS embeddings FROM outcomes")
    return int(pa.table(counted)["embeddings"][0].as_py())


def over_dataframe(
    spark: SparkSession, config: StreamConfig, model: PreparedModel, images: Path
) -> tuple[int, float]:
    """Embeddings of a Parquet file of images, and the seconds they took; nothing is kept."""
    seen = Observation()
    started = time.perf_counter()
    outcomes = featurize_messages(messages(spark, images), build_featurizer(spark, config, [model]))
    counted = outcomes.observe(seen, f.count("embedding").alias("embeddings"))
    counted.write.format("noop").mode("overwrite").save()
    return int(seen.get["embeddings"]), time.perf_counter() - started


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
