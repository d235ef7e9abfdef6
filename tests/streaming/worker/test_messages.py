"""The rows of messages: with Spark, and as Arrow batches without it."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, cast

import pyarrow as pa
import pytest
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext
from PIL import Image
from pyspark.sql import DataFrame, SparkSession

from embedstream.config.sections import StreamConfig
from embedstream.kafka.source import MESSAGES_SCHEMA
from embedstream.stream.job import build_featurizer
from embedstream.table.rows import CARRIED_COLUMNS, OUTCOME_ARROW_SCHEMA, OUTCOME_SCHEMA
from embedstream.worker.messages import Featurizer, featurize_messages
from embedstream.worker.tally import Tallies, Tally
from embedstream.worker.task import Embedder
from embedstream_core.errors import Code, Stage
from embedstream_core.messages.parse import MessageReader
from embedstream_core.pipeline.steps import Outcomes
from embedstream_core.pipeline.work_record import WorkRecord
from embedstream_core.records import Entry, Failure, Item
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
def test_each_message_is_a_row_whatever_it_holds(
    spark: SparkSession, tmp_path: Path, registry: RegistryServer
) -> None:
    sent = messages(spark, tmp_path, registry)
    settings = config(tmp_path, registry)
    spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", "10")
    outcomes = featurize_messages(sent, build_featurizer(spark, settings, prepared(settings)))
    assert outcomes.schema == OUTCOME_SCHEMA
    rows = outcomes.toArrow().to_pylist()
    spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", "256")

    assert [row["offset"] for row in rows] == [*range(30)]
    (avro,) = (row for row in rows if row["key"] == b"avro")
    assert (avro["error"], dict(avro["attributes"])) == (None, {"sku": "a"})
    assert "the registry does not hold it" in rows[-1]["error"]["message"]
    assert {row["error"]["code"] for row in rows if row["error"]} == {
        "image_unsupported",
        "image_empty",
        "message_malformed",
        "reference_not_found",
    }


@pytest.mark.spark
def test_arrow_batches_are_bounded_in_rows_and_bytes(spark: SparkSession) -> None:
    def count(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        # pyarrow imports pandas for the first array; the daemon had to do so.
        imported = "pandas" in sys.modules
        rows = [batch.num_rows for batch in batches]
        yield pa.RecordBatch.from_pydict({"rows": rows, "imported": [imported] * len(rows)})

    rows = spark.range(0, 600, 1, 1).selectExpr("id", "repeat('x', if(id < 512, 1, 1 << 20)) AS v")
    batches = rows.mapInArrow(count, "rows long, imported boolean").toArrow()

    sizes = batches["rows"].to_pylist()
    assert sizes[:2] == [256, 256]
    assert all(30 <= size <= 33 for size in sizes[2:-1])
    assert sum(sizes) == 600
    assert all(batches["imported"].to_pylist())


@dataclass
class Kept:
    """Keeps what a task reports."""

    added: list[Tally]

    def add(self, tally: Tally) -> None:
        self.added.append(tally)


class EmbedsNothing:
    """Gives each message failures of so many models as the first byte of its value says."""

    modalities = frozenset({"image"})

    def embed(
        self, batches: Iterable[Sequence[Entry]], record: WorkRecord
    ) -> Iterator[list[Outcomes]]:
        for batch in batches:
            yield [
                (Failure(Code.IMAGE_CORRUPT, Stage.DECODE, "no"),) * (one.content or b"")[0]
                for one in batch
                if isinstance(one, Item)
            ]


@pytest.mark.parametrize("wide", ["", "large_"])
def test_the_columns_of_a_message_stay_as_they_are(wide: Literal["", "large_"]) -> None:
    """Spark sends 64-bit offsets with `spark.sql.execution.arrow.useLargeVarTypes`."""
    text, binary = (pa.type_for_alias(f"{wide}{name}") for name in ("string", "binary"))
    kinds = [text, pa.int32(), pa.int64(), pa.timestamp("us", "UTC"), binary, binary]
    header = pa.struct({"key": text, "value": binary})
    schema = pa.schema(zip(MESSAGES_SCHEMA.names, [*kinds, pa.list_(header)], strict=True))
    # A time after 2262, which nanoseconds do not hold: a producer that sends microseconds as
    # milliseconds writes one.
    far, early = (datetime(year, 1, 1, tzinfo=UTC) for year in (2300, 1600))
    rows = [
        ("a", 1, 2**62, far, b"\xff", b"\x01", [{"key": "shop", "value": b"42"}]),
        ("b", 2, 2**53 + 1, None, None, b"\x00", None),
        ("c", 3, 0, early, b"", b"\x02", []),
        # Of files, which are in no topic.
        (None, None, None, None, None, b"\x01", None),
    ]
    sent = pa.RecordBatch.from_pylist(
        [dict(zip(schema.names, row, strict=True)) for row in rows], schema
    )
    tallies = Kept([])
    featurizer = Featurizer(
        cast(Embedder, EmbedsNothing()), MessageReader(), cast(Tallies, tallies)
    )

    given = [sent.slice(0, 1), sent.slice(0, 0), sent.slice(1)]
    made = [*featurizer(iter(given))]

    assert [batch.num_rows for batch in made] == [1, 0, 3]
    assert {batch.schema for batch in made} == {OUTCOME_ARROW_SCHEMA}
    built = pa.Table.from_batches(made)
    built.validate(full=True)
    carried = built.select(CARRIED_COLUMNS).to_pylist()
    expected = [dict(zip(CARRIED_COLUMNS, rows[at][:5], strict=True)) for at in (0, 2, 2, 3)]
    assert carried == expected
    assert dict(built["attributes"][0].as_py()) == {"shop": "42"}
    (tally,) = tallies.added
    assert sum(tally.kinds.values()) == 4
