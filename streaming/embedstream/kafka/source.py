"""Kafka to a DataFrame of messages, and what must be true of the topic before a start."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as f
from pyspark.sql.types import (
    ArrayType,
    BinaryType,
    IntegerType,
    LongType,
    StringType,
    StructField,
    StructType,
    TimestampType,
)

from embedstream.config.options import find_option
from embedstream.config.secrets import revealed
from embedstream.config.sections import KafkaConfig
from embedstream.spark.errors import causes, root_cause
from embedstream.spark.sizing import rows_a_commit, tasks_at_once
from embedstream_core.errors import SetupError

__all__ = [
    "MESSAGES_SCHEMA",
    "MESSAGE_COLUMNS",
    "TopicState",
    "check_topics",
    "messages_per_trigger",
    "offsets_at",
    "read_messages",
]

_HEADER = StructType([StructField("key", StringType()), StructField("value", BinaryType())])
MESSAGES_SCHEMA = StructType(
    [
        StructField("topic", StringType()),
        StructField("partition", IntegerType()),
        StructField("offset", LongType()),
        StructField("timestamp", TimestampType()),
        StructField("key", BinaryType()),
        StructField("value", BinaryType()),
        StructField("headers", ArrayType(_HEADER)),
    ]
)
MESSAGE_COLUMNS = tuple(MESSAGES_SCHEMA.names)

_ADMIN_TIMEOUT_MS = 10_000

# While Kafka is away, the driver's question for offsets takes `kafka.default.api.timeout.ms`, a
# minute. Spark asks three times, and then ends the query. A task bears 12 minutes: Spark tries it
# four times, and each waits `kafkaConsumer.pollTimeoutMs`, two minutes, and then asks for offsets.
_OUTAGE = {"fetchOffset.numRetries": "10"}


@dataclass(frozen=True, slots=True)
class TopicState:
    """A topic as the broker has it now.

    `id` is Kafka's own: a topic that is deleted and created again has another. `earliest` is the
    first offset that a partition still holds, `end` the one that its next message takes.
    """

    id: str
    earliest: Mapping[int, int]
    end: Mapping[int, int]


def read_messages(spark: SparkSession, config: KafkaConfig) -> DataFrame:
    """A streaming DataFrame of `MESSAGE_COLUMNS`, one row a Kafka message with a value.

    Null values (tombstones) make no row; they are counted in the observation `messages`.
    """
    reader = spark.readStream.format("kafka").options(**source_options(spark, config))
    messages = reader.load().select(*MESSAGE_COLUMNS)
    return messages.observe(
        "messages",
        f.count(f.lit(1)).alias("read"),
        f.count_if(f.col("value").isNull()).alias("tombstones"),
    ).where(f.col("value").isNotNull())


def source_options(spark: SparkSession, config: KafkaConfig) -> dict[str, str]:
    """The options of Spark's Kafka source, secrets in clear."""
    min_partitions = config.min_partitions or tasks_at_once(spark)
    given = client_options(config)
    return {
        **{name: value for name, value in _OUTAGE.items() if find_option(given, name) is None},
        **given,
        **_subscription(config),
        **_first_start(config),
        "includeHeaders": "true",
        "failOnDataLoss": "true" if config.on_data_loss == "fail" else "false",
        "kafka.isolation.level": config.isolation,
        "minPartitions": str(min_partitions),
        "maxOffsetsPerTrigger": str(messages_per_trigger(spark, config)),
    }


def messages_per_trigger(spark: SparkSession, config: KafkaConfig) -> int:
    """The most messages of one micro-batch: as configured, or by how much runs at once."""
    if config.max_offsets_per_trigger is not None:
        return config.max_offsets_per_trigger
    least = find_option(config.options, "minOffsetsPerTrigger") or 0
    return max(rows_a_commit(spark), int(least))


def client_options(config: KafkaConfig) -> dict[str, str]:
    """Addresses and pass-through options, secrets in clear."""
    return {
        "kafka.bootstrap.servers": config.bootstrap_servers,
        **revealed(config.options),
    }


def _subscription(config: KafkaConfig) -> dict[str, str]:
    assign = None if config.assign is None else json.dumps(config.assign)
    return {
        **_if_set("subscribe", config.subscribe),
        **_if_set("subscribePattern", config.subscribe_pattern),
        **_if_set("assign", assign),
    }


def _first_start(config: KafkaConfig) -> dict[str, str]:
    if config.starting_timestamp is not None:
        return {
            "startingTimestamp": str(_to_milliseconds(config.starting_timestamp)),
            # A partition without a message that new starts at its end, instead of failing.
            "startingOffsetsByTimestampStrategy": "latest",
        }
    offsets = config.starting_offsets
    return {"startingOffsets": offsets if isinstance(offsets, str) else json.dumps(offsets)}


def _to_milliseconds(time: datetime) -> int:
    """Since 1970, without the error of a float, which can be the millisecond before."""
    return (time - datetime.fromtimestamp(0, UTC)) // timedelta(milliseconds=1)


def _if_set(name: str, value: object) -> dict[str, str]:
    return {} if value is None else {name: str(value)}


