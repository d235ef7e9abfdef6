"""Messages that Kafka deleted before they were read: found, told, and gone past on demand only."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from embedstream.kafka.topics import TopicState
from embedstream.recovery.checkpoint import Checkpoint, Offsets
from embedstream.spark.folder import OWN_FOLDER, Folder, UnreadableFile
from embedstream_core.errors import SetupError

__all__ = [
    "LostRange",
    "check_ends",
    "lost_ranges",
    "record_losses",
    "skipped_batches",
    "with_added",
    "without",
]

_FILE = f"{OWN_FOLDER}/losses.jsonl"


@dataclass(frozen=True, slots=True, order=True)
class LostRange:
    """Offsets of a partition that were never read and are gone, the last one included."""

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


def with_added(due: Offsets, topics: Mapping[str, TopicState]) -> Offsets:
    """What is due, with the partitions that were added since: Spark reads them from offset 0.

    Before the first start nothing is due yet, and the configuration says where it begins.
    """
    added = {
        name: {**dict.fromkeys(state.end, 0), **due.get(name, {})} for name, state in topics.items()
    }
    return {**due, **added} if due else due


def lost_ranges(due: Offsets, topics: Mapping[str, TopicState]) -> list[LostRange]:
    """What was due to be read next and is no longer there."""
    return sorted(
        LostRange(name, number, offset, topics[name].earliest[number] - 1)
        for name, partitions in due.items()
        for number, offset in partitions.items()
        if name in topics and offset < topics[name].earliest.get(number, 0)
    )


def check_ends(due: Offsets, topics: Mapping[str, TopicState]) -> None:
    """That no partition ends before what is due next.

    Raises:
        SetupError: one does: the topic is another, or its broker lost messages.
    """
    for name, partitions in due.items():
        for number, offset in partitions.items():
            end = topics[name].end.get(number, offset) if name in topics else offset
            if end < offset:
                raise SetupError(
                    f"topic '{name}' partition {number} ends at offset {end}, but its messages "
                    f"were read up to offset {offset}: the topic was created again, or the broker "
                    "lost messages, so new ones would take offsets that the table has; start anew "
                    "with another table and checkpoint"
                )


def without(due: Offsets, lost: Iterable[LostRange]) -> Offsets:
    """What is due, after the lost ranges."""
    after = {(loss.topic, loss.partition): loss.last + 1 for loss in lost}
    return {
        name: {number: after.get((name, number), offset) for number, offset in partitions.items()}
        for name, partitions in due.items()
    }


def record_losses(
    checkpoint: Folder, lost: Iterable[LostRange], *, skipped_by: int | None = None
) -> None:
    """Append the ranges to the losses that the checkpoint's folder keeps, one in a line.

    `skipped_by` is the micro-batch that was added to the checkpoint to go past them.
    """
    noted = datetime.now(UTC).isoformat(timespec="seconds")
    lines = [
        json.dumps({**asdict(loss), "noted": noted, "skipped_by": skipped_by}) for loss in lost
    ]
    # Object stores cannot append; the claim makes this the only writer.
    earlier = checkpoint.read(_FILE) or ""
    checkpoint.replace(_FILE, earlier + "".join(f"{line}\n" for line in lines))


def skipped_batches(checkpoint: Checkpoint) -> set[int]:
    """The micro-batches that only went past losses, and so are not in the table.

    Raises:
        SetupError: the file of the losses is damaged.
    """
    try:
        text = checkpoint.folder.read(_FILE) or ""
        return {json.loads(line)["skipped_by"] for line in text.splitlines()} - {None}
    except (UnreadableFile, ValueError, TypeError, KeyError) as error:
        raise SetupError(
            f"{checkpoint.folder.location}/{_FILE}, the losses that were accepted, cannot be read "
            f"({error}); mend or delete its last line"
        ) from None
