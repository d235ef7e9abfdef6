"""Messages are embedded again: a replay replaces their rows, a backfill adds another model's."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as f

from embedstream.bulk.replay import Plan, Replay
from embedstream.bulk.selection import Kind, OffsetRange, Selection
from embedstream.config.sections import MessageConfig, StreamConfig
from embedstream.kafka.admin import create_topic
from embedstream.stream.job import start_stream, stop_stream
from embedstream.stream.preflight import Consent, check_start
from embedstream_core.errors import Code, SetupError
from kafka_topics import delete_before, delete_topic
from oracle import Position, Row, all_rows, check_outcomes, read_rows
from small import send_pictures, tiny_picture
from streams import Topic, image, json_message, prepared
from streams_by_start import start

pytestmark = [pytest.mark.kafka, pytest.mark.spark]

Configure = Callable[..., StreamConfig]
OTHER = {"name": "resnet18", "weights": "random"}


def replaying(
    spark: SparkSession, config: StreamConfig, *, kind: Kind = "replay", **selection: object
) -> Replay:
    consent = Consent(model_change=kind == "backfill")
    checked = check_start(spark, config, print, consent, purpose="replay")
    assert checked is not None
    chosen = Selection(**selection)  # type: ignore[arg-type]
    return Replay(spark, config, checked.models, checked.topics, kind=kind, selection=chosen)


def finish(replay: Replay, *, chunk_rows: int | None = None) -> Plan:
    """Do all that is left, and return what that was."""
    plan = replay.plan(chunk_rows=chunk_rows)
    reports = [replay.run(chunk) for chunk in plan.chunks]
    assert sum(report.rows for report in reports) == plan.rows
    replay.finish()
    return plan


def other_model(config: StreamConfig) -> StreamConfig:
    return config.model_copy(update={"encoder": config.encoder.model_copy(update=OTHER)})


def model_id(config: StreamConfig) -> str:
    (model,) = prepared(config)
    return model.card.model_id


@pytest.fixture
def referring(configure: Configure, tmp_path: Path) -> StreamConfig:
    """A stream that may read the folder `pictures`, which is empty."""
    (tmp_path / "pictures").mkdir()
    return configure(references={"folders": [str(tmp_path / "pictures")], "attempts": 1})


def send_references(topic: Topic, folder: Path, count: int) -> None:
    topic.send(
        json_message(f"{index}", uri=(folder / f"{index}.jpg").as_uri(), shelf="top")
        for index in range(count)
    )


def send_products(topic: Topic, folder: Path, count: int) -> None:
    """Send references in messages whose shape is not embedstream's own."""
    topic.send(
        json_message(
            f"{index}",
            sku=f"sku-{index}",
            image={"url": (folder / f"{index}.jpg").as_uri()},
            place={"shelf": "top"},
        )
        for index in range(count)
    )


@pytest.mark.long
def test_a_replay_replaces_failures_and_leaves_good_rows(
    spark: SparkSession, topic: Topic, referring: StreamConfig, tmp_path: Path
) -> None:
    send_references(topic, tmp_path / "pictures", 4)
    topic.send([image("broken", b"no image"), image("good", tiny_picture())])
    start(spark, referring)
    before = check_outcomes(tmp_path / "table", topic.positions())
    (tmp_path / "pictures" / "2.jpg").write_bytes(tiny_picture())

    one = finish(replaying(spark, referring, codes=(Code.IMAGE_UNSUPPORTED,)))
    plan = finish(replaying(spark, referring, failures=True))

    assert one.rows == 1
    assert (plan.rows, plan.lost) == (5, 0)
    after = check_outcomes(tmp_path / "table", topic.positions())
    repaired = [
        row for position, row in after.items() if _is_good(row) and not _is_good(before[position])
    ]
    assert [row["image_id"] for row in repaired] == ["2"]
    assert repaired[0]["attributes"] == [("shelf", "top")]
    for position, row in before.items():
        # Good rows stay as they were; rows that failed again have a new error.
        assert (after[position]["processed_at"] == row["processed_at"]) == _is_good(row)


@pytest.mark.long
@pytest.mark.parametrize(
    "layout", [{"partition_by": "date"}, {"cluster_by": ["image_id"]}], ids=str
)
def test_a_partitioned_or_clustered_table_is_filled_adopted_and_replayed(
    spark: SparkSession,
    topic: Topic,
    configure: Configure,
    tmp_path: Path,
    layout: dict[str, object],
) -> None:
    config = configure(table={"path": str(tmp_path / "table"), **layout})
    topic.send([image("broken", b"no image")])
    send_pictures(topic, 4)
    start(spark, config)
    shutil.rmtree(config.checkpoint)
    send_pictures(topic, 2)
    start(spark, config, adopt=True)
    before = check_outcomes(tmp_path / "table", topic.positions())

    replayed = finish(replaying(spark, config))
    added = finish(replaying(spark, other_model(config), kind="backfill"))

    # What no image can be made of is a failure without a model, which a backfill leaves alone.
    assert (replayed.rows, added.rows) == (len(before), len(before) - 1)
    rows = all_rows(tmp_path / "table")
    assert len(rows) == len(before) + added.rows
    assert all(row.get("date", row["timestamp"].date()) == row["timestamp"].date() for row in rows)
    assert ("date" in rows[0]) == ("partition_by" in layout)