def check_topics(spark: SparkSession, config: KafkaConfig) -> dict[str, TopicState]:
    """The subscribed topics and the partitions that are read of them, asked of the broker.

    The question goes through the Kafka client that the stream itself uses, with the same options.

    Raises:
        SetupError: no broker answers, or it refuses the credentials or is not trusted; a topic is
            not there, or nothing matches the pattern.
    """
    admin = _admin(spark, config)
    try:
        existing = set(admin.listTopics().names().get())
        topics = _wanted_topics(spark, config, existing)
        if missing := sorted(topics - existing):
            raise SetupError(
                f"topic '{missing[0]}' is not on {config.bootstrap_servers}; create it, or correct "
                "kafka.subscribe"
            )
        return _states(spark, admin, config, sorted(topics))
    except SetupError:
        raise
    except Exception as error:
        raise SetupError(_refusal(config.bootstrap_servers, error)) from None
    finally:
        admin.close()


def offsets_at(
    spark: SparkSession, config: KafkaConfig, time: datetime, topics: Mapping[str, TopicState]
) -> dict[str, dict[int, int]]:
    """The first offset of each partition that is not before a time; its end where there is none."""
    spec = _offset_spec(spark)
    positions = [(name, number) for name, state in topics.items() for number in state.end]
    admin = _admin(spark, config)
    try:
        moment = spec.forTimestamp(_to_milliseconds(time))
        found = _list_offsets(spark, admin, positions, moment)
    finally:
        admin.close()
    return {
        name: {
            number: end if found[name, number] < 0 else found[name, number]
            for number, end in state.end.items()
        }
        for name, state in topics.items()
    }


def _states(
    spark: SparkSession, admin: Any, config: KafkaConfig, topics: list[str]
) -> dict[str, TopicState]:
    descriptions = admin.describeTopics(topics).allTopicNames().get()
    ids = {topic: descriptions[topic].topicId().toString() for topic in topics}
    positions = [
        (topic, number)
        for topic in topics
        for number in _partitions(config, topic, descriptions[topic].partitions())
    ]
    spec = _offset_spec(spark)
    earliest = _list_offsets(spark, admin, positions, spec.earliest())
    end = _list_offsets(spark, admin, positions, spec.latest())
    return {
        topic: TopicState(
            ids[topic],
            {number: offset for (name, number), offset in earliest.items() if name == topic},
            {number: offset for (name, number), offset in end.items() if name == topic},
        )
        for topic in topics
    }


def _partitions(config: KafkaConfig, topic: str, existing: Any) -> list[int]:
    numbers = {partition.partition() for partition in existing}
    return sorted(numbers if config.assign is None else numbers & set(config.assign[topic]))


def _offset_spec(spark: SparkSession) -> Any:
    jvm: Any = spark.sparkContext._jvm
    return jvm.org.apache.kafka.clients.admin.OffsetSpec


def _list_offsets(
    spark: SparkSession, admin: Any, positions: list[tuple[str, int]], spec: Any
) -> dict[tuple[str, int], int]:
    jvm: Any = spark.sparkContext._jvm
    asked = jvm.java.util.HashMap()
    for topic, number in positions:
        asked.put(jvm.org.apache.kafka.common.TopicPartition(topic, number), spec)
    answers = admin.listOffsets(asked).all().get()
    return {
        (position.topic(), position.partition()): answers[position].offset() for position in answers
    }


def _admin(spark: SparkSession, config: KafkaConfig) -> Any:
    jvm: Any = spark.sparkContext._jvm
    properties = jvm.java.util.Properties()
    for name, value in client_options(config).items():
        # As Spark does: it compares the names of options without their case.
        if name.lower().startswith("kafka."):
            properties.put(name.lower().removeprefix("kafka."), value)
    properties.put("request.timeout.ms", str(_ADMIN_TIMEOUT_MS // 2))
    properties.put("default.api.timeout.ms", str(_ADMIN_TIMEOUT_MS))
    try:
        return jvm.org.apache.kafka.clients.admin.Admin.create(properties)
    except Exception as error:
        raise SetupError(_wrong_options(root_cause(error))) from None


def _wanted_topics(spark: SparkSession, config: KafkaConfig, existing: set[str]) -> set[str]:
    if config.subscribe is not None:
        return {topic.strip() for topic in config.subscribe.split(",")}
    if config.assign is not None:
        return set(config.assign)
    jvm: Any = spark.sparkContext._jvm
    matching = {
        topic
        for topic in existing
        if jvm.java.util.regex.Pattern.matches(config.subscribe_pattern, topic)
    }
    if not matching:
        raise SetupError(
            f"no topic on {config.bootstrap_servers} matches '{config.subscribe_pattern}'; there "
            f"are: {', '.join(sorted(existing)) or 'none'}"
        )
    return matching


def _wrong_options(cause: str) -> str:
    if "JAAS" in cause:
        # Kafka's own words can hold a part of the password.
        return (
            "kafka.options: kafka.sasl.jaas.config is not as Kafka reads it; it is `CLASS required "
            'username="…" password="…";`, with a backslash before a quote within a value'
        )
    return f"the Kafka options are wrong: {cause}"


def _refusal(servers: str, error: Exception) -> str:
    told = root_cause(error)
    kinds = {cause.getClass().getSimpleName() for cause in causes(error)}
    if kinds & {"SaslAuthenticationException", "UnsupportedSaslMechanismException"}:
        return (
            f"Kafka at {servers} refuses the credentials ({told}); correct kafka.sasl.mechanism "
            "and kafka.sasl.jaas.config in kafka.options"
        )
    if "SslAuthenticationException" in kinds:
        return (
            f"no trusted TLS connection to Kafka at {servers} ({told}); correct "
            "kafka.ssl.truststore.* or kafka.security.protocol in kafka.options"
        )
    return (
        f"no Kafka broker answers at {servers} within {_ADMIN_TIMEOUT_MS // 1000} s ({told}); "
        "start it, or correct kafka.bootstrap_servers and kafka.options"
    )
