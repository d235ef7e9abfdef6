"""Where a start resumes: after the checkpoint, after the table's rows, or after a loss.

`plan` only reads; `prepare_resumption` writes, once the checks have passed and the driver holds its
claim.
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
from embedstream.table.delta import check_table
from embedstream.table.delta_log import read_writers
from embedstream_core.errors import SetupError

__all__ = ["Resumption", "explain_failure", "plan", "prepare_resumption", "skip_losses"]


@dataclass(frozen=True, slots=True)
class Resumption:
    """How a start resumes: the configuration to run, and what was lost before its first message."""

    config: StreamConfig
    topics: Mapping[str, TopicState]
    writers: Writers
    lost: Sequence[LostRange]
    adopts: bool


def plan(
    spark: SparkSession, config: StreamConfig, topics: Mapping[str, TopicState], *, adopt: bool
) -> Resumption:
    """Return how a start with this configuration would resume; write nothing.

    Raises:
        SetupError: A topic is not the one that was read before, or it ends before the offset up to
            which it was read, or the checkpoint cannot be read.
    """
    checkpoint = Checkpoint(Folder(spark, config.checkpoint))
    writers = read_writers(spark, config.table.path)
    for folder in (checkpoint.folder, Folder(spark, config.table.path)):
        check_ids(folder, topics)
    try:
        if adopt and writers and not checkpoint.planned:
            adopted, lost = adopt_table(spark, config, topics, checkpoint=checkpoint)
            return Resumption(adopted, topics, writers, lost, adopts=True)
        due = read_due_offsets(checkpoint, writers, topics)
    except DamagedFile as error:
        raise SetupError(
            f"the checkpoint '{config.checkpoint}' does not say where to resume, because its file "
            f"{error}; run `embedstream doctor`"
        ) from None
    return Resumption(config, topics, writers, find_lost_ranges(due, topics), adopts=False)


def prepare_resumption(
    spark: SparkSession,
    config: StreamConfig,
    writers: Writers,
    *,
    adopt: bool,
    accept_loss: bool,
) -> Resumption:
    """Plan once more, now that no other driver can interfere, and write what the start needs.

    Written are the ids of the topics, into the folders of checkpoint and table, and accepted
    losses. `writers` are the table's writers as the checks found them.

    Raises:
        SetupError: Another driver wrote to the table since the checks, or Kafka deleted more.
    """
    found = plan(spark, config, check_topics(spark, config.kafka), adopt=adopt)
    if found.writers != writers:
        raise SetupError(
            f"another driver wrote to the table '{config.table.path}' while this one started; if "
            "it has ended, start again"
        )
    if not accept_loss and config.kafka.on_data_loss == "fail":
        refuse_losses(found.lost)
    checkpoint = Checkpoint(Folder(spark, config.checkpoint))
    if found.lost and accept_loss and not found.adopts:
        skip_losses(checkpoint, writers, found.topics, found.lost)
    elif found.lost:
        # Adopted offsets begin after the loss; and Spark goes past it by itself if it may.
        record_losses(checkpoint.folder, found.lost)
    for folder in (checkpoint.folder, Folder(spark, config.table.path)):
        record_ids(folder, found.topics)
    return found


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
            f"the checkpoint '{checkpoint.folder.location}' cannot go past the loss: its last "
            f"file in offsets {error}; without such a file nothing is done yet, so delete the "
            "checkpoint"
        ) from None


def explain_failure(spark: SparkSession, config: StreamConfig) -> str | None:
    """Return why a stream ended, if messages, a topic or a column are gone; else None."""
    try:
        check_table(spark, config.table.path)
        topics = check_topics(spark, config.kafka)
        refuse_losses(plan(spark, config, topics, adopt=False).lost)
    except SetupError as error:
        return str(error)
    return None
