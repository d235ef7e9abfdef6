"""Where a start resumes: after the checkpoint, after the table's rows, or after a loss.

`plan_resumption` only reads. `prepare_resumption` writes, once the checks have passed and the
driver holds its claim.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pyspark.sql import SparkSession

from embedstream.config.sections import StreamConfig
from embedstream.kafka.topics import TopicState, check_topics
from embedstream.recovery.adopt import adopt_table
from embedstream.recovery.checkpoint import Checkpoint, DamagedFile, Writers
from embedstream.recovery.lost_messages import (
    LostRange,
    find_lost_ranges,
    read_due_offsets,
    record_losses,
    refuse_losses,
    skip_lost,
)
from embedstream.recovery.topic_ids import check_ids, record_ids
from embedstream.spark.folder import Folder
from embedstream.table.address import TableAddress
from embedstream.table.delta import check_table
from embedstream.table.delta_log import read_writers
from embedstream_core.errors import SetupError

__all__ = [
    "NO_CONSENT",
    "Consent",
    "Resumption",
    "explain_failure",
    "plan_resumption",
    "prepare_resumption",
    "read_next",
    "skip_losses",
]


@dataclass(frozen=True, slots=True)
class Consent:
    """What a start may do because the user allowed it."""

    model_change: bool = False
    adopt: bool = False
    loss: bool = False


NO_CONSENT = Consent()


@dataclass(frozen=True, slots=True)
class Resumption:
    """How a start resumes: the configuration to run, and what was lost before its first message."""

    config: StreamConfig
    topics: Mapping[str, TopicState]
    writers: Writers
    lost: Sequence[LostRange]
    adopts: bool


def plan_resumption(
    spark: SparkSession, config: StreamConfig, topics: Mapping[str, TopicState], consent: Consent
) -> Resumption:
    """Return how a start with this configuration would resume; write nothing.

    Raises:
        SetupError: A topic is not the one that was read before, or it ends before the offset up to
            which it was read, or the checkpoint cannot be read, or Kafka deleted unread messages
            and nothing allows the start to skip them.
    """
    checkpoint = Checkpoint(Folder(spark, config.checkpoint))
    writers = read_writers(spark, config.table.path)
    for folder in (checkpoint.folder, Folder(spark, config.table.path)):
        check_ids(folder, topics)
    try:
        adopts = bool(consent.adopt and writers and not checkpoint.planned)
        if adopts:
            config, lost = adopt_table(spark, config, topics, checkpoint=checkpoint)
        else:
            lost = find_lost_ranges(read_due_offsets(checkpoint, writers, topics), topics)
    except DamagedFile as error:
        raise SetupError(
            f"the checkpoint '{config.checkpoint}' does not say where to resume, because its file "
            f"{error}; run `embedstream doctor`"
        ) from None
    if not consent.loss and config.kafka.on_data_loss == "fail":
        refuse_losses(lost)
    return Resumption(config, topics, writers, lost, adopts)


def prepare_resumption(
    spark: SparkSession, config: StreamConfig, writers: Writers, consent: Consent
) -> Resumption:
    """Plan again, now that no other driver can interfere, and write what the start needs.

    Write the ids of the topics to the folders of checkpoint and table, and record accepted losses.
    `writers` are the table's writers as the checks found them.

    Raises:
        SetupError: Another driver wrote to the table since the checks, or Kafka deleted more.
    """
    found = plan_resumption(spark, config, check_topics(spark, config.kafka), consent)
    if found.writers != writers:
        raise SetupError(
            f"another driver wrote to the table '{config.table.path}' while this one started; if "
            "it has ended, start again"
        )
    checkpoint = Checkpoint(Folder(spark, config.checkpoint))
    if found.lost and consent.loss and not found.adopts:
        skip_losses(checkpoint, writers, found.topics, found.lost)
    elif found.lost:
        # Adopted offsets start after the loss, and with `on_data_loss: continue` Spark skips it.
        record_losses(checkpoint.folder, found.lost)
    for folder in (checkpoint.folder, Folder(spark, config.table.path)):
        record_ids(folder, found.topics)
    return found


def read_next(
    spark: SparkSession, config: StreamConfig, writers: Writers
) -> dict[tuple[str, int], int]:
    """Return the offset of the next message of each partition; none before the first start.

    Raises:
        DamagedFile: The file with the offsets is not what Spark writes.
    """
    offsets = Checkpoint(Folder(spark, config.checkpoint)).read_next_offsets(writers)
    return {
        (topic, number): offset
        for topic, partitions in offsets.items()
        for number, offset in partitions.items()
    }


def skip_losses(
    checkpoint: Checkpoint,
    writers: Writers,
    topics: Mapping[str, TopicState],
    lost: Sequence[LostRange],
) -> None:
    """Record the losses, and let the checkpoint resume after them.

    Raises:
        SetupError: The checkpoint's last file in `offsets` cannot be read.
    """
    batch = checkpoint.choose_micro_batch_to_skip(writers)
    # First the record: a micro-batch that is not in the table, and not recorded, would look like
    # missing rows.
    record_losses(checkpoint.folder, lost, skipped_by=batch)
    try:
        checkpoint.skip_to(batch, skip_lost(read_due_offsets(checkpoint, writers, topics), lost))
    except DamagedFile as error:
        raise SetupError(
            f"the checkpoint '{checkpoint.folder.location}' cannot skip the loss: its last "
            f"file in offsets {error}; without such a file nothing is done yet, so delete the "
            "checkpoint"
        ) from None


def explain_failure(spark: SparkSession, config: StreamConfig) -> str | None:
    """Return why a stream ended, if messages, a topic or a column are gone; else None."""
    try:
        check_table(spark, TableAddress.of(config.table))
        topics = check_topics(spark, config.kafka)
        plan_resumption(spark, config, topics, NO_CONSENT)
    except SetupError as error:
        return str(error)
    return None
