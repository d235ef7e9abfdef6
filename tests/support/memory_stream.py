"""The files of a stream in memory, as Spark and Delta write them, for tests of recovery."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from embedstream.kafka.topics import TopicState
from embedstream.recovery.checkpoint import Checkpoint
from embedstream.recovery.doctor import find_checkpoint_problems
from embedstream.table.delta_log import Writer, find_log_problems
from memory_folder import MemoryFolder

__all__ = ["QUERY", "MemoryStream", "topics"]

QUERY = "8b149dd7-85af-4678-97b5-d65130938942"

_STATE = '{"batchWatermarkMs":0,"batchTimestampMs":1795664367317,"conf":{}}'


def topics(
    end: Mapping[int, int],
    earliest: Mapping[int, int] | None = None,
    *,
    name: str = "images",
    id: str = "first",  # noqa: A002
) -> dict[str, TopicState]:
    """A topic as the broker has it: it begins at offset 0 unless `earliest` says otherwise."""
    return {name: TopicState(id, {**dict.fromkeys(end, 0), **(earliest or {})}, end)}


@dataclass
class MemoryStream:
    """A stream that has done micro-batches 0 to 2, of two messages in each of two partitions."""

    checkpoint: MemoryFolder = field(default_factory=lambda: MemoryFolder(location="checkpoint"))
    table: MemoryFolder = field(default_factory=lambda: MemoryFolder(location="table"))
    writers: dict[str, Writer] = field(default_factory=lambda: {QUERY: Writer(2, 1000)})

    def __post_init__(self) -> None:
        self.checkpoint.create("metadata", json.dumps({"id": QUERY}))
        self.checkpoint.create("sources/0/0", '\0v1\n{"images":{"0":0,"1":0}}')
        for batch in range(3):
            self.plan(batch, end=2 * batch + 2)
            self.checkpoint.create(f"commits/{batch}", 'v1\n{"nextBatchWatermarkMs":0}')
        # Creating the table and naming its model are the first two entries.
        for version in range(5):
            self.table.create(f"_delta_log/{version:020}.json", '{"commitInfo":{}}\n{"add":{}}')

    def plan(self, batch: int, *, end: int) -> None:
        """Plan a micro-batch that ends at the same offset in both partitions."""
        offsets = json.dumps({"images": {"0": end, "1": end}})
        self.checkpoint.replace(f"offsets/{batch}", f"v1\n{_STATE}\n{offsets}")

    def look(self) -> Checkpoint:
        """Look at the checkpoint as it is now."""
        return Checkpoint(self.checkpoint)

    def problems(self, *, thorough: bool = True) -> list[str]:
        """What the doctor says, or a start; every file must stay as it is."""
        before = {**self.checkpoint.files}, {**self.table.files}
        found = find_log_problems(self.table, thorough=thorough)
        known = None if found else self.writers
        found += find_checkpoint_problems(self.look(), known, table="table", thorough=thorough)
        assert before == (self.checkpoint.files, self.table.files)
        return found
