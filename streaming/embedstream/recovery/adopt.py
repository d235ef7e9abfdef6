"""Resume without a checkpoint, after the last message of each partition that has a row.

The table has all of a micro-batch's rows or none, so a partition's rows have no gap before the last
one. Messages without a value that follow the last row are read again, and make no row again. Rows
that were deleted at the end of a partition come back. A partition without any row starts where the
configuration says.
"""

from __future__ import annotations

from collections.abc import Mapping

from pyspark.sql import SparkSession

from embedstream.config.sections import StreamConfig
from embedstream.kafka.topics import TopicState, find_offsets_at
from embedstream.recovery.checkpoint import Checkpoint, Offsets
from embedstream.recovery.lost_messages import LostRange, find_lost_ranges, skip_lost
from embedstream.table.catalog import find_address
from embedstream_core.errors import SetupError

__all__ = ["adopt_table", "choose_starts"]

_SPECIAL = {"latest": -1, "earliest": -2}


def adopt_table(
    spark: SparkSession,
    config: StreamConfig,
    topics: Mapping[str, TopicState],
    *,
    checkpoint: Checkpoint,
) -> tuple[StreamConfig, list[LostRange]]:
    """Return the configuration that starts where the table ends, and what was lost after its rows.

    Raises:
        SetupError: The checkpoint has another start for a partition.
    """
    table = find_address(spark, config.table).read(spark)
    ends: Offsets = {}
    for topic, partition, last in (
        table.groupBy("topic", "partition").agg({"offset": "max"}).collect()
    ):
        if topic in topics and partition in topics[topic].end:
            ends.setdefault(topic, {})[partition] = last + 1
    otherwise = config.kafka.starting_offsets
    if config.kafka.starting_timestamp is not None:
        otherwise = find_offsets_at(spark, config.kafka, config.kafka.starting_timestamp, topics)
    lost = find_lost_ranges(ends, topics)
    offsets = choose_starts(skip_lost(ends, lost), topics, otherwise, checkpoint=checkpoint)
    kafka = config.kafka.model_copy(
        update={"starting_offsets": offsets, "starting_timestamp": None}
    )
    return config.model_copy(update={"kafka": kafka}), lost


def choose_starts(
    ends: Offsets,
    topics: Mapping[str, TopicState],
    otherwise: str | Offsets,
    *,
    checkpoint: Checkpoint,
) -> Offsets:
    """Return the offset at which each partition starts: where the table ends, or `otherwise`.

    Raises:
        SetupError: A partition has no offset, or the checkpoint, which Spark prefers, has another.
    """
    initial = checkpoint.read_initial()
    offsets: Offsets = {name: {} for name in topics}
    for name, number in ((name, number) for name, state in topics.items() for number in state.end):
        offset = ends.get(name, {}).get(number)
        if offset is None:
            if isinstance(otherwise, str):
                offset = _SPECIAL[otherwise]
            elif (offset := otherwise.get(name, {}).get(number)) is None:
                raise SetupError(
                    f"kafka.starting_offsets has no offset for topic '{name}' partition {number}, "
                    "of which the table has no row; add it"
                )
        elif initial is not None and initial.get(name, {}).get(number) != offset:
            raise SetupError(
                f"the checkpoint '{checkpoint.folder.location}' begins elsewhere than the "
                f"table ends (topic '{name}' partition {number}, offset {offset}) and has done "
                "nothing; delete it, or choose another"
            )
        offsets[name][number] = offset
    return offsets
