"""Messages that Kafka deleted before they were read: find them, refuse them, or record them."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from embedstream.kafka.topics import TopicState
from embedstream.logs.events import Event, log_event
from embedstream.recovery.checkpoint import Checkpoint, Offsets, Writers
from embedstream.spark.folder import OWN_FOLDER, Folder
from embedstream_core.errors import SetupError

__all__ = [
    "LostRange",
    "find_lost_ranges",
    "read_due_offsets",
    "read_skipped_batches",
    "record_losses",
    "refuse_losses",
    "skip_lost",
]

_log = logging.getLogger(__name__)

_FILE = f"{OWN_FOLDER}/losses.jsonl"


@dataclass(frozen=True, slots=True, order=True)
class LostRange:
    """Offsets of a partition that Kafka deleted unread, from `first` to `last` inclusive."""

    topic: str
    partition: int
    first: int
    last: int

    def __str__(self) -> str:
        count = self.last - self.first + 1
        return (
            f"topic '{self.topic}' partition {self.partition}: offsets {self.first} to {self.last} "
            f"({count} {'offset' if count == 1 else 'offsets'})"
        )


def read_due_offsets(
    checkpoint: Checkpoint, writers: Writers, topics: Mapping[str, TopicState]
) -> Offsets:
    """Return the offsets that are read next; none before the first start.

    They include partitions that were added since, which Spark reads from offset 0. Before the
    first start the configuration says where each partition begins.

    Raises:
        DamagedFile: The file with the offsets is not what Spark writes.
        SetupError: A partition ends before its offset: the topic is another one, or its broker
            lost messages.
    """
    due = checkpoint.read_next_offsets(writers)
    for name in due.keys() & topics.keys():
        for number, offset in due[name].items():
            end = topics[name].end.get(number, offset)
            if end < offset:
                raise SetupError(
                    f"topic '{name}' partition {number} ends at offset {end}, but its messages "
                    f"were read up to offset {offset}: the topic was created again, or the broker "
                    "lost messages, so new ones would take offsets that the table has; start over "
                    "with another table and checkpoint"
                )
    added = {
        name: {**dict.fromkeys(state.end, 0), **due.get(name, {})} for name, state in topics.items()
    }
    return due and {**due, **added}


def find_lost_ranges(due: Offsets, topics: Mapping[str, TopicState]) -> list[LostRange]:
    """Return the messages that are due and that Kafka no longer has."""
    return sorted(
        LostRange(name, number, offset, topics[name].earliest[number] - 1)
        for name, partitions in due.items()
        for number, offset in partitions.items()
        if name in topics and offset < topics[name].earliest.get(number, 0)
    )


def refuse_losses(lost: Collection[LostRange]) -> None:
    """Refuse to go past lost messages.

    Raises:
        SetupError: There are lost ranges; the message names their offsets.
    """
    if lost:
        raise SetupError(
            f"Kafka deleted messages before they were read: {'; '.join(map(str, lost))}; "
            "`embedstream run --accept-loss` notes them in the checkpoint and continues after them"
        )


def skip_lost(due: Offsets, lost: Iterable[LostRange]) -> Offsets:
    """Return the due offsets, moved past the lost ranges."""
    after = {(loss.topic, loss.partition): loss.last + 1 for loss in lost}
    return {
        name: {number: after.get((name, number), offset) for number, offset in partitions.items()}
        for name, partitions in due.items()
    }


def record_losses(
    checkpoint: Folder, lost: Iterable[LostRange], *, skipped_by: int | None = None
) -> None:
    """Append the ranges to the file of losses in the checkpoint's folder, one JSON line each.

    `skipped_by` is the micro-batch that was added to the checkpoint to go past them.
    """
    noted = datetime.now(UTC).isoformat(timespec="seconds")
    # Object stores cannot append; the claim makes this driver the only writer.
    text = checkpoint.read(_FILE) or ""
    for loss in lost:
        log_event(_log, Event.LOST_MESSAGES, f"lost: {loss}", level=logging.WARNING, **asdict(loss))
        text += json.dumps({**asdict(loss), "noted": noted, "skipped_by": skipped_by}) + "\n"
    checkpoint.replace(_FILE, text)


def read_skipped_batches(checkpoint: Checkpoint) -> set[int]:
    """Return the micro-batches that only went past losses, so that the table does not have them.

    Raises:
        SetupError: The file of losses is damaged.
    """

    def parse(text: str) -> set[int]:
        return {json.loads(line)["skipped_by"] for line in text.splitlines()} - {None}

    meaning, remedy = "the losses that were accepted", "repair or delete its last line"
    return checkpoint.folder.parse(_FILE, parse, meaning=meaning, remedy=remedy) or set()
