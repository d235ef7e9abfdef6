"""The messages of chosen rows: read from Kafka while it has them, else rebuilt from the row."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce
from itertools import zip_longest
from typing import Any

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as f

from embedstream.bulk.selection import OffsetRange
from embedstream.config.sections import KafkaConfig
from embedstream.kafka.source import MESSAGE_COLUMNS, build_client_options
from embedstream.kafka.topics import TopicState
from embedstream.spark.sizing import count_parallel_tasks
from embedstream.table.delta import quote_literal
from embedstream.worker.messages import Featurizer, featurize_messages
from embedstream_core.messages.parse import MessageReader
from embedstream_core.redaction import REDACTED

__all__ = ["POSITION", "featurize_again", "locate_messages", "write_condition"]

POSITION = ["topic", "partition", "offset"]
"""The columns that identify a message."""

_REBUILT = MessageReader(format="json", id_header="")
"""Reads what `_rebuild_messages` writes, whatever the shape of the stream's messages is."""


def write_condition(ranges: Sequence[OffsetRange], *, alias: str = "") -> str:
    """Return the SQL condition that a row of the table is in one of the ranges."""
    return " OR ".join(
        f"({alias}topic = {quote_literal(one.topic)} AND {alias}partition = {one.partition} "
        f"AND {alias}offset BETWEEN {one.first} AND {one.last})"
        for one in ranges
    )


def locate_messages(rows: DataFrame, topics: Mapping[str, TopicState]) -> DataFrame:
    """Add two columns: whether Kafka has the message, and whether the row has a reference.

    They are `in_kafka` and `has_reference`. A reference that held a secret was stored without it,
    and cannot be fetched.
    """
    held = [
        (f.col("topic") == name) & (f.col("partition") == number) & (f.col("offset") >= offset)
        for name, state in topics.items()
        for number, offset in state.earliest.items()
    ]
    in_kafka = reduce(Column.__or__, held, f.lit(False))
    has_reference = f.col("uri").isNotNull() & ~f.col("uri").contains(REDACTED)
    return rows.withColumns({"in_kafka": in_kafka, "has_reference": has_reference})


def featurize_again(
    spark: SparkSession,
    config: KafkaConfig,
    topics: Mapping[str, TopicState],
    located: DataFrame,
    *,
    ranges: Sequence[OffsetRange],
    featurizer: Featurizer,
) -> DataFrame:
    """Return the outcomes of the messages of located rows, which are all in the ranges.

    The featurizer reads Kafka's messages, whose shape is the stream's own.
    """
    positions = f.broadcast(located.where("in_kafka").select(*POSITION))
    by_partition: dict[tuple[str, int], list[OffsetRange]] = defaultdict(list)
    for one in ranges:
        state = topics.get(one.topic)
        if state is not None and one.last >= (first := state.earliest.get(one.partition, 2**63)):
            held = OffsetRange(one.topic, one.partition, max(one.first, first), one.last)
            by_partition[one.topic, one.partition].append(held)
    rebuilt = _rebuild_messages(located.where(~f.col("in_kafka") & f.col("has_reference")))
    outcomes = featurize_messages(rebuilt, replace(featurizer, reader=_REBUILT))
    # One read takes one range of each partition.
    for layer in zip_longest(*by_partition.values()):
        read = _read_ranges(spark, config, [one for one in layer if one is not None])
        messages = read.join(positions, POSITION, "left_semi").select(*MESSAGE_COLUMNS)
        outcomes = outcomes.unionByName(featurize_messages(messages, featurizer))
    return outcomes


def _read_ranges(
    spark: SparkSession, config: KafkaConfig, ranges: Sequence[OffsetRange]
) -> DataFrame:
    partitions: dict[str, list[int]] = defaultdict(list)
    starts: dict[str, dict[int, int]] = defaultdict(dict)
    ends: dict[str, dict[int, int]] = defaultdict(dict)
    for one in ranges:
        partitions[one.topic].append(one.partition)
        starts[one.topic][one.partition] = one.first
        ends[one.topic][one.partition] = one.last + 1
    options = {
        **build_client_options(config),
        "assign": json.dumps(partitions),
        "startingOffsets": json.dumps(starts),
        "endingOffsets": json.dumps(ends),
        "includeHeaders": "true",
        "kafka.isolation.level": config.isolation,
        "minPartitions": str(count_parallel_tasks(spark)),
    }
    messages = spark.read.format("kafka").options(**options).load()
    return messages.select(*MESSAGE_COLUMNS).where(f.col("value").isNotNull())


def _rebuild_messages(rows: DataFrame) -> DataFrame:
    """Return JSON messages with the references of rows whose messages Kafka has deleted."""
    own = f.create_map(f.lit("id"), f.col("image_id"), f.lit("uri"), f.col("uri"))

    def is_header(name: Column, _: Any = None) -> Column:
        # An attribute of such a name can only have come from a header.
        return name.isin("id", "uri", "data", "text")

    fields = f.map_filter("attributes", lambda name, _: ~is_header(name))
    headers = f.transform(
        f.map_entries(f.map_filter("attributes", is_header)),
        lambda one: f.struct(one["key"].alias("key"), one["value"].cast("binary").alias("value")),
    )
    value = f.to_json(f.map_concat(fields, own)).cast("binary").alias("value")
    rebuilt = rows.select(*POSITION, "timestamp", "key", value, headers.alias("headers"))
    return rebuilt.select(*MESSAGE_COLUMNS)
