"""Options of Spark and Kafka reach Spark as they were given, or are refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from case_doors import Session
from embedstream.config.errors import ConfigError
from embedstream.config.load import load_config
from embedstream.config.sections import KafkaConfig, SparkConfig, StreamConfig
from embedstream.kafka.source import build_source_options, choose_messages_per_trigger

LOCAL = Path(__file__).parents[3] / "conf" / "local.yaml"
KAFKA: dict[str, Any] = {"bootstrap_servers": "localhost:9092", "subscribe": "images"}


def options(given: dict[str, str], **settings: Any) -> dict[str, str]:
    """What Spark's Kafka source is given in the end."""
    config = KafkaConfig(**KAFKA, options=given, **settings)
    return build_source_options(Session, config)  # type: ignore[arg-type]


def kafka_problem(name: str, value: str = "1") -> str:
    with pytest.raises(ValidationError) as error:
        KafkaConfig(**KAFKA, options={name: value})
    return str(error.value)


def spark_problem(name: str, value: str = "1") -> str:
    with pytest.raises(ValidationError) as error:
        SparkConfig(options={name: value})
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("kafka.bootstrap.servers", "kafka.bootstrap_servers"),
        ("subscribe", "kafka.subscribe"),
        ("subscribePattern", "kafka.subscribe_pattern"),
        ("assign", "kafka.assign"),
        ("startingOffsets", "kafka.starting_offsets"),
        ("startingTimestamp", "kafka.starting_timestamp"),
        ("startingOffsetsByTimestamp", "kafka.starting_timestamp"),
        ("startingOffsetsByTimestampStrategy", "kafka.starting_timestamp"),
        ("maxOffsetsPerTrigger", "kafka.max_offsets_per_trigger"),
        ("minPartitions", "kafka.min_partitions"),
        ("failOnDataLoss", "kafka.on_data_loss"),
        ("kafka.isolation.level", "kafka.isolation"),
    ],
)
@pytest.mark.parametrize("spell", [str, str.lower, str.upper])
def test_a_kafka_option_that_has_a_key_is_refused_with_it(spell: Any, name: str, key: str) -> None:
    text = kafka_problem(spell(name))
    assert f"'{spell(name)}' has its own key: set {key}" in text


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("includeHeaders", "always read"),
        ("endingOffsets", "a stream has no end"),
        ("endingOffsetsByTimestamp", "a stream has no end"),
        ("endingTimestamp", "a stream has no end"),
        ("kafka.key.deserializer", "bytes"),
        ("kafka.value.deserializer", "bytes"),
        ("kafka.auto.offset.reset", "the checkpoint keeps"),
        ("KAFKA.enable.auto.commit", "the checkpoint keeps"),
        ("kafka.interceptor.classes", "could change messages"),
    ],
)
def test_a_fixed_kafka_option_is_refused_with_the_reason(name: str, reason: str) -> None:
    text = kafka_problem(name)
    assert f"'{name}' cannot be set: " in text
    assert reason in text


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("security.protocol", "kafka.security.protocol"),
        ("sasl.mechanism", "kafka.sasl.mechanism"),
        ("maxOffsetPerTrigger", "maxOffsetsPerTrigger"),
        ("fetchOffset.retries", "fetchOffset.numRetries"),
        ("groupPrefix", "groupIdPrefix"),
        ("topic", "kafka.topic"),
    ],
)
def test_an_unknown_kafka_option_is_refused_with_the_nearest(name: str, nearest: str) -> None:
    text = kafka_problem(name)
    assert f"Spark's Kafka source has no option '{name}'; did you mean '{nearest}'?" in text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("groupIdPrefix", "embedstream"),
        ("kafka.group.id", "embedstream"),
        ("kafka.client.id", "me"),
        ("Kafka.Security.Protocol", "SSL"),
        ("maxRecordsPerPartition", "100"),
        ("minOffsetsPerTrigger", "100"),
        ("maxTriggerDelay", "5m"),
        ("kafkaConsumer.pollTimeoutMs", "2000"),
        ("fetchOffset.numRetries", "2"),
        ("fetchoffset.numretries", "2"),
        ("fetchOffset.retryIntervalMs", "20"),
        ("kafka.fetch.max.wait.ms", "500"),
        ("kafka.Fetch.max.wait.ms", "500"),
    ],
)
def test_any_other_kafka_option_reaches_spark_once(name: str, value: str) -> None:
    found = options({name: value})
    assert {key: found[key] for key in found if key.lower() == name.lower()} == {name: value}


def test_a_short_wait_for_messages_is_the_default_unless_large_fetches_are_asked_for() -> None:
    assert options({})["kafka.fetch.max.wait.ms"] == "10"
    assert "kafka.fetch.max.wait.ms" not in options({"kafka.fetch.min.bytes": "1048576"})