@pytest.mark.long
def test_a_replay_fetches_references_of_deleted_messages_and_counts_lost_images(
    spark: SparkSession, topic: Topic, referring: StreamConfig, tmp_path: Path
) -> None:
    shape = {"id": "sku", "uri": "image.url", "attributes": "{text: sku, shelf: place.shelf}"}
    message = MessageConfig.model_validate({"fields": shape, "key": "hex"})
    referring = referring.model_copy(update={"message": message})
    send_products(topic, tmp_path / "pictures", 6)
    topic.send(image(f"bytes-{index}", tiny_picture()) for index in range(6))
    start(spark, referring)
    ends = topic.end_offsets()
    before = read_rows(tmp_path / "table")
    products = [row for row in before.values() if row["uri"] is not None]
    assert {row["image_id"] for row in products} == {f"sku-{index}" for index in range(6)}
    assert {row["image_id"] for row in before.values()} >= {b"bytes-0".hex()}
    for index in range(6):
        (tmp_path / "pictures" / f"{index}.jpg").write_bytes(tiny_picture())
    delete_before(topic, ends)

    plan = finish(replaying(spark, referring))

    assert (plan.rows, plan.lost) == (6, 6)
    after = check_outcomes(tmp_path / "table", before)
    assert all(map(_is_good, after.values()))
    kept = ["image_id", "uri", "key", "timestamp", "attributes"]
    for position, row in before.items():
        assert [after[position][name] for name in kept] == [row[name] for name in kept]


@pytest.mark.long
def test_a_selection_leaves_all_other_rows_as_they_are(
    spark: SparkSession, topic: Topic, configure: Configure, tmp_path: Path
) -> None:
    config = configure()
    send_pictures(topic, 12)
    start(spark, config)
    before = read_rows(tmp_path / "table")
    chosen = OffsetRange(topic.name, 0, 1, 2)
    times = sorted(row["timestamp"] for row in before.values())

    plan = finish(replaying(spark, config, offsets=(chosen,)))
    none = finish(replaying(spark, config, until=times[0]))
    all_of_them = replaying(spark, config, since=times[0]).plan(chunk_rows=5)

    assert (plan.rows, none.rows, all_of_them.rows) == (2, 0, 12)
    after = check_outcomes(tmp_path / "table", topic.positions())
    changed = {p for p in after if after[p]["processed_at"] != before[p]["processed_at"]}
    assert changed == {Position(topic.name, 0, offset) for offset in (1, 2)}
    assert all(after[p]["embedding"] == pytest.approx(before[p]["embedding"]) for p in changed)


@pytest.mark.long
def test_an_interrupted_replay_resumes_and_a_finished_one_starts_over(
    spark: SparkSession, topic: Topic, configure: Configure, tmp_path: Path
) -> None:
    config = configure()
    send_pictures(topic, 12)
    start(spark, config)
    interrupted = replaying(spark, config)
    first, *rest = interrupted.plan(chunk_rows=1).chunks
    interrupted.run(first)

    resumed = finish(replaying(spark, config), chunk_rows=1)

    assert resumed.rows == sum(chunk.rows for chunk in rest) == 12 - first.rows
    assert replaying(spark, config).plan(chunk_rows=100).rows == 12
    check_outcomes(tmp_path / "table", topic.positions())


@pytest.mark.long
def test_a_backfill_adds_another_models_rows_once(
    spark: SparkSession, topic: Topic, configure: Configure, tmp_path: Path
) -> None:
    config = configure()
    other = other_model(config)
    send_pictures(topic, 10)
    topic.send([image("broken", b"no image")])
    start(spark, config)
    begun = replaying(spark, other, kind="backfill")
    begun.run(begun.plan(chunk_rows=1).chunks[0])

    rest = finish(replaying(spark, other, kind="backfill"))
    again = finish(replaying(spark, other, kind="backfill"))

    assert 0 < rest.rows < 10
    assert again.rows == 0
    rows = check_outcomes(tmp_path / "table", topic.positions(), model_id=model_id(config))
    good = {position for position, row in rows.items() if _is_good(row)}
    assert len(good) == 10
    # What is no image for one model is not offered to another one.
    rows = check_outcomes(tmp_path / "table", good, model_id=model_id(other))
    assert all(map(_is_good, rows.values()))


