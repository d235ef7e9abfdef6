"""Kafka as a streaming DataFrame of messages."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Literal

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as f
from pyspark.sql.types import ArrayType, StructType

from embedstream.config.options import find_option
from embedstream.config.secrets import reveal
from embedstream.config.sections import KafkaConfig
from embedstream.spark.sizing import count_parallel_tasks, count_rows_per_commit

__all__ = [
    "MESSAGES_SCHEMA",
    "MESSAGE_COLUMNS",
    "build_client_options",
    "build_source_options",
    "choose_messages_per_trigger",
    "read_messages",
    "to_epoch_ms",
]

MESSAGES_SCHEMA = (
    StructType()
    .add("topic", "string")
    .add("partition", "integer")
    .add("offset", "long")
    .add("timestamp", "timestamp")
    .add("key", "binary")
    .add("value", "binary")
    .add("headers", ArrayType(StructType().add("key", "string").add("value", "binary")))
)
MESSAGE_COLUMNS = tuple(MESSAGES_SCHEMA.names)

# During an outage the driver's request for offsets takes `kafka.default.api.timeout.ms`, a minute.
# Spark makes three requests by default and then ends the query. A task bears 12 minutes: Spark
# runs it four times, and each run waits `kafkaConsumer.pollTimeoutMs`, two minutes, and then
# requests offsets.
_OUTAGE_OPTIONS = {"fetchOffset.numRetries": "10"}
# When a task's consumer has returned its last messages, it requests the next ones, and the broker
# waits for them for this time, half a second by default. Spark then asks for the partition's first
# and last offsets over the same connection. The broker answers requests in order, so the task would
# wait too. Spark polls only for messages that exist, so a short wait causes no more requests.
_FETCH_OPTIONS = {"kafka.fetch.max.wait.ms": "10"}


def read_messages(
    spark: SparkSession, config: KafkaConfig, *, tombstones: Literal["count", "delete"] = "count"
) -> DataFrame:
    """Return a streaming DataFrame of `MESSAGE_COLUMNS`, one row per Kafka message with a value.

    With `delete`, a message without a value makes a row too if it has a key. Other null values make
    none; they are counted in the observation `messages`, as `tombstones`.
    """
    reader = spark.readStream.format("kafka").options(**build_source_options(spark, config))
    kept = f.col("value").isNotNull()
    if tombstones == "delete":
        kept |= f.col("key").isNotNull()
    return (
        reader.load()
        .select(*MESSAGE_COLUMNS)
        .observe(
            "messages",
            f.count(f.lit(1)).alias("read"),
            f.count_if(~kept).alias("tombstones"),
        )
        .where(kept)
    )


def build_source_options(spark: SparkSession, config: KafkaConfig) -> dict[str, str]:
    """Return the options of Spark's Kafka source, with secrets in clear."""
    given = build_client_options(config)
    # A user who asks for large fetches accepts the wait.
    is_batched = find_option(given, "kafka.fetch.min.bytes") is not None
    own = _OUTAGE_OPTIONS if is_batched else {**_OUTAGE_OPTIONS, **_FETCH_OPTIONS}
    defaults = {k: v for k, v in own.items() if find_option(given, k) is None}
    offsets, timestamp = config.starting_offsets, config.starting_timestamp
    if timestamp is None:
        start = {"startingOffsets": offsets if isinstance(offsets, str) else json.dumps(offsets)}
    else:
        start = {
            "startingTimestamp": str(to_epoch_ms(timestamp)),
            # A partition without a message that new starts at its end, instead of failing.
            "startingOffsetsByTimestampStrategy": "latest",
        }
    subscription = {
        "subscribe": config.subscribe,
        "subscribePattern": config.subscribe_pattern,
        "assign": None if config.assign is None else json.dumps(config.assign),
    }
    return {
        **defaults,
        **given,
        **{name: value for name, value in subscription.items() if value is not None},
        **start,
        "includeHeaders": "true",
        "failOnDataLoss": "true" if config.on_data_loss == "fail" else "false",
        "kafka.isolation.level": config.isolation,
        "minPartitions": str(config.min_partitions or count_parallel_tasks(spark)),
        "maxOffsetsPerTrigger": str(choose_messages_per_trigger(spark, config)),
    }


def choose_messages_per_trigger(spark: SparkSession, config: KafkaConfig) -> int:
    """Return the limit of one micro-batch: as configured, else by how many rows run at once."""
    if config.max_offsets_per_trigger is not None:
        return config.max_offsets_per_trigger
    least = find_option(config.options, "minOffsetsPerTrigger") or 0
    return max(count_rows_per_commit(spark), int(least))


def build_client_options(config: KafkaConfig) -> dict[str, str]:
    """Return the addresses and the pass-through options, with secrets in clear."""
    return {"kafka.bootstrap.servers": config.bootstrap_servers, **reveal(config.options)}


def to_epoch_ms(time: datetime) -> int:
    """Convert to milliseconds since 1970, exactly: a float can be off by one."""
    return (time - datetime.fromtimestamp(0, UTC)) // timedelta(milliseconds=1)
