"""Spark's checkpoint of the stream, read and extended without starting a query."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from embedstream.spark.folder import Folder, UnreadableFile
from embedstream.table.delta_log import Writer
from embedstream_core.errors import EmbedstreamError

__all__ = ["Checkpoint", "DamagedFile", "Offsets", "Writers"]

Offsets = dict[str, dict[int, int]]
"""For each topic and partition the offset that is read next."""

Writers = Mapping[str, Writer]
"""The streaming queries that wrote to the table, by id."""

# The stream has no watermark, and no other state.
_COMMIT = 'v1\n{"nextBatchWatermarkMs":0}'


class DamagedFile(EmbedstreamError):
    """A file is missing or is not what Spark writes; the message describes the damage."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, with the lists of its files as they were when they were first read.

    Spark writes a micro-batch's file in `offsets` when it plans the micro-batch, and its file in
    `commits` when the rows are in the table. Methods that read a file raise DamagedFile if it is
    not what Spark writes.
    """

    folder: Folder

    @cached_property
    def planned(self) -> set[int]:
        """The micro-batches in `offsets`."""
        return _list_numbers(self.folder.get_folder("offsets"))

    @cached_property
    def committed(self) -> set[int]:
        """The micro-batches in `commits`."""
        return _list_numbers(self.folder.get_folder("commits"))

    @property
    def last_planned(self) -> int:
        """The last micro-batch in `offsets`; -1 if there is none."""
        return max(self.planned, default=-1)

    def read_query_id(self) -> str | None:
        """Return the id by which the table knows this checkpoint's query; None without its file."""
        if (text := self._read("metadata")) is None:
            return None
        match _parse(text):
            case {"id": str(query)}:
                return query
        raise DamagedFile("holds no query id")

    def find_last_in_table(self, writers: Writers) -> int:
        """Return the query's last micro-batch that the table has; -1 if there is none."""
        try:
            query = self.read_query_id() or ""
        except DamagedFile:
            return -1
        return writers[query].micro_batch if query in writers else -1

    def read_ends(self, micro_batch: int) -> Offsets:
        """Return the offsets at which a planned micro-batch ends."""
        lines = self._read_lines("offsets", micro_batch)
        if len(lines) < 3:
            raise DamagedFile(f"has {len(lines)} lines where Spark writes 3")
        _parse(lines[1])
        return _parse_offsets(lines[-1])

    def check_commit(self, micro_batch: int) -> None:
        """Check that Spark can read a micro-batch's file in `commits`."""
        _parse(self._read_lines("commits", micro_batch)[-1])

    def read_initial(self) -> Offsets | None:
        """Return where the first micro-batch begins; None before Spark has recorded it."""
        text = self._read("sources/0/0")
        return None if text is None else _parse_offsets(text.rpartition("\n")[2])

    def read_next_offsets(self, writers: Writers) -> Offsets:
        """Return the offsets that are read next; none before the first start."""
        in_table = self.find_last_in_table(writers)
        done = self.committed | {number for number in self.planned if number <= in_table}
        return self.read_ends(max(done)) if done else self.read_initial() or {}

    def choose_micro_batch_to_skip(self, writers: Writers) -> int:
        """Return the micro-batch in flight if the table lacks it, else the next one."""
        last = self.last_planned
        is_done = last in self.committed or last <= self.find_last_in_table(writers)
        return last + 1 if is_done else last

    def skip_to(self, micro_batch: int, offsets: Offsets) -> None:
        """Add or replace a micro-batch, without messages, so that it ends at these offsets.

        Raises:
            DamagedFile: No micro-batch was planned, or the last one's file is not what Spark
                writes.
        """
        last = self.last_planned
        version, state, *_ = self._read_lines("offsets", last)
        commits = self.folder.get_folder("commits")
        if micro_batch > last:
            # Otherwise Spark would repeat it, and the next one needs it committed.
            commits.create(str(last), _COMMIT)
        text = "\n".join([version, state, json.dumps(offsets)])
        self.folder.get_folder("offsets").replace(str(micro_batch), text)
        commits.create(str(micro_batch), _COMMIT)

    def _read_lines(self, kind: str, micro_batch: int) -> list[str]:
        text = self._read(f"{kind}/{micro_batch}")
        if text is None:
            raise DamagedFile("is not there")
        if not text:
            raise DamagedFile("is empty")
        if not text.startswith("v"):
            raise DamagedFile("does not begin with a version")
        return text.splitlines()

    def _read(self, name: str) -> str | None:
        try:
            return self.folder.read(name)
        except UnreadableFile as error:
            raise DamagedFile(f"cannot be read ({error})") from None


def _list_numbers(folder: Folder) -> set[int]:
    return {int(name) for name in folder.list_sizes() if name.isdigit()}


def _parse_offsets(line: str) -> Offsets:
    found = _parse(line)
    try:
        return {
            topic: {int(number): int(offset) for number, offset in partitions.items()}
            for topic, partitions in found.items()
        }
    except (AttributeError, TypeError, ValueError):
        raise DamagedFile("ends with no offsets of topics") from None


def _parse(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        raise DamagedFile("is cut short or is no JSON" if line else "is empty") from None
