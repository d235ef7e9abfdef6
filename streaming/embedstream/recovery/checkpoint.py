"""Spark's checkpoint of the stream, read and extended without starting a query."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from embedstream.spark.folder import Folder, UnreadableFile
from embedstream_core.errors import EmbedstreamError

__all__ = ["Checkpoint", "Offsets", "Unparsable"]

Offsets = dict[str, dict[int, int]]
"""For each topic and partition the offset that is read next."""

# The stream has no watermark, and no other state.
_COMMIT = 'v1\n{"nextBatchWatermarkMs":0}'


class Unparsable(EmbedstreamError):
    """A file is there, but is not what Spark writes; the message says how."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as it was when it was first looked at.

    A micro-batch's file in `offsets` is written when it is planned, its file in `commits` when its
    rows are in the table.
    """

    folder: Folder

    @cached_property
    def planned(self) -> dict[int, int]:
        """The micro-batches in `offsets`, with the bytes of their files."""
        return _numbered(self.folder.folder("offsets").sizes())

    @cached_property
    def committed(self) -> dict[int, int]:
        """The micro-batches in `commits`, with the bytes of their files."""
        return _numbered(self.folder.folder("commits").sizes())

    @property
    def last_planned(self) -> int:
        """-1 where none is."""
        return max(self.planned, default=-1)

    def query_id(self) -> str | None:
        """The id under which the table knows this checkpoint's query; None without a file of it.

        Raises:
            Unparsable: the file holds none.
        """
        text = self._read("metadata")
        if text is None:
            return None
        found = _parsed(text)
        if not isinstance(found, dict) or not isinstance(found.get("id"), str):
            raise Unparsable("holds no query id")
        return str(found["id"])

    def ends(self, batch: int) -> Offsets:
        """Where a planned micro-batch ends.

        Raises:
            Unparsable: its file is not what Spark writes.
        """
        lines = self._lines("offsets", batch)
        if len(lines) < 3:
            raise Unparsable(f"has {len(lines)} lines where Spark writes 3")
        _parsed(lines[1])
        return _offsets(lines[-1])

    def check_commit(self, batch: int) -> None:
        """Whether Spark can read a micro-batch's file in `commits`.

        Raises:
            Unparsable: it is not what Spark writes.
        """
        _parsed(self._lines("commits", batch)[-1])

    def initial(self) -> Offsets | None:
        """Where the first micro-batch begins; None before Spark has written that down.

        Raises:
            Unparsable: its file is not what Spark writes.
        """
        text = self._read("sources/0/0")
        return None if text is None else _offsets(text.rpartition("\n")[2])

    def next_offsets(self, *, in_table: int) -> Offsets | None:
        """What is read next; None where nothing is. `in_table` is the last micro-batch there.

        Raises:
            Unparsable: the file that tells is not what Spark writes.
        """
        done = max(
            [*self.committed, *(number for number in self.planned if number <= in_table)],
            default=-1,
        )
        return self.initial() if done < 0 else self.ends(done)

    def skipping_batch(self, *, in_table: int) -> int:
        """The number that `skip_to` takes: the one in flight, where the table lacks it."""
        last = self.last_planned
        return last + 1 if last in self.committed or last <= in_table else last

    def skip_to(self, offsets: Offsets, *, in_table: int) -> None:
        """Add a micro-batch without messages that ends at these offsets.

        One that was planned, and is not in the table, gives way to it.

        Raises:
            Unparsable: no micro-batch was planned, or the last one's file is not what Spark writes.
        """
        last, batch = self.last_planned, self.skipping_batch(in_table=in_table)
        version, state, *_ = self._lines("offsets", last)
        if batch > last and last not in self.committed:
            # Spark would repeat it, and the table skip it; the next one needs it committed.
            self._commit(last)
        self.folder.folder("offsets").replace(
            str(batch), "\n".join([version, state, json.dumps(offsets)])
        )
        self._commit(batch)

    def _commit(self, batch: int) -> None:
        self.folder.folder("commits").create(str(batch), _COMMIT)

    def _lines(self, kind: str, batch: int) -> list[str]:
        lines = self._text(kind, batch).splitlines()
        if not lines:
            raise Unparsable("is empty")
        if not lines[0].startswith("v"):
            raise Unparsable("does not begin with a version")
        return lines

    def _text(self, kind: str, batch: int) -> str:
        text = self._read(f"{kind}/{batch}")
        if text is None:
            raise Unparsable("is not there")
        return text

    def _read(self, name: str) -> str | None:
        try:
            return self.folder.read(name)
        except UnreadableFile as error:
            raise Unparsable(f"cannot be read ({error})") from None


def _numbered(sizes: dict[str, int]) -> dict[int, int]:
    return {int(name): size for name, size in sizes.items() if name.isdigit()}


def _offsets(line: str) -> Offsets:
    found = _parsed(line)
    try:
        return {
            topic: {int(number): int(offset) for number, offset in partitions.items()}
            for topic, partitions in found.items()
        }
    except (AttributeError, TypeError, ValueError):
        raise Unparsable("ends with no offsets of topics") from None


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        raise Unparsable("is cut short or is no JSON" if line else "is empty") from None
