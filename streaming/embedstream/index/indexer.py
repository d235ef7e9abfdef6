"""Keep an index in step with its table: once, or for as long as the process lives."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

from embedstream.config.sections import IndexConfig
from embedstream.follow.log_entries import CannotFollow, hash_commit, read_commit
from embedstream.follow.retries import Step, keep_following
from embedstream.follow.table_files import TableFiles
from embedstream.follow.table_reader import open_table
from embedstream.follow.whole_table import check_readable
from embedstream.index.commits import CommitFollower
from embedstream.index.full_pass import begin_full_pass, continue_full_pass
from embedstream.index.index_writer import IndexWriter
from embedstream.index.reports import Report, Started, Trouble
from embedstream.index.stores.kinds import open_store
from embedstream_core.errors import EmbedstreamError, explain

__all__ = ["IndexFailed", "Indexer", "follow_table", "update_index"]

_LOG = logging.getLogger(__name__)

# Opening a table reads the list of its files.
_CHECK_S = 30.0
# A full pass that one commit after the other asks for, as in a table with deletion vectors, takes
# at most a tenth of the time.
_FULL_PASS_SHARE = 10
_FULL_PASS_PAUSE_S = 60.0


class IndexFailed(EmbedstreamError):
    """An error of the store, the table or their libraries ended a pass; it can be repeated."""


class Indexer:
    """Brings an open index in step with its table, a step at a time."""

    def __init__(
        self,
        table: str,
        index: IndexWriter,
        *,
        stop: threading.Event,
        rebuild: bool = False,
        pause_s: float = 0.0,
    ) -> None:
        """Check what the index holds; begin a full pass unless it is a version of this table.

        `pause_s` is the least time from one full pass to the next, and from one look at the table
        itself to the next.

        Raises:
            SetupError: the table or the store cannot be used.
        """
        self._table = table
        self._index = index
        self._stop = stop
        self._pause_s = pause_s
        self._next_check = self._next_pass = 0.0
        self._due: str | None = None
        """Why a full pass is due; None if there is none."""
        self._is_reported = False
        opened = open_table(table)
        check_readable(opened)
        self._files = TableFiles(opened)
        self._follower = CommitFollower(index, opened)
        version = None if index.state is None else index.state.version
        index.report(Started(table=table, address=index.store.address, version=version))
        self.newest = int(opened.version())
        """The table's version when this was made."""
        if rebuild:
            self._due = "--rebuild"
        elif not self._can_resume(opened):
            self._due = self._find_difference(opened)

    @property
    def version(self) -> int:
        """The table's version that the index holds; -1 for none."""
        state = self._index.state
        if self._due is not None or state is None or state.full_pass is not None:
            return -1
        return -1 if state.version is None else state.version

    def step(self) -> bool:
        """Do what one write takes, or a whole full pass; return False if there was nothing to do.

        Raises:
            SetupError: the table or the store cannot be used.
        """
        if self._due is None:
            try:
                return self._advance()
            except CannotFollow as error:
                self._due = str(error)
                _LOG.info("the index cannot follow '%s': %s", self._table, error)
        return self._begin_full_pass(self._due)

    def end(self) -> None:
        """Tidy up after a pass."""
        self._index.keep_up("ended")

    def _advance(self) -> bool:
        if self._index.known.full_pass is not None:
            start = time.monotonic()
            try:
                has_ended = continue_full_pass(self._index, self._table, stop=self._stop)
            finally:
                now = time.monotonic()
                if self._pause_s:
                    pause = max(self._pause_s, _FULL_PASS_SHARE * (now - start))
                    self._next_pass = now + pause
            if has_ended:
                self._follower = CommitFollower(self._index, open_table(self._table))
            return True
        if self._follower.apply(self._stop):
            self._index.keep_up()
            return True
        self._check_table()
        self._index.keep_up("idle")
        return False

    def _begin_full_pass(self, reason: str) -> bool:
        """Begin the full pass that is due, or wait for its time."""
        wait_s = self._next_pass - time.monotonic()
        if wait_s > 0:
            if not self._is_reported:
                self._index.report(Trouble(reason=f"a full pass is due: {reason}", retry_s=wait_s))
            self._is_reported = True
            return False
        begin_full_pass(self._index, open_table(self._table), reason=reason)
        self._due, self._is_reported = None, False
        return True

    def _can_resume(self, opened: Any) -> bool:
        state = self._index.state
        if state is None or state.full_pass is None:
            return False
        full_pass = state.full_pass
        return (
            full_pass.table_id == opened.metadata().id
            and full_pass.attributes == self._index.config.attributes
            and full_pass.commit_sha256 == hash_commit(self._files, full_pass.version)
        )

    def _find_difference(self, opened: Any) -> str | None:
        """Return why the index is not one of this table; None if it is."""
        state, attributes = self._index.state, self._index.config.attributes
        if state is None or state.version is None:
            return "there is no index yet"
        if state.table_id != opened.metadata().id:
            return f"the index is one of another table, '{state.table}'"
        if state.attributes != attributes:
            return (
                f"index.attributes was [{', '.join(state.attributes)}], and is now "
                f"[{', '.join(attributes)}]"
            )
        if state.full_pass is not None:
            return "the last full pass cannot be resumed"
        if opened.version() < state.version:
            return f"the table is at version {opened.version()}, the index at {state.version}"
        return None

    def _check_table(self) -> None:
        """Check, from time to time, that the table is the one that the index follows.

        Raises:
            CannotFollow: it is another one, or entries of its log are gone.
        """
        if time.monotonic() < self._next_check:
            return
        self._next_check = time.monotonic() + (_CHECK_S if self._pause_s else 0)
        opened = open_table(self._table)
        if (difference := self._find_difference(opened)) is not None:
            raise CannotFollow(difference)
        version = self.version
        if opened.version() > version and read_commit(self._files, version + 1) is None:
            raise CannotFollow(f"the entry {version + 1} of the table's log is gone")


