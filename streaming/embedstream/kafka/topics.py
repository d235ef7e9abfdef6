"""The state of the subscribed topics, read through the Kafka client that Spark's source uses."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pyspark.sql import SparkSession

from embedstream.config.sections import KafkaConfig
from embedstream.kafka.source import build_client_options, to_epoch_ms
from embedstream.spark.errors import find_root_cause, name_causes
from embedstream_core.errors import SetupError

__all__ = [
    "TopicState",
    "check_starting_offsets",
    "check_topics",
    "find_offsets_at",
    "open_admin",
]

_TIMEOUT_MS = 10_000


@dataclass(frozen=True, slots=True)
class TopicState:
    """A topic as the broker has it now.

    `id` is Kafka's own: a topic that is deleted and created again gets another one. `earliest` is
    the first offset that each partition still holds, `end` the offset of its next message.
    """

    id: str
    earliest: Mapping[int, int]
    end: Mapping[int, int]


def check_topics(spark: SparkSession, config: KafkaConfig) -> dict[str, TopicState]:
    """Return the state of each subscribed topic, for the partitions that the stream reads.

    Raises:
        SetupError: no broker answers, or it refuses the credentials or is not trusted; a topic does
            not exist, or a partition does not; no topic matches the pattern, or it is not valid.
    """
    jvm: Any = spark.sparkContext._jvm
    with open_admin(spark, config) as admin:
        existing = set(admin.listTopics().names().get())
        if config.subscribe is not None:
            topics = {topic.strip() for topic in config.subscribe.split(",")}
        elif config.assign is not None:
            topics = set(config.assign)
        else:
            pattern = config.subscribe_pattern
            try:
                compiled = jvm.java.util.regex.Pattern.compile(pattern)
            except Exception as error:
                reason = " ".join(find_root_cause(error).split())
                raise SetupError(
                    f"kafka.subscribe_pattern '{pattern}' is no regular expression of Java: "
                    f"{reason}"
                ) from None
            topics = {topic for topic in existing if compiled.matcher(topic).matches()}
            if not topics:
                raise SetupError(
                    f"no topic on {config.bootstrap_servers} matches '{pattern}'; the broker has: "
                    f"{', '.join(sorted(existing)) or 'none'}"
                )
        if missing := sorted(topics - existing):
            raise SetupError(
                f"topic '{missing[0]}' is not on {config.bootstrap_servers}; create it, or correct "
                "kafka.subscribe"
            )
        descriptions = admin.describeTopics(sorted(topics)).allTopicNames().get()
        partitions = [
            (topic, partition.partition())
            for topic in topics
            for partition in descriptions[topic].partitions()
        ]
        if config.assign is not None:
            partitions = _choose_partitions(config.assign, partitions)
        positions = _build_positions(spark, partitions)
        spec = jvm.org.apache.kafka.clients.admin.OffsetSpec
        earliest = _list_offsets(spark, admin, positions, spec.earliest())
        end = _list_offsets(spark, admin, positions, spec.latest())
        return {
            topic: TopicState(descriptions[topic].topicId().toString(), earliest[topic], end[topic])
            for topic in sorted(topics)
        }


def _choose_partitions(
    assign: Mapping[str, Sequence[int]], existing: Sequence[tuple[str, int]]
) -> list[tuple[str, int]]:
    """Return the assigned partitions; raise SetupError for one that does not exist."""
    chosen = [(topic, number) for topic, numbers in assign.items() for number in numbers]
    for topic, number in chosen:
        if (topic, number) not in existing:
            count = sum(name == topic for name, _ in existing)
            raise SetupError(
                f"topic '{topic}' has no partition {number}, but {count} from 0 on; correct "
                "kafka.assign"
            )
    return chosen


def check_starting_offsets(config: KafkaConfig, topics: Mapping[str, TopicState]) -> None:
    """Check the offsets of a first start, if the configuration has some, as Spark needs them.

    Raises:
        SetupError: a partition is missing or unknown, or ends before its offset.
    """
    if isinstance(config.starting_offsets, str):
        return
    given = {
        (topic, number): offset
        for topic, offsets in config.starting_offsets.items()
        for number, offset in offsets.items()
    }
    ends = {
        (topic, number): end for topic, one in topics.items() for number, end in one.end.items()
    }
    for reason, places in (("lacks", ends.keys() - given), ("has also", given.keys() - ends)):
        if places:
            named = ", ".join(f"partition {number} of {topic}" for topic, number in sorted(places))
            raise SetupError(
                f"kafka.starting_offsets has to name the partitions that are read, each and no "
                f"other: it {reason} {named}"
            )
    for (topic, number), offset in sorted(given.items()):
        if offset > ends[topic, number]:
            raise SetupError(
                f"kafka.starting_offsets begins at {offset} in partition {number} of {topic}, "
                f"which ends at {ends[topic, number]}"
            )


def find_offsets_at(
    spark: SparkSession, config: KafkaConfig, time: datetime, topics: Mapping[str, TopicState]
) -> dict[str, dict[int, int]]:
    """Return each partition's first offset that is not before a time, or its end without one."""
    jvm: Any = spark.sparkContext._jvm
    spec = jvm.org.apache.kafka.clients.admin.OffsetSpec.forTimestamp(to_epoch_ms(time))
    positions = _build_positions(
        spark, ((topic, number) for topic, state in topics.items() for number in state.end)
    )
    with open_admin(spark, config) as admin:
        found = _list_offsets(spark, admin, positions, spec)
    return {
        topic: {
            number: end if found[topic][number] < 0 else found[topic][number]
            for number, end in state.end.items()
        }
        for topic, state in topics.items()
    }


