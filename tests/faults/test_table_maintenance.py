"""The table is compacted, vacuumed and altered, and its model changed, while the stream runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
from deltalake import DeltaTable, Field
from deltalake.schema import PrimitiveType
from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException, StreamingQueryException
from pyspark.sql import SparkSession

from drivers import running, wait_until
from embedstream.config.sections import StreamConfig
from embedstream.recovery.resume import explain_failure
from embedstream.stream.job import start_stream, stop_stream
from embedstream.stream.preflight import Consent, check_start
from embedstream.table.conflicts import find_conflict
from oracle import check_outcomes
from small import send_pictures, write_config
from streams import Topic, drain, prepared, refusal

pytestmark = [pytest.mark.kafka, pytest.mark.spark]

Configure = Callable[..., StreamConfig]

SMALL_BATCHES = {"kafka": {"max_offsets_per_trigger": 4}, "trigger": {"interval_s": 0}}


def other_session(spark: SparkSession) -> SparkSession:
    """As of another user, who has switched off what keeps VACUUM from new files."""
    other = spark.newSession()
    other.conf.set("spark.databricks.delta.retentionDurationCheck.enabled", "false")
    return other


def files(table: Path) -> set[Path]:
    return set(table.glob("*.parquet"))


@pytest.mark.long
def test_optimize_and_vacuum_while_the_stream_runs(
    spark: SparkSession, topic: Topic, configure: Configure
) -> None:
    config = configure(**SMALL_BATCHES)
    table = Path(config.table.path)
    stream = start_stream(spark, config, prepared(config))
    other, seen = other_session(spark), files(table)
    try:
        while not seen - files(table):
            seen |= files(table)
            send_pictures(topic, 4)
            other.sql(f"OPTIMIZE delta.`{table}`")
            DeltaTable(table).optimize.compact()
            # 18 s: files of a micro-batch that is not committed yet are younger.
            other.sql(f"VACUUM delta.`{table}` RETAIN 0.005 HOURS")
    finally:
        stop_stream(stream.query, timeout_s=60)

    assert stream.query.exception() is None
    drain(spark, config)
    check_outcomes(table, topic.positions())


@pytest.mark.long
def test_a_table_altered_in_mid_batch_ends_the_query_and_the_micro_batch_is_repeated(
    spark: SparkSession, topic: Topic, configure: Configure
) -> None:
    config = configure(**SMALL_BATCHES)
    table = f"delta.`{config.table.path}`"
    send_pictures(topic, 40)
    stream = start_stream(spark, config, prepared(config), until="drained")
    other, columns = other_session(spark), 0
    while stream.query.isActive:
        other.sql(f"ALTER TABLE {table} ADD COLUMN label_{columns} STRING")
        columns += 1

    with pytest.raises(StreamingQueryException) as error:
        stream.query.awaitTermination()
    assert find_conflict(error.value) == "altered"
    drain(spark, config)

    rows = check_outcomes(Path(config.table.path), topic.positions())
    assert all(row[f"label_{columns - 1}"] is None for row in rows.values())


@pytest.mark.long
def test_a_column_renamed_while_the_stream_runs_stops_it_and_is_named(
    spark: SparkSession, topic: Topic, configure: Configure
) -> None:
    config = configure(**SMALL_BATCHES)
    table, other = f"delta.`{config.table.path}`", other_session(spark)
    send_pictures(topic, 40)
    stream = start_stream(spark, config, prepared(config), until="drained")
    other.sql(f"ALTER TABLE {table} SET TBLPROPERTIES ('delta.columnMapping.mode' = 'name')")
    other.sql(f"ALTER TABLE {table} RENAME COLUMN uri TO link")

    with pytest.raises(StreamingQueryException):
        stream.query.awaitTermination()

    reason = explain_failure(spark, config)
    assert reason is not None
    assert "column 'uri' is missing" in reason
    assert refusal(spark, config, "table") == reason
    other.sql(f"ALTER TABLE {table} RENAME COLUMN link TO uri")
    drain(spark, config)
    check_outcomes(Path(config.table.path), topic.positions())


@pytest.mark.long
def test_the_command_continues_while_the_table_is_altered_and_compacted(
    topic: Topic, tmp_path: Path
) -> None:
    send_pictures(topic, 120)
    table, commits = tmp_path / "table", tmp_path / "checkpoint/commits"
    with running(write_config(topic, tmp_path), "--available-now") as process:
        for number in range(8):
            wait_until((commits / f"{number}").exists, driver=process)
            # By then the next micro-batch is being written.
            time.sleep(0.5)
            add_column(table, f"label_{number}")
            DeltaTable(table).optimize.compact()
        output, _ = process.communicate(timeout=200)

    assert process.returncode == 0, output
    assert "the table was altered: the micro-batch in flight is repeated" in output
    rows = check_outcomes(table, topic.positions())
    assert all(row["label_7"] is None for row in rows.values())


def add_column(table: Path, name: str) -> None:
    """Add a column from another process than the stream's.

    On a local disk Delta's writers in different processes can write over each other's commit.
    """
    while name not in DeltaTable(table).schema().to_arrow().names:
        DeltaTable(table).alter.add_columns(Field(name, PrimitiveType("string")))


@pytest.mark.long
def test_conflicts_of_commits_are_recognized_by_their_type(
    spark: SparkSession, tmp_path: Path
) -> None:
    path = str(tmp_path / "table")
    table = f"delta.`{path}`"
    spark.range(4).write.format("delta").save(path)

    def merge_while(change: Callable[[], object]) -> Exception:
        """Return the error of a merge during which another process changes the table."""

        def source(frames: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
            for frame in frames:
                change()
                yield frame

        rows = spark.range(0, 1, 1, 1).mapInPandas(source, "id long")
        rows.createOrReplaceTempView("changes")
        merge = f"MERGE INTO {table} t USING changes s ON t.id = s.id WHEN MATCHED THEN DELETE"
        try:
            spark.sql(merge)
        except (PySparkException, Py4JJavaError) as error:
            return error
        raise AssertionError("Delta accepted the merge")

    assert find_conflict(merge_while(lambda: DeltaTable(path).delete())) == "concurrent"
    spark.range(4).write.format("delta").mode("append").save(path)

    def alter() -> None:
        DeltaTable(path).alter.set_table_properties({"delta.appendOnly": "false"})

    assert find_conflict(merge_while(alter)) == "altered"
    assert find_conflict(ValueError("DELTA_CONCURRENT_APPEND")) is None


@pytest.mark.long
def test_another_model_needs_consent_and_marks_its_rows(
    spark: SparkSession, topic: Topic, configure: Configure
) -> None:
    trained = configure(pipeline={"dedupe": True})
    random = configure(
        pipeline={"dedupe": True}, encoder={"name": "efficientnet_lite0", "weights": "random"}
    )
    models = [prepared(config)[0].card.model_id for config in (trained, random)]
    send_pictures(topic, 6)
    drain(spark, trained)
    before = check_outcomes(Path(trained.table.path), topic.positions())
    send_pictures(topic, 6)

    message = refusal(spark, random, "table")
    assert all(f"'{model}'" in message for model in models)
    assert "--allow-model-change" in message
    assert check_start(spark, random, print, Consent(model_change=True))
    drain(spark, random)

    rows = check_outcomes(Path(trained.table.path), topic.positions())
    assert {position: rows[position] for position in before} == before
    after = [row for position, row in rows.items() if position not in before]
    assert {row["model_id"] for row in before.values()} == {models[0]}
    assert {row["model_id"] for row in after} == {models[1]}
    # All images are the same, so each model has one vector.
    vectors = {tuple(row["embedding"]) for row in rows.values()}
    assert len(vectors) == 2
    assert "--allow-model-change" in refusal(spark, trained, "table")