def update_index(
    table: str,
    config: IndexConfig,
    *,
    report: Callable[[Report], None],
    stop: threading.Event,
    rebuild: bool = False,
) -> None:
    """Bring the index to the version that the table has now, unless it is stopped before.

    Raises:
        SetupError: the table or the store cannot be used.
        IndexFailed: an error of theirs ended it.
    """
    try:
        with _open_index(table, config, report) as index:
            indexer = Indexer(table, index, stop=stop, rebuild=rebuild)
            while indexer.version < indexer.newest and not stop.is_set():
                indexer.step()
            if not stop.is_set():
                indexer.end()
    except EmbedstreamError:
        raise
    except Exception as error:
        _LOG.debug("the index was not updated", exc_info=True)
        raise IndexFailed(f"the index was not updated: {explain(error)}") from error


def follow_table(
    table: str,
    config: IndexConfig,
    *,
    report: Callable[[Report], None],
    stop: threading.Event,
    rebuild: bool = False,
) -> None:
    """Keep the index in step with the table until it is stopped; retry after any error."""

    @contextmanager
    def open_steps(take: Callable[[Report], None]) -> Iterator[Step]:
        def reset_rebuild(made: Report) -> None:
            nonlocal rebuild
            rebuild = rebuild and not made.is_progress
            take(made)

        with _open_index(table, config, reset_rebuild) as index:
            yield Indexer(table, index, stop=stop, rebuild=rebuild, pause_s=_FULL_PASS_PAUSE_S).step

    keep_following(open_steps, report=report, stop=stop, poll_s=config.poll_s)


@contextmanager
def _open_index(
    table: str, config: IndexConfig, report: Callable[[Report], None]
) -> Iterator[IndexWriter]:
    # The store may be in the table's folder, where Delta creates no table once there is a file.
    open_table(table)
    with closing(open_store(config, table=table, mode="write")) as store:
        yield IndexWriter(store, config, report)
