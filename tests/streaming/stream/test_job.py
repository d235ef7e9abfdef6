"""The whole way with a real broker, a real query, a real model and a real table."""

from __future__ import annotations

import base64
import hashlib
import io
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
from PIL import Image
from pyspark import SparkFiles
from pyspark.sql import SparkSession

from drivers import python_workers, wait_until
from embedstream.config.sections import StreamConfig
from embedstream.search.queries import embed_queries
from embedstream.stream.job import start_stream, stop_stream
from embedstream.stream.preflight import Finding, check_start
from embedstream.stream.progress import ProgressListener
from embedstream.stream.reports import Totals
from embedstream.table.address import quote_table
from embedstream.table.rows import OUTCOME_SCHEMA
from embedstream.table.views import embeddings, failures
from embedstream.worker.tally import Tallies
from embedstream_core.pipeline.embedding_cache import EmbeddingCache
from oracle import Position, Row, check_outcomes, read_rows
from streams import Topic, drain, image, json_message, prepared, refusal

pytestmark = [pytest.mark.kafka, pytest.mark.spark]

Configure = Callable[..., StreamConfig]

PICTURES = Path(skimage.data.__file__).parent


def picture(name: str = "chelsea.png", *, size: int = 64) -> bytes:
    """A small photograph."""
    data = io.BytesIO()
    Image.open(PICTURES / name).convert("RGB").resize((size, size)).save(data, "JPEG")
    return data.getvalue()


def pictures(count: int) -> list[bytes]:
    """Photographs, each with bytes of its own."""
    names = ["chelsea.png", "coffee.png", "rocket.jpg", "astronaut.png"]
    return [picture(names[index % 4], size=40 + index) for index in range(count)]


