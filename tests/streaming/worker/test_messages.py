"""The rows of messages, over both transports."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyspark.sql import DataFrame, SparkSession

from embedstream.config.sections import StreamConfig
from embedstream.kafka.source import MESSAGES_SCHEMA
from embedstream.stream.job import build_featurizer
from embedstream.table.rows import CARRIED_COLUMNS, OUTCOME_SCHEMA, Origin, build_outcome_batch
from embedstream.worker.messages import featurize_messages
from embedstream_core.errors import Code, Stage
from embedstream_core.records import Embedding, Failure, Item
from streams import prepared


def picture(red: int) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (30 + red, 20), (red, 100, 200)).save(data, "PNG")
    return data.getvalue()


def messages(spark: SparkSession, folder: Path) -> DataFrame:
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
    ]
    data: list[tuple[Any, ...]] = [
        ("images", 1, offset, None, key, value, pairs)
        for offset, (key, value, pairs) in enumerate(rows)
    ]
    return spark.createDataFrame(data, MESSAGES_SCHEMA).coalesce(1)


def config(folder: Path, **pipeline: Any) -> StreamConfig:
    return StreamConfig.model_validate(
        {
            "kafka": {"bootstrap_servers": "nowhere:1", "subscribe": "images"},
            "encoder": {"name": "efficientnet_lite0", "weights": "random"},
            "references": {"folders": [str(folder)]},
            "table": {"path": str(folder / "table")},
            "checkpoint": str(folder / "checkpoint"),
            "pipeline": pipeline,
        }
    )


@pytest.mark.spark
def test_both_transports_make_the_same_rows(spark: SparkSession, tmp_path: Path) -> None:
    sent = messages(spark, tmp_path)
    spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", "10")
    tables = {}
    for transport in ("pandas", "arrow"):
        settings = config(tmp_path, transport=transport)
        outcomes = featurize_messages(sent, build_featurizer(spark, settings, prepared(settings)))
        assert outcomes.schema == OUTCOME_SCHEMA
        tables[transport] = outcomes.drop("processed_at").toArrow().to_pylist()
    spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", "256")

    assert tables["arrow"] == tables["pandas"]
    assert [row["offset"] for row in tables["arrow"]] == [*range(28)]
    assert {row["error"]["code"] for row in tables["arrow"] if row["error"]} == {
        "image_unsupported",
        "image_empty",
        "message_malformed",
        "reference_not_found",
    }


# Arrow batches.


def carried(count: int) -> pa.RecordBatch:
    columns = [
        ["images"] * count,
        pa.array([0] * count, pa.int32()),
        pa.array(range(count), pa.int64()),
        pa.array([0] * count, pa.timestamp("us", "UTC")),
        pa.array([None] * count, pa.binary()),
    ]
    return pa.RecordBatch.from_pydict(dict(zip(CARRIED_COLUMNS, columns, strict=True)))


def embedding(number: int) -> Embedding:
    vector = np.array([number, 0.1, np.pi], np.float32)
    return Embedding(vector, width=2, height=1, content_sha256=f"sha256-{number}")


FAILURE = Failure(Code.IMAGE_EMPTY, Stage.DECODE, "the image has no bytes")


@pytest.mark.parametrize(
    "outcomes",
    [
        [],
        [embedding(1)],
        [FAILURE],
        [FAILURE, FAILURE],
        [embedding(1), embedding(2)],
        [FAILURE, embedding(1), FAILURE, FAILURE, embedding(2), FAILURE],
    ],
)
def test_each_vector_is_in_its_row(outcomes: list[Embedding | Failure]) -> None:
    origins = [Origin(str(number), None, {}) for number in range(len(outcomes))]

    batch = build_outcome_batch(carried(len(outcomes)), origins, outcomes, model_id="model")

    batch.validate(full=True)
    assert batch.schema.names == OUTCOME_SCHEMA.names
    rows = batch.to_pylist()
    assert [row["image_id"] for row in rows] == [origin.image_id for origin in origins]
    for row, outcome in zip(rows, outcomes, strict=True):
        assert row["content_sha256"] == outcome.content_sha256
        if isinstance(outcome, Embedding):
            assert row["embedding"] == outcome.vector.tolist()
            assert (row["width"], row["height"], row["error"]) == (2, 1, None)
        else:
            assert row["error"]["message"] == outcome.message
            assert (row["width"], row["height"], row["embedding"]) == (None, None, None)


def test_a_row_describes_its_item_or_its_message() -> None:
    item = Item("cat", uri="file:///cat.png", attributes={"shop": "42"})

    assert Origin.of(item, "images-0-7") == Origin("cat", "file:///cat.png", {"shop": "42"})
    assert Origin.of(FAILURE, "images-0-7") == Origin("images-0-7", None, {})