@pytest.mark.parametrize("value", ["banana", "15 m", "1.5h", ""])
def test_the_delay_of_a_trigger_has_a_unit(value: str) -> None:
    text = kafka_problem("maxTriggerDelay", value)
    assert "the value of 'maxTriggerDelay' must be a time with a unit, as 15m or 90s" in text


@pytest.mark.parametrize("value", ["many", "1.5", "-1", ""])
def test_the_number_of_an_option_is_whole(value: str) -> None:
    text = kafka_problem("minOffsetsPerTrigger", value)
    assert "the value of 'minOffsetsPerTrigger' must be a whole number" in text


@pytest.mark.parametrize(("least", "most"), [("10", 2048), ("5000", 5000)])
def test_a_micro_batch_may_hold_at_least_what_it_waits_for(least: str, most: int) -> None:
    config = KafkaConfig(**KAFKA, options={"minoffsetspertrigger": least})
    assert choose_messages_per_trigger(Session, config) == most  # type: ignore[arg-type]


def test_a_micro_batch_that_waits_for_more_than_it_may_hold_is_refused() -> None:
    with pytest.raises(ValueError, match=r"minOffsetsPerTrigger is 10, .*max_offsets_per_trigger"):
        options({"minOffsetsPerTrigger": "10"}, max_offsets_per_trigger=9)


@pytest.mark.parametrize("section", ["kafka", "spark"])
def test_an_option_is_given_once(section: str) -> None:
    names = [f"{section}.client.id", f"{section}.Client.Id"]
    overrides = [f"{section}.options.{name}=a" for name in names]
    with pytest.raises(ConfigError, match=f"'{names[0]}' and '{names[1]}' are the same option"):
        load_config(LOCAL, overrides, environment={})


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("spark.master", "spark.master"),
        ("spark.Master", "spark.master"),
        ("spark.app.name", "spark.app_name"),
        ("spark.sql.execution.arrow.maxRecordsPerBatch", "pipeline.arrow_batch_rows"),
        ("spark.sql.execution.arrow.maxBytesPerBatch", "pipeline.arrow_batch_bytes"),
        ("spark.sql.streaming.checkpointLocation", "checkpoint"),
    ],
)
def test_a_setting_of_spark_that_has_a_key_is_refused_with_it(name: str, key: str) -> None:
    text = spark_problem(name)
    assert f"'{name}' has its own key: set {key}, not spark.options" in text


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("spark.pyspark.python", "/opt/python", "PYSPARK_PYTHON"),
        ("spark.remote", "sc://host", "Spark Connect"),
        ("spark.api.mode", "connect", "must be classic"),
        ("spark.python.worker.reuse", "false", "must be true"),
        ("spark.python.use.daemon", "false", "must be true"),
        ("spark.python.daemon.module", "mine", "must be embedstream.worker.daemon"),
        ("spark.sql.session.timeZone", "Europe/Berlin", "must be UTC"),
        ("spark.sql.session.timezone", "UTC", "must be UTC"),
        ("spark.sql.catalog.spark_catalog", "mine.Catalog", "spark.jars"),
    ],
)
def test_a_setting_of_spark_that_would_do_harm_is_refused(
    name: str, value: str, reason: str
) -> None:
    text = spark_problem(name, value)
    assert f"'{name}' " in text
    assert reason in text


def test_a_needed_setting_may_be_given_with_its_needed_value() -> None:
    given = {"spark.sql.session.timeZone": "UTC", "spark.python.worker.reuse": "true"}
    assert SparkConfig(options=given).options == given


def test_the_catalog_may_be_set_if_the_cluster_provides_the_jars() -> None:
    given = {"spark.sql.catalog.spark_catalog": "io.unitycatalog.spark.UCSingleCatalog"}
    assert SparkConfig(jars="provided", options=given).options == given


@pytest.mark.parametrize("key", ["table.path", "checkpoint"])
@pytest.mark.parametrize("location", ["s3://bucket/x", "s3n://bucket/x", "S3://bucket/x"])
def test_s3_is_refused_in_favor_of_s3a_if_jars_are_fetched(key: str, location: str) -> None:
    with pytest.raises(ConfigError, match=rf"\n  {key} 's3n?://bucket/x': .* write s3a://"):
        load_config(LOCAL, [f"{key}={location}"], environment={})


@pytest.mark.parametrize(
    "setting",
    [
        "spark.jars=provided",
        "spark.options.spark.hadoop.fs.s3.impl=org.apache.hadoop.fs.s3a.S3AFileSystem",
    ],
)
def test_s3_is_accepted_if_the_cluster_may_have_a_file_system_for_it(setting: str) -> None:
    config: StreamConfig = load_config(LOCAL, ["table.path=s3://bucket/x", setting], environment={})
    assert config.table.path == "s3://bucket/x"
