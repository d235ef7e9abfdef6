"""Publish a table's commits in their order.

Messages are sent, then acknowledged by Kafka, and only then recorded as published. A process that
ends in between sends them again: each outcome is in the topic at least once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Literal

import pyarrow as pa

from embedstream.config.publishing import PublishConfig
from embedstream.follow.changes import check_commit
from embedstream.follow.data_files import read_onwards, select_new
from embedstream.follow.log_entries import (
    CannotFollow,
    Commit,
    find_last_version,
    hash_commit,
    is_column_mapped,
    read_commit,
)
from embedstream.follow.table_files import TableFiles
from embedstream.follow.table_reader import open_table
from embedstream.follow.whole_table import check_readable, list_files, open_version, read_whole
from embedstream.publish.messages import (
    ROW,
    Published,
    build_messages,
    build_removals,
    select_published,
)
from embedstream.publish.removals import find_removed
from embedstream.publish.reports import (
    FullPassBegun,
    FullPassEnded,
    PublishReport,
    Sent,
    Skipped,
)
from embedstream.publish.sender import MessageSink
from embedstream.publish.state import FullPass, Partial, PublishState, StateFile
from embedstream_core.errors import SetupError

__all__ = ["Publisher"]

_LOG = logging.getLogger(__name__)

_NAMED_KEYS = 5


class Publisher:
    """Publishes a table, a step at a time."""

    def __init__(
        self,
        table: str,
        config: PublishConfig,
        sender: MessageSink,
        *,
        report: Callable[[PublishReport], None],
        stop: threading.Event,
        again: bool = False,
        check_s: float = 0.0,
    ) -> None:
        """Find out what is published; plan a full pass unless it is a version of this table.

        `again` plans one in any case. `check_s` is the least time from one look at the table itself
        to the next.

        Raises:
            SetupError: the table cannot be read.
        """
        opened = open_table(table)
        check_readable(opened)
        self._table, self._config, self._sender = table, config, sender
        self._report, self._stop, self._check_s = report, stop, check_s
        self._next_check = 0.0
        self._files = TableFiles(opened)
        self._file = StateFile(self._files, config.topic or "")
        self._is_mapped = is_column_mapped(opened.metadata().configuration)
        self._newest = int(opened.version())
        self._state = self._find_state(opened.metadata().id, again=again)
        self._due = self._find_reason(again=again)

    @property
    def version(self) -> int | None:
        """The table's version that is published; None while a full pass is due or not ended."""
        is_passing = self._due is not None or self._state.full_pass is not None
        return None if is_passing else self._state.version

    @property
    def is_current(self) -> bool:
        """Whether the version is published that the table had when this was made."""
        return self.version is not None and self.version >= self._newest

    def step(self) -> bool:
        """Publish a commit, or the rest of a full pass; return False if there was nothing to do.

        Raises:
            SetupError: the table cannot be read, or its folder cannot be written.
            PublishFailed: Kafka does not take the messages.
        """
        if self._due is not None:
            self._begin_full_pass(self._due)
        try:
            if self._state.full_pass is not None:
                self._continue_full_pass(self._state.full_pass)
                return True
            commit = self._read_next()
            if commit is None:
                self._check_table()
                return False
            self._publish(commit)
        except CannotFollow as error:
            self._due = str(error)
            _LOG.info("the commits of '%s' cannot be published: %s", self._table, error)
        return True

    def _find_state(self, table_id: str, *, again: bool) -> PublishState:
        """Return the recorded state, or the one to begin with."""
        known, rows = self._file.read(), self._config.rows
        if known is not None and known.table_id == table_id and known.rows == rows:
            return known
        begun = PublishState(table_id=table_id, rows=rows)
        is_other = known is not None and known.table_id != table_id
        if again or is_other or self._config.start == "earliest":
            return begun
        sha256 = hash_commit(self._files, self._newest)
        begun = begun.model_copy(update={"version": self._newest, "commit_sha256": sha256})
        self._file.write(begun)
        return begun

    def _find_reason(self, *, again: bool) -> str | None:
        """Return why a full pass has to begin; None if there is no reason."""
        state = self._state
        if again:
            return "--again"
        if state.full_pass is not None:
            begun = hash_commit(self._files, state.full_pass.version)
            changed = begun not in (None, state.full_pass.commit_sha256)
            return "the table was restored from a copy" if changed else None
        if state.version is None:
            return f"nothing of this table was published to '{self._config.topic}' before"
        if self._newest < state.version:
            return f"the table is at version {self._newest}, and {state.version} was published"
        return None

    def _begin_full_pass(self, reason: str) -> None:
        opened = open_table(self._table)
        check_readable(opened)
        version = int(opened.version())
        sha256 = hash_commit(self._files, version)
        full_pass = FullPass(version=version, commit_sha256=sha256, reason=reason)
        self._is_mapped = is_column_mapped(opened.metadata().configuration)
        changes = {"table_id": opened.metadata().id, "full_pass": full_pass, "partial": None}
        self._write_state(**changes)
        self._due = None

    def _continue_full_pass(self, full_pass: FullPass) -> None:
        """Publish the rows of a version that are left.

        Raises:
            CannotFollow: the version cannot be read any more.
        """
        version, start = full_pass.version, time.monotonic()
        self._report(FullPassBegun(reason=full_pass.reason, version=version))
        opened = open_version(self._table, version)
        parts = read_whole(
            opened,
            list_files(opened),
            ROW,
            files_done=full_pass.files_done,
            rows_done=full_pass.rows_done,
        )
        try:
            messages = self._send_parts(parts, full_pass, "full_pass")
        except CannotFollow as error:
            if open_table(self._table).version() > version:
                raise
            raise SetupError(f"the table '{self._table}' cannot be read: {error}") from None
        if messages is None:
            return
        self._flush(version=version, commit_sha256=full_pass.commit_sha256, full_pass=None)
        duration_s = time.monotonic() - start
        self._report(FullPassEnded(version=version, messages=messages, duration_s=duration_s))

    def _read_next(self) -> Commit | None:
        version = self._state.version
        if version is None:
            raise AssertionError("no version is published")
        commit = read_commit(self._files, version + 1)
        if commit is None:
            return None
        if hash_commit(self._files, version) not in (None, self._state.commit_sha256):
            raise CannotFollow(
                f"the table's version {version} is not the one that was published: it was created "
                "again, or restored from a copy"
            )
        if commit.table_id not in (None, self._state.table_id):
            raise CannotFollow(f"commit {commit.version} begins another table")
        if commit.metadata is not None:
            self._is_mapped = is_column_mapped(commit.metadata.get("configuration") or {})
        if self._is_mapped and (commit.new_files or commit.removed):
            raise CannotFollow("the columns have other names in the files (column mapping)")
        return commit

    def _publish(self, commit: Commit) -> None:
        """Publish a commit's new rows, and tombstones for those that it removed."""
        try:
            check_commit(commit)
            removed = find_removed(self._files, commit, self._config.rows)
            messages = self._send_new(commit)
        except CannotFollow as error:
            raise CannotFollow(f"commit {commit.version}: {error}") from None
        if messages is None:
            return
        table_id = self._state.table_id
        self._send(build_removals(removed, table_id=table_id, version=commit.version))
        self._flush(version=commit.version, commit_sha256=commit.sha256, partial=None)
        behind = find_last_version(self._files, commit.version) - commit.version
        report = Sent(
            version=commit.version, messages=messages, removed=removed.num_rows, behind=behind
        )
        self._report(report)

    def _send_new(self, commit: Commit) -> int | None:
        """Send the new rows; return their number, or None if it was stopped before the last one."""
        partial = self._state.partial
        if partial is None or partial.version != commit.version:
            partial = Partial(version=commit.version)
        parts = read_onwards(
            self._files,
            commit.new_files,
            ROW,
            files_done=partial.files_done,
            rows_done=partial.rows_done,
        )
        return self._send_parts(parts, partial, "partial")

    def _send_parts(
        self,
        parts: Iterable[tuple[int, int, pa.Table]],
        done: Partial,
        name: Literal["partial", "full_pass"],
    ) -> int | None:
        """Send the rows of parts; record between two parts how far it is, if much was sent.

        Returns:
            The number of messages; None if it was stopped before the last part.
        """
        messages = 0
        for files_done, rows_done, outcomes in parts:
            chosen = select_published(select_new(outcomes), self._config.rows)
            messages += self._send(
                build_messages(chosen, table_id=self._state.table_id, version=done.version)
            )
            if self._sender.is_full:
                position = {"files_done": files_done, "rows_done": rows_done}
                self._flush(**{name: done.model_copy(update=position)})
                if self._stop.is_set():
                    return None
        return messages

    def _send(self, messages: Iterable[Published]) -> int:
        sent = 0
        for message in messages:
            self._sender.send(message)
            sent += 1
        return sent

    def _flush(self, **changes: object) -> None:
        """Wait until what was sent is in the topic, then record it."""
        self._sender.flush()
        skipped, self._sender.skipped = self._sender.skipped, []
        if skipped:
            keys = tuple(key for key, _ in skipped[:_NAMED_KEYS])
            largest = max(size for _, size in skipped)
            self._report(Skipped(messages=len(skipped), keys=keys, largest_bytes=largest))
        self._write_state(**changes)

    def _write_state(self, **changes: object) -> None:
        state = self._state.model_copy(update=changes)
        self._file.write(state)
        self._state = state

    def _check_table(self) -> None:
        """Check, from time to time, that the table is the one that is published.

        Raises:
            CannotFollow: it is another one, or entries of its log are gone.
        """
        if time.monotonic() < self._next_check:
            return
        self._next_check = time.monotonic() + self._check_s
        opened, version = open_table(self._table), self._state.version or 0
        if opened.metadata().id != self._state.table_id:
            raise CannotFollow("it is another table than the one that was published")
        if opened.version() < version:
            raise CannotFollow(
                f"the table is at version {opened.version()}, and {version} was published"
            )
        if opened.version() > version and read_commit(self._files, version + 1) is None:
            raise CannotFollow(f"the entry {version + 1} of the table's log is gone")
