"""embedstream whole: from messages in a real Kafka broker to commits of a Delta table.

The time is from the start of the query to its end, once all messages are in the table.
"""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
from deltalake import DeltaTable

from embedstream.broker import create_topic, start_broker, stop_broker
from embedstream.job import start_stream
from embedstream.produce import OutgoingMessage, produce
from embedstream.session import open_session
from embedstream_config import config
from embedstream_core.weights import ModelSpec, prepare_model
from protocol import Backend, Precision, Run, serve

TOPIC = "images"


@contextmanager
def prepare(images: Path, precision: Precision, backend: Backend) -> Iterator[Run]:
    folder = Path(tempfile.mkdtemp(prefix="embedstream-benchmark-"))
    try:
        servers = start_broker(folder / "broker").bootstrap_servers
        create_topic(servers, TOPIC, partitions=2)
        produce(_messages(images), bootstrap_servers=servers, topic=TOPIC)
        kafka = {"bootstrap_servers": servers, "subscribe": TOPIC}
        settings = config(precision, backend, kafka=kafka)
        with open_session(settings.spark, settings.pipeline) as spark:
            model = prepare_model(ModelSpec("resnet50", "random"))

            def run() -> int:
                name = uuid.uuid4().hex
                table = settings.table.model_copy(update={"path": str(folder / name / "table")})
                fresh = settings.model_copy(
                    update={"table": table, "checkpoint": str(folder / name / "checkpoint")}
                )
                start_stream(spark, fresh, model, until="drained").query.awaitTermination()
                good = DeltaTable(table.path).to_pyarrow_table(columns=["embedding"])
                return good.num_rows - good["embedding"].null_count

            yield run
    finally:
        stop_broker(folder / "broker")


def _messages(images: Path) -> Iterator[OutgoingMessage]:
    for row in pq.read_table(images).to_pylist():
        yield OutgoingMessage(row["id"], key=row["id"], value=row["content"])


if __name__ == "__main__":
    serve(prepare, ["pyspark", "pandas", "deltalake"])
