"""embedstream whole: from messages in a real Kafka broker to commits of a Delta table.

The time is from the start of the query to its end, once all messages are in the table.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow.parquet as pq
from kafka import KafkaProducer

from embedstream.broker import create_topic, start_broker, stop_broker
from embedstream.job import start_stream
from embedstream.session import open_session
from embedstream_config import config, embeddings
from embedstream_core.weights import ModelSpec, prepare_model
from protocol import CORES, Backend, Precision, Run, serve

TOPIC = "images"


@contextmanager
def prepare(images: Path, precision: Precision, backend: Backend) -> Iterator[Run]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="embedstream-benchmark-")))
        stack.callback(stop_broker, folder / "broker")
        servers = start_broker(folder / "broker").bootstrap_servers
        _fill(servers, pq.read_table(images, columns=["content"])["content"].to_pylist())
        kafka = {"bootstrap_servers": servers, "subscribe": TOPIC}
        settings = config(folder, precision, backend, kafka=kafka)
        spark = stack.enter_context(open_session(settings.spark, settings.pipeline))
        model = prepare_model(ModelSpec("resnet50", "random"))

        def run() -> int:
            name = uuid.uuid4().hex
            table = settings.table.model_copy(update={"path": str(folder / name / "table")})
            fresh = settings.model_copy(
                update={"table": table, "checkpoint": str(folder / name / "checkpoint")}
            )
            start_stream(spark, fresh, model, until="drained").query.awaitTermination()
            return embeddings(table.path)

        yield run


def _fill(servers: str, contents: list[bytes]) -> None:
    """Dealt to the partitions in turns, so that tasks are alike."""
    create_topic(servers, TOPIC, partitions=CORES)
    producer = KafkaProducer(bootstrap_servers=servers, acks="all")
    for index, content in enumerate(contents):
        producer.send(TOPIC, value=content, partition=index % CORES)
    producer.flush()
    producer.close()


if __name__ == "__main__":
    serve(prepare, ["pyspark", "pandas", "deltalake"])
