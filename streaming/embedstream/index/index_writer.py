"""An index, open for its only writer: its store, its state, and its upkeep."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from embedstream.config.sections import IndexConfig
from embedstream.index.ann import build_ann, is_ann_due
from embedstream.index.reports import AnnBegun, AnnBuilt, Report
from embedstream.index.state import Collection, IndexState
from embedstream.index.stores.contract import StoreWriter, Write

__all__ = ["IndexWriter"]

_log = logging.getLogger(__name__)

# A write leaves a small file in each of its collections, at one write a second 64 in a minute.
_WRITES_PER_UPKEEP = 64
_IDLE_S = 10.0
# Upkeep may take one part in so many of the time.
_UPKEEP_SHARE = 20


class IndexWriter:
    """Writes rows and state together, and keeps the collections tidy.

    `state` is None if there is no index, or one of another format: it is only a copy of the table.
    """

    def __init__(
        self, store: StoreWriter, config: IndexConfig, report: Callable[[Report], None]
    ) -> None:
        self.store = store
        self.config = config
        self.report = report
        self.state = _parse_state(store)
        self._writes = 0
        self._rows = 0
        self._last_write = self._upkeep_from = time.monotonic()
        if self.state is not None:
            self.drop_unnamed()

    @property
    def known(self) -> IndexState:
        """The state of an index that is there."""
        if self.state is None:
            raise AssertionError("there is no index")
        return self.state

    def write(self, writes: Sequence[Write], state: IndexState) -> None:
        """Do the writes and replace the state, in one transaction."""
        self.store.write(writes, state.model_dump_json())
        self.state = state
        if writes:
            self._writes += 1
            self._rows += sum(one.rows.num_rows for one in writes if one.rows is not None)
            self._last_write = time.monotonic()

    def update(self, **changes: Any) -> None:
        """Replace fields of the state."""
        self.write([], self.known.model_copy(update=changes))

    def drop_unnamed(self) -> None:
        """Delete the collections that the state does not name, as those before a full pass."""
        passing = self.known.full_pass.collections if self.known.full_pass else {}
        named = {one.name for one in (*self.known.collections.values(), *passing.values())}
        if unnamed := set(self.store.list_collections()) - named:
            self.store.drop(sorted(unnamed))

    def keep_up(self, when: str = "busy") -> None:
        """Merge small files and build approximate indexes, when that is due.

        `when` is `busy` between two steps, `idle` if there is nothing to do, `ended` at the end of
        a pass.
        """
        now = time.monotonic()
        is_due = (
            (self._writes > 0 and when == "ended")
            or self._writes >= _WRITES_PER_UPKEEP
            or (self._writes > 0 and when == "idle" and now - self._last_write > _IDLE_S)
        )
        if not (is_due or self._rows >= self.config.ann_rows):
            return
        if when != "ended" and now < self._upkeep_from:
            return
        self.store.maintain([one.name for one in self.known.collections.values()])
        duration = time.monotonic() - now
        self._upkeep_from = time.monotonic() + _UPKEEP_SHARE * duration
        self.complete()

    def complete(self) -> None:
        """Build the approximate indexes that are due; what was written until now is tidy."""
        self._writes = self._rows = 0
        collections = self.build_anns(self.known.collections)
        if collections != self.known.collections:
            self.update(collections=collections)

    def build_anns(self, collections: Mapping[str, Collection]) -> dict[str, Collection]:
        """Build the approximate indexes that are due; return the collections with them."""
        built = dict(collections)
        for model_id, one in collections.items():
            rows = self.store.count_rows(one.name)
            if not is_ann_due(one.ann, rows=rows, ann_rows=self.config.ann_rows):
                continue
            self.report(AnnBegun(model_id=model_id, rows=rows))
            ann = build_ann(self.store, one.name, rows=rows, dimension=one.dimension)
            if ann is not None:
                built[model_id] = one.model_copy(update={"ann": ann})
                self.report(AnnBuilt(model_id=model_id, ann=ann))
        return built


def _parse_state(store: StoreWriter) -> IndexState | None:
    text = store.read_state()
    if text is None:
        return None
    try:
        return IndexState.model_validate_json(text)
    except ValidationError as error:
        _log.warning("the index at %s is of another version: %s", store.address, error)
        return None
