"""The rows of outcomes: one for each, however many a message has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyspark.sql.pandas.types import from_arrow_schema

from embedstream.table.rows import (
    CARRIED_COLUMNS,
    MEDIA_TYPE,
    OUTCOME_ARROW_SCHEMA,
    OUTCOME_SCHEMA,
    Origin,
    build_outcome_batch,
    build_outcome_column,
    build_vector_column,
)
from embedstream_core.errors import Code, Stage
from embedstream_core.records import Deletion, Embedding, Failure, Item, Media, Outcome


def carried(count: int) -> pa.RecordBatch:
    columns = [
        ["images"] * count,
        pa.array([0] * count, pa.int32()),
        pa.array(range(count), pa.int64()),
        pa.array([0] * count, pa.timestamp("us", "UTC")),
        pa.array([b"key-%d" % number for number in range(count)], pa.binary()),
    ]
    return pa.RecordBatch.from_pydict(dict(zip(CARRIED_COLUMNS, columns, strict=True)))


IMAGE = Media("image/png", width=2, height=1)
TEXT = Media("text/plain", characters=7, truncated=False)
SOUND = Media("audio/wav", duration_s=1.5, truncated=True)


def embedding(number: int, model_id: str = "model", media: Media = IMAGE) -> Embedding:
    vector = np.array([number, 0.1, np.pi], np.float32)
    return Embedding(vector, media, content_sha256=f"sha256-{number}", model_id=model_id)


FAILURE = Failure(Code.MESSAGE_INCOMPLETE, Stage.MESSAGE, "neither uri nor data")
SEEN = Failure(
    Code.MEDIA_UNSUPPORTED, Stage.DECODE, "a video", "sha256", Media("video/mp4"), model_id=None
)
OF_MODEL = Failure(Code.IMAGE_EMPTY, Stage.DECODE, "the image has no bytes", model_id="model")


def build(outcomes: Sequence[Sequence[Outcome]]) -> list[dict[str, Any]]:
    origins = [Origin(str(number), None, {"n": str(number)}) for number in range(len(outcomes))]
    batch = build_outcome_batch(carried(len(outcomes)), origins, outcomes)
    batch.validate(full=True)
    assert batch.schema == OUTCOME_ARROW_SCHEMA
    assert from_arrow_schema(batch.schema) == OUTCOME_SCHEMA
    rows: list[dict[str, Any]] = batch.to_pylist()
    assert all(row.pop("processed_at") is not None for row in rows)
    return [row | {"attributes": dict(row["attributes"])} for row in rows]


CASES: dict[str, list[list[Outcome]]] = {
    "nothing": [],
    "embedding": [[embedding(1)]],
    "failure": [[FAILURE]],
    "failures": [[FAILURE], [OF_MODEL]],
    "embeddings": [[embedding(1)], [embedding(2)]],
    "mixed": [[FAILURE], [embedding(1)], [SEEN], [OF_MODEL], [embedding(2)], [FAILURE]],
    "two-models": [[embedding(1), embedding(2, "other")], [embedding(3), embedding(4, "other")]],
    "different": [[embedding(1, media=TEXT)], [SEEN], [embedding(2), OF_MODEL, embedding(3, "b")]],
    "without": [[], [embedding(1, media=SOUND)], [], [FAILURE, FAILURE], []],
    "none": [[], []],
}


@pytest.mark.parametrize("outcomes", CASES.values(), ids=CASES)
def test_each_outcome_is_a_row_of_its_message(outcomes: list[list[Outcome]]) -> None:
    rows = build(outcomes)

    expected = [(message, one) for message, some in enumerate(outcomes) for one in some]
    assert len(rows) == len(expected)
    for row, (message, outcome) in zip(rows, expected, strict=True):
        place = [row["offset"], row["key"], row["image_id"], row["attributes"]]
        assert place == [message, b"key-%d" % message, str(message), {"n": str(message)}]
        assert row["model_id"] == outcome.model_id
        assert row["content_sha256"] == outcome.content_sha256
        media = outcome.media
        expected_media = media and {name: getattr(media, name) for name in MEDIA_TYPE.names}
        assert row["media"] == expected_media
        if isinstance(outcome, Embedding):
            assert (row["embedding"], row["error"]) == (outcome.vector.tolist(), None)
        else:
            assert row["embedding"] is None
            error = {"code": outcome.code, "stage": outcome.stage, "message": outcome.message}
            assert row["error"] == error


def test_vectors_keep_each_bit() -> None:
    numbers = np.array([-0.0, 1e-45, np.finfo(np.float32).max, np.inf, np.nan, 1 / 3], np.float32)
    outcomes = [replace(embedding(1), vector=part) for part in np.split(numbers, 2)]
    column = build_vector_column([outcomes[0], FAILURE, outcomes[1]])
    assert column.flatten().to_numpy().tobytes() == numbers.tobytes()


def test_more_numbers_than_a_column_holds_are_refused() -> None:
    large = np.broadcast_to(np.float32(0), 2**30)
    with pytest.raises(pa.ArrowInvalid):
        build_vector_column([replace(embedding(1), vector=large)] * 2)


def test_media_has_the_fields_of_the_record() -> None:
    assert MEDIA_TYPE.names == list(Media.__dataclass_fields__)


def test_a_column_has_one_outcome_for_each_row() -> None:
    column = build_outcome_column([embedding(1), FAILURE]).to_pylist()
    assert [one["embedding"] is None for one in column] == [False, True]
    assert [one["error"] and one["error"]["code"] for one in column] == [None, FAILURE.code]


def test_a_row_describes_its_item_or_its_message() -> None:
    item = Item("cat", uri="file:///cat.png", attributes={"shop": "42"})

    assert Origin.of(item, "images-0-7") == Origin("cat", "file:///cat.png", {"shop": "42"})
    assert Origin.of(FAILURE, "images-0-7") == Origin("images-0-7", None, {})
    deletion = Deletion("cat", {"shop": "42"})
    assert Origin.of(deletion, "images-0-7") == Origin("cat", None, {"shop": "42"})