def test_bytes_references_and_bad_messages(
    spark: SparkSession, topic: Topic, configure: Configure, tmp_path: Path
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    coffee = folder / "coffee.jpg"
    coffee.write_bytes(picture("coffee.png"))
    topic.send(
        [
            image("cat", picture(), shop="42"),
            json_message("ref", id="coffee", uri=coffee.as_uri(), price=7, tags=["a"]),
            json_message("inline", data=base64.b64encode(picture("rocket.jpg")).decode()),
            image("cut", picture()[:700]),
            image("html", b"<html>not found</html>"),
            image("empty", b""),
            json_message("outside", uri="file:///etc/passwd"),
            json_message("missing", uri=(folder / "missing.jpg").as_uri()),
            image("half-json", b'{"uri": '),
            json_message("nothing", colour="red"),
            image("cat-again", picture()),
        ]
    )
    config = configure(references={"folders": [str(folder)]})

    drain(spark, config)

    rows = {row["image_id"]: row for row in _checked(config, topic).values()}
    assert {name for name, row in rows.items() if row["error"] is None} == {
        "cat",
        "coffee",
        "inline",
        "cat-again",
    }
    assert Counter(row["error"]["code"] for row in rows.values() if row["error"]) == {
        "image_corrupt": 1,
        "image_unsupported": 1,
        "image_empty": 1,
        "reference_denied": 1,
        "reference_not_found": 1,
        "message_malformed": 1,
        "message_incomplete": 1,
    }
    assert dict(rows["cat"]["attributes"]) == {"shop": "42"}
    assert dict(rows["coffee"]["attributes"]) == {"price": "7", "tags": '["a"]'}
    assert rows["coffee"]["uri"] == coffee.as_uri()
    assert rows["cat"]["content_sha256"] == rows["cat-again"]["content_sha256"]
    assert (rows["cat"]["media"]["width"], rows["cat"]["media"]["height"]) == (64, 64)
    assert rows["cut"]["content_sha256"] is not None


def test_vectors_are_those_of_the_core(
    spark: SparkSession, topic: Topic, configure: Configure
) -> None:
    contents = pictures(24)
    topic.send(image(str(index), content) for index, content in enumerate(contents))
    config = configure(encoder={"name": "efficientnet_lite0", "precision": "float32"})

    drain(spark, config)

    rows = {int(row["image_id"]): row for row in _checked(config, topic).values()}
    _, expected = embed_queries(contents, model_ids=[rows[0]["model_id"]])
    for index, vector in enumerate(expected):
        found = np.array(rows[index]["embedding"], np.float32)
        assert found.shape == (1280,)
        np.testing.assert_allclose(found, vector, atol=2e-4)


def test_table_reads_alike_with_spark_and_without(
    spark: SparkSession, topic: Topic, configure: Configure
) -> None:
    topic.send([image("good", picture()), image("bad", b"no image"), image("fine", picture())])
    config = configure()

    drain(spark, config)

    good = embeddings(spark, config.table.path)
    bad = failures(spark, config.table.path).collect()
    assert {row["image_id"] for row in good.collect()} == {"good", "fine"}
    assert good.schema["embedding"].dataType.simpleString() == "array<float>"
    assert [(row["image_id"], row["code"], row["stage"]) for row in bad] == [
        ("bad", "image_unsupported", "decode")
    ]
    by_spark = {row["image_id"]: row["embedding"] for row in good.collect()}
    for row in read_rows(Path(config.table.path)).values():
        assert row["embedding"] == by_spark.get(row["image_id"])


def test_later_messages_are_appended_and_earlier_ones_not_repeated(
    spark: SparkSession, topic: Topic, configure: Configure
) -> None:
    config = configure(kafka={"max_offsets_per_trigger": 5})
    topic.send(image(f"first-{index}", picture()) for index in range(12))
    drain(spark, config)
    _checked(config, topic)

    drain(spark, config)
    _checked(config, topic)

    topic.send(image(f"second-{index}", picture()) for index in range(9))
    drain(spark, config)
    assert len(_checked(config, topic)) == 21


def test_a_stopped_stream_finishes_the_micro_batch_and_resumes(
    spark: SparkSession, topic: Topic, configure: Configure
) -> None:
    contents = pictures(36)
    topic.send(image(str(index), content) for index, content in enumerate(contents))
    config = configure(kafka={"max_offsets_per_trigger": 6}, trigger={"interval_s": 0})
    stream = start_stream(spark, config, prepared(config))
    while stream.query.lastProgress is None:
        time.sleep(0.05)
    in_flight = stream.query.lastProgress.batchId + 1

    assert stop_stream(stream.query, timeout_s=60) == "finished"

    assert (Path(config.checkpoint) / "commits" / str(in_flight)).exists()
    assert 0 < len(read_rows(Path(config.table.path))) < 36
    drain(spark, config)
    _checked(config, topic)


@pytest.mark.long
def test_twenty_micro_batches_load_the_model_once_a_worker(
    spark: SparkSession, topic: Topic, configure: Configure
) -> None:
    config = configure(
        kafka={"max_offsets_per_trigger": 4},
        # A model that no other test uses, so that no worker has it yet.
        encoder={"name": "efficientnet_lite0", "batch_size": 3},
    )
    topic.send(image(str(index), picture()) for index in range(80))

    stream = drain(spark, config)

    batches = [progress for progress in stream.query.recentProgress if progress.numInputRows]
    assert len(batches) >= 20
    # Queries of other tests may have left more workers than there are tasks at once.
    assert 1 <= stream.loads <= len(python_workers())
    _checked(config, topic)


def test_images_of_the_same_bytes_are_embedded_once_and_each_message_has_its_row(
    spark: SparkSession, topic: Topic, configure: Configure
) -> None:
    contents = [*pictures(8), b"no image"]
    topic.send(
        image(f"{copy}-{index}", content, copy=str(copy))
        for copy in range(3)
        for index, content in enumerate(contents)
    )
    config = configure(
        kafka={"max_offsets_per_trigger": 9},
        # As YAML reads `dedupe: on`.
        pipeline={"dedupe": True},
    )

    drain(spark, config)

    rows = {row["image_id"]: row for row in _checked(config, topic).values()}
    assert len(rows) == 27
    # Streams of other tests have files of their own in the session that they share.
    files = Path(SparkFiles.getRootDirectory()).glob("*.embeddings.sqlite3")
    newest = max(files, key=lambda path: path.stat().st_mtime)
    with EmbeddingCache(newest, entries=100) as cache:
        for index, content in enumerate(contents[:-1]):
            its_rows = [rows[f"{copy}-{index}"] for copy in range(3)]
            embedding = cache.get(hashlib.sha256(content).hexdigest())
            assert embedding is not None
            assert [row["embedding"] for row in its_rows] == [embedding.vector.tolist()] * 3
            assert [dict(row["attributes"]) for row in its_rows] == [
                {"copy": str(copy)} for copy in range(3)
            ]
        assert cache.get(hashlib.sha256(b"no image").hexdigest()) is None
    assert {rows[f"{copy}-8"]["error"]["code"] for copy in range(3)} == {"image_unsupported"}


def test_null_values_are_counted_and_make_no_row(
    spark: SparkSession, topic: Topic, configure: Configure
) -> None:
    topic.send([image("gone", None), image("here", picture()), image("gone-too", None)])
    config = configure()
    totals = drain_and_count(spark, config)

    rows = read_rows(Path(config.table.path))
    assert [row["image_id"] for row in rows.values()] == ["here"]
    assert (totals.tombstones, totals.embeddings) == (2, 1)


EXTRA = {
    "none": "",
    "generated": ", day date GENERATED ALWAYS AS (CAST(processed_at AS DATE))",
    "identity": ", number bigint GENERATED ALWAYS AS IDENTITY",
    "default": ", note string DEFAULT 'none'",
}


@pytest.mark.parametrize(
    "extra",
    [
        pytest.param(sql, id=name, marks=[pytest.mark.long] * (name != "generated"))
        for name, sql in EXTRA.items()
    ],
)
def test_outcomes_are_counted_whatever_columns_the_table_has(
    spark: SparkSession, topic: Topic, configure: Configure, extra: str
) -> None:
    """Delta executes a plan of its own for such columns, of which Spark reports no metrics."""
    config = configure(kafka={"max_offsets_per_trigger": 2})
    columns = ", ".join(f"`{one.name}` {one.dataType.simpleString()}" for one in OUTCOME_SCHEMA)
    spark.sql(
        f"CREATE TABLE {quote_table(config.table.path)} ({columns}{extra}) USING delta "
        "TBLPROPERTIES ('delta.feature.allowColumnDefaults' = 'supported')"
    )
    contents = [picture(), b"no image", b"", picture(), picture()]
    topic.send([image(str(number), content) for number, content in enumerate(contents)])

    totals = drain_and_count(spark, config)

    assert len(read_rows(Path(config.table.path))) == 5
    assert totals.batches >= 2
    assert totals.embeddings == 3
    assert totals.failures == {"image_unsupported": 1, "image_empty": 1}


def drain_and_count(spark: SparkSession, config: StreamConfig) -> Totals:
    """Run the stream over all that its topic holds now, with a listener as the command has it."""
    tallies = Tallies.start(spark)
    listener = ProgressListener([], tallies.take)
    spark.streams.addListener(listener)
    try:
        drain(spark, config, tallies=tallies)
        while not listener.ended:
            time.sleep(0.05)
    finally:
        spark.streams.removeListener(listener)
    return listener.totals


@pytest.mark.parametrize(
    ("kafka", "expected"),
    [
        ({"starting_offsets": "latest"}, lambda first, second: 0),
        ({"assign": {"TOPIC": [1]}}, lambda first, second: second),
        ({"subscribe_pattern": "PATTERN"}, lambda first, second: first + second),
        (
            {"starting_offsets": {"TOPIC": {0: 1, 1: 2}}},
            lambda first, second: first - 1 + second - 2,
        ),
        ({"starting_timestamp": datetime(2100, 1, 1, tzinfo=UTC)}, lambda first, second: 0),
        (
            {"starting_timestamp": datetime(2020, 1, 1, tzinfo=UTC)},
            lambda first, second: first + second,
        ),
    ],
    ids=["latest", "assign", "pattern", "offsets", "future", "past"],
)
def test_where_the_first_start_begins(
    spark: SparkSession,
    topic: Topic,
    configure: Configure,
    kafka: dict[str, Any],
    expected: Callable[[int, int], int],
) -> None:
    topic.send(image(str(index), picture()) for index in range(40))
    first, second = topic.end_offsets().values()
    assert min(first, second) > 3
    named = {"TOPIC": topic.name, "PATTERN": f"{topic.name[:-1]}.*"}
    config = configure(kafka=_renamed(kafka, named))

    drain(spark, config)

    assert len(read_rows(Path(config.table.path))) == expected(first, second)


def test_messages_of_aborted_transactions_are_not_read(
    spark: SparkSession, topic: Topic, configure: Configure
) -> None:
    from kafka import KafkaProducer

    producer = KafkaProducer(
        bootstrap_servers=topic.bootstrap_servers, transactional_id=f"{topic.name}-writer"
    )
    producer.init_transactions()
    for name, end in (("kept", producer.commit_transaction), ("lost", producer.abort_transaction)):
        producer.begin_transaction()
        producer.send(topic.name, key=name.encode(), value=picture())
        producer.flush()
        end()
    producer.close()
    config = configure()

    drain(spark, config)

    rows = read_rows(Path(config.table.path))
    assert [row["image_id"] for row in rows.values()] == ["kept"]


def test_start_is_refused_with_the_way_out(
    spark: SparkSession, topic: Topic, configure: Configure, tmp_path: Path
) -> None:
    topic.send([image("cat", picture())])
    drain(spark, configure())

    other_model = configure(encoder={"name": "efficientnet_lite0", "weights": "random"})
    assert "--allow-model-change" in refusal(spark, other_model, "table")
    new_checkpoint = configure().model_copy(update={"checkpoint": str(tmp_path / "new")})
    assert "restore the checkpoint" in refusal(spark, new_checkpoint, "checkpoint")
    new_table = configure(table={"path": str(tmp_path / "new")})
    assert "restore the table" in refusal(spark, new_table, "checkpoint")
    no_topic = configure(kafka={"subscribe": "no-such-topic"})
    assert "'no-such-topic' is not on" in refusal(spark, no_topic, "topics")
    no_match = configure(kafka={"subscribe_pattern": "zzz.*"})
    assert "matches 'zzz.*'" in refusal(spark, no_match, "topics")
    no_pattern = configure(kafka={"subscribe_pattern": "images-(("})
    assert "is no regular expression of Java: " in refusal(spark, no_pattern, "topics")
    no_partition = configure(kafka={"assign": {topic.name: [0, 7]}})
    assert "has no partition 7, but 2 from 0 on" in refusal(spark, no_partition, "topics")
    elsewhere = {
        "checkpoint": str(tmp_path / "new"),
        "table": {"path": str(tmp_path / "new-table")},
    }
    one_offset = configure(kafka={"starting_offsets": {topic.name: {0: 0}}}, **elsewhere)
    assert "it lacks partition 1 of" in refusal(spark, one_offset, "checkpoint")
    no_folder = configure(references={"folders": [str(tmp_path / "nowhere")]})
    assert "there is no folder here" in refusal(spark, no_folder, "references")
    no_registry = configure(message={"registry": {"url": "http://127.0.0.1:1"}})
    assert "cannot be asked" in refusal(spark, no_registry, "schema registry")
    no_target = configure(publish={"topic": "no-such-topic"})
    assert "no topic 'no-such-topic' at" in refusal(spark, no_target, "publish")
    away = configure(publish={"topic": "outcomes", "bootstrap_servers": "127.0.0.1:1"})
    found: list[Finding] = []
    assert check_start(spark, away, found.append) is not None
    assert "wait in the table" in found[-1].detail
    unknown = configure(encoder={"name": "resnet5"})
    assert "resnet50" in refusal(spark, unknown, "encoder")
    no_gpu = configure(encoder={"name": "efficientnet_lite0", "device": "cuda"})
    assert "not visible" in refusal(spark, no_gpu, "device")
    on_cpu = {"name": "efficientnet_lite0", "device": "cpu"}
    no_decoder = configure(encoder=on_cpu, decode={"device": "cuda"})
    assert "no encoder runs on a GPU" in refusal(spark, no_decoder, "decode device")


def test_no_broker_is_one_clear_sentence(spark: SparkSession, configure: Configure) -> None:
    config = configure(kafka={"bootstrap_servers": "127.0.0.1:1"})

    message = refusal(spark, config, "topics")

    assert "no Kafka broker answers at 127.0.0.1:1" in message
    assert "\n" not in message


def test_table_of_another_shape_is_refused(
    spark: SparkSession, configure: Configure, tmp_path: Path
) -> None:
    config = configure()
    spark.sql(
        f"CREATE TABLE delta.`{config.table.path}` (topic INT, embedding ARRAY<FLOAT>) USING delta"
    )

    message = refusal(spark, config, "table")

    assert "column 'topic' is int, not string" in message
    assert "column 'image_id' is missing" in message


def test_what_is_no_table_is_refused(
    spark: SparkSession, configure: Configure, tmp_path: Path
) -> None:
    config = configure()
    folder = Path(config.table.path)
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")

    assert "holds files that are no Delta table" in refusal(spark, config, "table")


def test_columns_of_ones_own_are_kept(
    spark: SparkSession, topic: Topic, configure: Configure
) -> None:
    config = configure()
    topic.send([image("first", picture())])
    drain(spark, config)
    spark.sql(f"ALTER TABLE delta.`{config.table.path}` ADD COLUMN label STRING")
    topic.send([image("second", picture())])

    drain(spark, config)

    assert len(_checked(config, topic)) == 2


def test_workers_of_a_quiet_stream_have_their_model(
    spark: SparkSession, configure: Configure
) -> None:
    # No other test's engine serves for this one.
    config = configure(encoder={"name": "efficientnet_lite0", "batch_size": 5})
    stream = start_stream(spark, config, prepared(config), maintain_every_s=1)

    try:
        wait_until(lambda: stream.loads >= 1, timeout_s=60)
        assert stream.loads <= len(python_workers())
    finally:
        stop_stream(stream.query, timeout_s=60)


def _renamed(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {_renamed(key, names): _renamed(inner, names) for key, inner in value.items()}
    return names.get(value, value) if isinstance(value, str) else value


def _checked(config: StreamConfig, topic: Topic) -> dict[Position, Row]:
    return check_outcomes(Path(config.table.path), topic.positions())
