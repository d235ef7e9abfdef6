"""Where a start goes on: after the checkpoint, after the table's rows, or after a loss.

The checks look; `settle` writes, when they have passed and the driver holds its claim.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pyspark.sql import SparkSession

from embedstream.config.sections import StreamConfig
from embedstream.kafka.topics import TopicState, check_topics
from embedstream.recovery.adopt import adopted_config
from embedstream.recovery.checkpoint import Checkpoint, Unparsable
from embedstream.recovery.doctor import last_in_table
from embedstream.recovery.lost_messages import (
    LostRange,
    check_ends,
    lost_ranges,
    record_losses,
    with_added,
    without,
)
from embedstream.recovery.topic_ids import check_ids, record_ids
from embedstream.spark.folder import Folder
from embedstream.table.delta import check_table
from embedstream.table.delta_log import Writer, writers
from embedstream_core.errors import SetupError

__all__ = ["Resumption", "explain_failure", "plan", "refuse_loss", "settle"]


@dataclass(frozen=True, slots=True)
class Resumption:
    """How a start goes on: the configuration to run, and what is lost on the way there."""

    config: StreamConfig
    topics: Mapping[str, TopicState]
    writers: Mapping[str, Writer]
    lost: tuple[LostRange, ...]
    adopts: bool


def plan(
    spark: SparkSession, config: StreamConfig, topics: Mapping[str, TopicState], *, adopt: bool
) -> Resumption:
    """What a start with this configuration would do; nothing is written.

    Raises:
        SetupError: a topic is another than before, or ends before what was read of it.
    """
    checkpoint = Checkpoint(Folder(spark, config.checkpoint))
    known = writers(spark, config.table.path)
    for folder in (checkpoint.folder, Folder(spark, config.table.path)):
        check_ids(folder, topics)
    if adopt and known and not checkpoint.planned:
        adopted, lost = adopted_config(spark, config, topics, checkpoint=checkpoint)
        return Resumption(adopted, topics, known, tuple(lost), adopts=True)
    try:
        due = checkpoint.next_offsets(in_table=last_in_table(checkpoint, known)) or {}
    except Unparsable as error:
        raise SetupError(
            f"the checkpoint '{config.checkpoint}' does not tell where to go on, for its file "
            f"{error}; ask `embedstream doctor`"
        ) from None
    check_ends(due, topics)
    lost = lost_ranges(with_added(due, topics), topics)
    return Resumption(config, topics, known, tuple(lost), adopts=False)


def refuse_loss(resumption: Resumption) -> None:
    """
    Raises:
        SetupError: messages were deleted before they were read; it names their offsets.
    """
    if resumption.lost:
        told = "; ".join(map(str, resumption.lost))
        raise SetupError(
            f"Kafka deleted messages before they were read: {told}; go on after them with "
            "--accept-loss, which notes them in the checkpoint"
        )


def settle(
    spark: SparkSession,
    config: StreamConfig,
    known: Mapping[str, Writer],
    *,
    adopt: bool,
    accept_loss: bool,
) -> Resumption:
    """Plan once more, now that no other driver can interfere, and write what the start needs.

    That is: the ids of the topics, in the folders of checkpoint and table; and accepted losses.
    `known` are the table's writers as the checks saw them.

    Raises:
        SetupError: another driver wrote to the table since the checks, or Kafka deleted more.
    """
    found = plan(spark, config, check_topics(spark, config.kafka), adopt=adopt)
    if found.writers != known:
        raise SetupError(
            f"another driver wrote to the table '{config.table.path}' while this one started; if "
            "it has ended, start again"
        )
    if not accept_loss and config.kafka.on_data_loss == "fail":
        refuse_loss(found)
    checkpoint = Checkpoint(Folder(spark, config.checkpoint))
    if found.lost and accept_loss and not found.adopts:
        _go_past(checkpoint, found)
    elif found.lost:
        # Adopted offsets begin after the loss; and Spark goes past it where it may continue.
        record_losses(checkpoint.folder, found.lost)
    for folder in (checkpoint.folder, Folder(spark, config.table.path)):
        record_ids(folder, found.topics)
    return found


def _go_past(checkpoint: Checkpoint, found: Resumption) -> None:
    in_table = last_in_table(checkpoint, found.writers)
    # First: a micro-batch that is not in the table, and not noted, would look like missing rows.
    batch = checkpoint.skipping_batch(in_table=in_table)
    record_losses(checkpoint.folder, found.lost, skipped_by=batch)
    try:
        due = checkpoint.next_offsets(in_table=in_table) or {}
        after = without(with_added(due, found.topics), found.lost)
        checkpoint.skip_to(after, in_table=in_table)
    except Unparsable as error:
        raise SetupError(
            f"the checkpoint '{checkpoint.folder.location}' cannot go past the loss: its last "
            f"file in offsets {error}; where there is none nothing is done yet, so delete the "
            "checkpoint"
        ) from None


def explain_failure(spark: SparkSession, config: StreamConfig) -> str | None:
    """The sentence for a stream that ended since messages, a topic, or a column had gone."""
    try:
        check_table(spark, config.table.path)
        refuse_loss(plan(spark, config, check_topics(spark, config.kafka), adopt=False))
    except SetupError as error:
        return str(error)
    return None