@pytest.mark.long
def test_a_replay_replaces_rows_without_a_model_and_leaves_those_of_others(
    spark: SparkSession, topic: Topic, referring: StreamConfig, tmp_path: Path
) -> None:
    """As a stream of several modalities writes them for a reference that cannot be fetched."""
    send_references(topic, tmp_path / "pictures", 3)
    topic.send([image("good", tiny_picture())])
    start(spark, referring)
    table = tmp_path / "table"
    _set(spark, table, "model_id = NULL, media = NULL", "error IS NOT NULL")
    rows = spark.read.format("delta").load(str(table)).where("image_id = '0'")
    another = rows.withColumn("model_id", f.lit("another/model/0"))
    another.write.format("delta").mode("append").save(str(table))
    (tmp_path / "pictures" / "0.jpg").write_bytes(tiny_picture())

    plan = finish(replaying(spark, referring, failures=True))

    assert plan.rows == 3
    after = all_rows(table)
    found = {(row["image_id"], row["model_id"], _is_good(row)) for row in after}
    own = model_id(referring)
    assert found == {
        ("0", own, True),
        ("0", "another/model/0", False),
        ("1", own, False),
        ("2", own, False),
        ("good", own, True),
    }
    assert len(after) == len(found)


@pytest.mark.long
def test_a_backfill_offers_what_the_model_accepts_and_unknown_content_once(
    spark: SparkSession, topic: Topic, configure: Configure, tmp_path: Path
) -> None:
    config, table = configure(), tmp_path / "table"
    names = ["text", "unknown", "image", "refused-image", "refused-text"]
    topic.send(image(name, tiny_picture()) for name in names)
    start(spark, config)
    _set(spark, table, "media.type = 'text/plain'", "image_id LIKE '%text'")
    _set(spark, table, "media = NULL", "image_id = 'unknown'")
    _set(spark, table, "model_id = NULL", "image_id LIKE 'refused%'")
    other = other_model(config)

    plan = finish(replaying(spark, other, kind="backfill"))
    again = finish(replaying(spark, other, kind="backfill"))

    assert (plan.rows, again.rows) == (3, 0)
    first, second = model_id(config), model_id(other)
    found = [(row["image_id"], row["model_id"]) for row in all_rows(table)]
    assert sorted(found, key=str) == sorted(
        [
            ("text", first),
            ("unknown", first),
            ("unknown", second),
            ("image", first),
            ("image", second),
            ("refused-image", second),
            ("refused-text", None),
        ],
        key=str,
    )


@pytest.mark.long
def test_a_replay_during_the_live_stream_loses_and_doubles_nothing(
    spark: SparkSession, topic: Topic, configure: Configure, tmp_path: Path
) -> None:
    """Both write to the same table, which is compacted at every other commit."""
    compact = {"delta.autoOptimize.autoCompact": "true"}
    spark.conf.set("spark.databricks.delta.autoCompact.minNumFiles", "2")
    config = configure(
        table={"path": str(tmp_path / "table"), "properties": compact},
        trigger={"interval_s": 0},
        kafka={"max_offsets_per_trigger": 4},
    )
    send_pictures(topic, 16)
    start(spark, config)
    live = start_stream(spark, config, prepared(config)).query
    try:
        for _ in range(2):
            send_pictures(topic, 8)
            finish(replaying(spark, config), chunk_rows=1)
            finish(replaying(spark, other_model(config), kind="backfill"), chunk_rows=1)
        _await_rows(tmp_path / "table", topic, model_id(config))
        assert live.isActive, live.exception()
    finally:
        stop_stream(live, timeout_s=60)
        spark.conf.unset("spark.databricks.delta.autoCompact.minNumFiles")

    check_outcomes(tmp_path / "table", topic.positions(), model_id=model_id(config))
    # Each position once; what came during a backfill is for the next one.
    read_rows(tmp_path / "table", model_id=model_id(other_model(config)))


@pytest.mark.long
def test_a_topic_created_again_is_refused(
    spark: SparkSession, topic: Topic, configure: Configure
) -> None:
    config = configure()
    send_pictures(topic, 2)
    start(spark, config)
    delete_topic(topic)
    create_topic(topic.bootstrap_servers, topic.name, partitions=2)

    with pytest.raises(SetupError, match="is not the one that was read"):
        replaying(spark, config)


def _set(spark: SparkSession, table: Path, values: str, condition: str) -> None:
    spark.sql(f"UPDATE delta.`{table}` SET {values} WHERE {condition}")


def _is_good(row: Row) -> bool:
    return row["embedding"] is not None


def _await_rows(table: Path, topic: Topic, model: str) -> None:
    deadline = time.monotonic() + 120
    while read_rows(table, model_id=model).keys() != topic.positions():
        assert time.monotonic() < deadline, "the live stream makes no progress"
        time.sleep(0.2)
