"""The rows of messages, over both transports."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext
from PIL import Image
from pyspark.sql import DataFrame, SparkSession

from embedstream.config.sections import StreamConfig
from embedstream.kafka.source import MESSAGES_SCHEMA
from embedstream.stream.job import build_featurizer
from embedstream.table.rows import OUTCOME_SCHEMA
from embedstream.worker.messages import featurize_messages
from registry_server import RegistryServer, serve_registry
from streams import prepared


@pytest.fixture
def registry() -> Iterator[RegistryServer]:
    with serve_registry() as server:
        yield server


def picture(red: int) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (30 + red, 20), (red, 100, 200)).save(data, "PNG")
    return data.getvalue()


def encode(registry: RegistryServer) -> bytes:
    """Return a message that Confluent's serializer writes in Avro."""
    fields = [{"name": "sku", "type": "string"}, {"name": "data", "type": "bytes"}]
    schema = json.dumps({"type": "record", "name": "Picture", "fields": fields})
    with SchemaRegistryClient({"url": registry.url}) as client:
        write = AvroSerializer(client, schema, conf={"subject.name.strategy.type": "TOPIC"})
        where = SerializationContext("images", MessageField.VALUE)
        return bytes(write({"sku": "a", "data": picture(98)}, where) or b"")


def messages(spark: SparkSession, folder: Path, registry: RegistryServer) -> DataFrame:
    """Return good and bad messages of each kind, in three Arrow batches."""
    (folder / "there.png").write_bytes(picture(99))
    there, missing = ((folder / name).as_uri() for name in ("there.png", "missing.png"))
    headers = [("image-id", "käse".encode()), ("shop", b"42"), ("none", None), ("latin", b"\xe4")]
    rows: list[tuple[bytes | None, bytes, list[tuple[str, bytes | None]] | None]] = [
        (b"key", picture(1), None),
        (None, picture(2), []),
        (b"\xff", picture(3), headers),
        (b"bad", b"no image", headers),
        (None, b"", None),
        (None, b"{", headers),
        (None, json.dumps({"uri": there, "price": 7, "tags": ["a"]}).encode(), headers),
        (None, json.dumps({"uri": missing, "id": "gone"}).encode(), None),
        *((None, picture(red), None) for red in range(10, 30)),
        (b"avro", encode(registry), None),
        (None, registry.frame(99, b"of an unknown schema"), None),
    ]
    data: list[tuple[Any, ...]] = [
        ("images", 1, offset, None, key, value, pairs)
        for offset, (key, value, pairs) in enumerate(rows)
    ]
    return spark.createDataFrame(data, MESSAGES_SCHEMA).coalesce(1)


def config(folder: Path, registry: RegistryServer, **pipeline: Any) -> StreamConfig:
    return StreamConfig.model_validate(
        {
            "kafka": {"bootstrap_servers": "nowhere:1", "subscribe": "images"},
            "message": {"registry": {"url": registry.url}},
            "encoder": {"name": "efficientnet_lite0", "weights": "random"},
            "references": {"folders": [str(folder)]},
            "table": {"path": str(folder / "table")},
            "checkpoint": str(folder / "checkpoint"),
            "pipeline": pipeline,
        }
    )


@pytest.mark.spark
def test_both_transports_make_the_same_rows(
    spark: SparkSession, tmp_path: Path, registry: RegistryServer
) -> None:
    sent = messages(spark, tmp_path, registry)
    spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", "10")
    tables = {}
    for transport in ("pandas", "arrow"):
        settings = config(tmp_path, registry, transport=transport)
        outcomes = featurize_messages(sent, build_featurizer(spark, settings, prepared(settings)))
        assert outcomes.schema == OUTCOME_SCHEMA
        tables[transport] = outcomes.drop("processed_at").toArrow().to_pylist()
    spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", "256")

    assert tables["arrow"] == tables["pandas"]
    assert [row["offset"] for row in tables["arrow"]] == [*range(30)]
    (avro,) = (row for row in tables["arrow"] if row["key"] == b"avro")
    assert (avro["error"], dict(avro["attributes"])) == (None, {"sku": "a"})
    assert "the registry does not hold it" in tables["arrow"][-1]["error"]["message"]
    assert {row["error"]["code"] for row in tables["arrow"] if row["error"]} == {
        "image_unsupported",
        "image_empty",
        "message_malformed",
        "reference_not_found",
    }
