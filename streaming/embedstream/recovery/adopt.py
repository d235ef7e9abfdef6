"""The checkpoint is gone, the table is there: go on after the last message that has a row.

Each micro-batch's rows stand in the table all or not at all, so a partition's rows have no hole
before the last one. What the table cannot tell: messages without a value make no row, so those
after the last row are read again, which makes no row again; a partition without any row starts
where the configuration says; and rows that were deleted at the end of a partition come back.
"""

from __future__ import annotations

from collections.abc import Mapping

from pyspark.sql import SparkSession

from embedstream.config.sections import KafkaConfig, StreamConfig
from embedstream.kafka.topics import TopicState, offsets_at
from embedstream.recovery.checkpoint import Checkpoint, Offsets
from embedstream.recovery.lost_messages import LostRange, lost_ranges, without
from embedstream_core.errors import SetupError

__all__ = ["adopted_config", "table_offsets"]

_SPECIAL = {"latest": -1, "earliest": -2}


def table_offsets(
    spark: SparkSession, config: StreamConfig, topics: Mapping[str, TopicState]
) -> Offsets:
    """What comes after the table's rows, for the partitions that are read and have rows."""
    table = spark.read.format("delta").load(config.table.path)
    rows = table.groupBy("topic", "partition").agg({"offset": "max"}).collect()
    offsets: Offsets = {}
    for topic, partition, last in rows:
        if topic in topics and partition in topics[topic].end:
            offsets.setdefault(topic, {})[partition] = last + 1
    return offsets


def adopted_config(
    spark: SparkSession,
    config: StreamConfig,
    topics: Mapping[str, TopicState],
    *,
    checkpoint: Checkpoint,
) -> tuple[StreamConfig, list[LostRange]]:
    """The configuration that begins where the table ends, and what was lost on the way.

    Raises:
        SetupError: the checkpoint's folder has a beginning of its own.
    """
    held = table_offsets(spark, config, topics)
    lost = lost_ranges(held, topics)
    begin = without(held, lost)
    beginnings = _beginnings(spark, config.kafka, topics)
    offsets = {
        name: {
            number: begin.get(name, {}).get(number, beginnings[name][number])
            for number in state.end
        }
        for name, state in topics.items()
    }
    _check_initial(checkpoint, begin)
    kafka = config.kafka.model_copy(
        update={"starting_offsets": offsets, "starting_timestamp": None}
    )
    return config.model_copy(update={"kafka": kafka}), lost


def _beginnings(
    spark: SparkSession, config: KafkaConfig, topics: Mapping[str, TopicState]
) -> Offsets:
    """Where the configuration lets partitions begin."""
    if config.starting_timestamp is not None:
        return offsets_at(spark, config, config.starting_timestamp, topics)
    chosen = config.starting_offsets
    return {
        name: {
            number: _SPECIAL[chosen] if isinstance(chosen, str) else _chosen(chosen, name, number)
            for number in state.end
        }
        for name, state in topics.items()
    }


def _chosen(offsets: Offsets, topic: str, partition: int) -> int:
    try:
        return offsets[topic][partition]
    except KeyError:
        raise SetupError(
            f"kafka.starting_offsets has no offset for topic '{topic}' partition {partition}, of "
            "which the table has no row; add it"
        ) from None


def _check_initial(checkpoint: Checkpoint, begin: Offsets) -> None:
    """Spark prefers a beginning that it has written down to the one that it is given."""
    initial = checkpoint.initial()
    for name, partitions in begin.items():
        for number, offset in partitions.items():
            if initial is not None and initial.get(name, {}).get(number) != offset:
                raise SetupError(
                    f"the checkpoint '{checkpoint.folder.location}' begins elsewhere than the "
                    f"table ends (topic '{name}' partition {number}, offset {offset}) and has done "
                    "nothing; delete it, or choose another"
                )