def _build_positions(
    spark: SparkSession, partitions: Iterable[tuple[str, int]]
) -> dict[tuple[str, int], Any]:
    """Return Kafka's Java object of each partition."""
    # Each attribute of a Java package is a request to the JVM.
    jvm: Any = spark.sparkContext._jvm
    build = jvm.org.apache.kafka.common.TopicPartition
    return {(topic, number): build(topic, number) for topic, number in partitions}


def _list_offsets(
    spark: SparkSession, admin: Any, positions: Mapping[tuple[str, int], Any], spec: Any
) -> Mapping[str, dict[int, int]]:
    jvm: Any = spark.sparkContext._jvm
    wanted = jvm.java.util.HashMap()
    for position in positions.values():
        wanted.put(position, spec)
    answers = admin.listOffsets(wanted).all().get()
    found: dict[str, dict[int, int]] = defaultdict(dict)
    for (topic, number), position in positions.items():
        found[topic][number] = answers.get(position).offset()
    return found


@contextmanager
def open_admin(spark: SparkSession, config: KafkaConfig) -> Iterator[Any]:
    """Open Kafka's Java admin client and convert its errors into SetupErrors."""
    jvm: Any = spark.sparkContext._jvm
    properties = jvm.java.util.Properties()
    for name, value in build_client_options(config).items():
        # As Spark does: it compares the names of options without their case.
        if name.lower().startswith("kafka."):
            properties.put(name.lower().removeprefix("kafka."), value)
    properties.put("request.timeout.ms", str(_TIMEOUT_MS // 2))
    properties.put("default.api.timeout.ms", str(_TIMEOUT_MS))
    try:
        admin = jvm.org.apache.kafka.clients.admin.Admin.create(properties)
    except Exception as error:
        cause = find_root_cause(error)
        if "JAAS" in cause:
            # Kafka's own message can hold a part of the password.
            raise SetupError(
                "kafka.options: Kafka cannot read kafka.sasl.jaas.config; its form is `CLASS "
                'required username="…" password="…";`, with a backslash before a quote within a '
                "value"
            ) from None
        raise SetupError(f"the Kafka options are wrong: {cause}") from None
    try:
        yield admin
    except SetupError:
        raise
    except Exception as error:
        raise SetupError(_explain_refusal(config.bootstrap_servers, error)) from None
    finally:
        admin.close()


def _explain_refusal(servers: str, error: Exception) -> str:
    cause = find_root_cause(error)
    kinds = name_causes(error)
    if kinds & {"SaslAuthenticationException", "UnsupportedSaslMechanismException"}:
        return (
            f"Kafka at {servers} refuses the credentials ({cause}); correct kafka.sasl.mechanism "
            "and kafka.sasl.jaas.config in kafka.options"
        )
    if "SslAuthenticationException" in kinds:
        return (
            f"no trusted TLS connection to Kafka at {servers} ({cause}); correct "
            "kafka.ssl.truststore.* or kafka.security.protocol in kafka.options"
        )
    return (
        f"no Kafka broker answers at {servers} within {_TIMEOUT_MS // 1000} s ({cause}); "
        "start it, or correct kafka.bootstrap_servers and kafka.options"
    )
