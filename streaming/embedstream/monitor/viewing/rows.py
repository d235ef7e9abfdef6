"""Read what the page shows of a table's rows, without their embeddings."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

from embedstream.config.sections import BulkFilesConfig, StreamConfig
from embedstream.follow.sql_text import quote_name, quote_text
from embedstream.follow.table_reader import (
    has_field,
    list_rows,
    name_columns,
    open_table,
    refresh_table,
    select_batches,
)
from embedstream.follow.tombstones import Tombstones, read_tombstones
from embedstream.monitor.viewer import Card, FailureGroup, RowPosition
from embedstream_core.errors import Code, SetupError

__all__ = ["Row", "Rows", "make_card", "shorten"]

Row = dict[str, Any]
"""A row of the table by column."""

Value = TypeVar("Value")

_COLUMNS = (
    *("topic", "partition", "offset", "timestamp", "key", "image_id", "uri", "error", "model_id"),
    *("media", "processed_at", "attributes"),
)

# An answer is reused for so many times the time that it took, so that a page that asks again and
# again keeps the table busy for a fifth of the time at most, however large it is.
_REUSE = 4

_MOST_ROWS = 200
_MOST_CHARACTERS = 1000
_MOST_ATTRIBUTES = 50

_IS_FAILURE = "error['code'] IS NOT NULL"
_IS_TOMBSTONE = f"error['code'] = '{Code.DELETED}'"


@dataclass
class _Memo(Generic[Value]):
    """A value of a table's version; see `_REUSE`."""

    compute: Callable[[], Value]
    version: int = -1
    until: float = 0.0
    value: Value | None = None

    def get(self, version: int) -> Value:
        """Return the value of a version, or of an earlier one while that is reused."""
        if self.value is None or (version != self.version and time.monotonic() >= self.until):
            started = time.monotonic()
            self.value = self.compute()
            ended = time.monotonic()
            self.version, self.until = version, ended + _REUSE * (ended - started)
        return self.value


class Rows:
    """The rows of a table; the table is opened at the first request."""

    def __init__(self, config: StreamConfig | BulkFilesConfig, *, config_words: str) -> None:
        self._config = config
        self._config_words = config_words
        self._opened: Any = None
        self._newest: dict[int, _Memo[list[Card]]] = {}
        self._failures: dict[int, _Memo[list[FailureGroup]]] = {}
        self._tombstones = _Memo(lambda: read_tombstones(self._opened))

    def list_newest(self, count: int) -> list[Card]:
        """Return the newest embeddings, the newest first."""
        self._refresh()
        count = min(max(count, 1), _MOST_ROWS)
        memo = self._newest.setdefault(
            count, _Memo(lambda: self._select_newest("error IS NULL", count))
        )
        return memo.get(self._opened.version())

    def list_failures(self, newest: int) -> list[FailureGroup]:
        """Return the failures by code, the most frequent first."""
        self._refresh()
        newest = min(max(newest, 1), _MOST_ROWS)
        memo = self._failures.setdefault(newest, _Memo(lambda: self._group_failures(newest)))
        return memo.get(self._opened.version())

    def find_card(self, position: RowPosition) -> Card:
        """Return the row of a message; an embedding if it has one."""
        card = make_card(self.find_row(position))
        if card.code is None:
            return card
        topic, partition, offset = position.topic, position.partition, position.offset
        replay = self._write_replay("--offsets", f"{topic}:{partition}:{offset}-{offset}")
        return replace(card, replay=replay)

    def find_row(self, position: RowPosition) -> Row:
        """Return the row of a message; an embedding if it has one.

        Raises:
            SetupError: the table has no row of it, or its key was deleted.
        """
        if not position.topic:
            raise SetupError("rows of `embedstream batch` came from no message: none can be opened")
        self._refresh()
        condition = (
            f'topic = {quote_text(position.topic)} AND "partition" = {position.partition:d} '
            f'AND "offset" = {position.offset:d}'
        )
        rows = self._select(f"WHERE {condition}")
        visible = [row for row in self._hide(rows) if _get_code(row) != Code.DELETED]
        if not visible:
            reason = "its key was deleted" if rows else "the table has no row of it"
            name = f"{position.topic}-{position.partition}-{position.offset}"
            raise SetupError(f"the message {name} cannot be shown: {reason}")
        return min(visible, key=lambda row: (row["error"] is not None, row["model_id"] or ""))

    @property
    def table_id(self) -> str:
        """Delta's id of the table, as the last request found it."""
        return str(self._opened.metadata().id)

    def _refresh(self) -> None:
        if self._opened is None:
            self._opened = open_table(self._config.table.path)
        else:
            refresh_table(self._opened)

    def _group_failures(self, newest: int) -> list[FailureGroup]:
        if not has_field(self._opened, "error", "code"):
            return []
        counts = sorted(self._count_failures().items(), key=lambda one: (-one[1], one[0]))
        return [
            FailureGroup(
                code,
                count,
                tuple(self._select_newest(f"error['code'] = {quote_text(code)}", newest)),
                self._write_replay("--code", code),
            )
            for code, count in counts
        ]

    def _count_failures(self) -> dict[str, int]:
        """Return the visible failures by code."""
        source = f"outcomes WHERE {_IS_FAILURE} AND NOT {_IS_TOMBSTONE}"
        if len(self._read_tombstones()):
            position = 'topic, "partition", key, "offset"'
            keys = (
                'SELECT topic, "partition", key, max("offset") AS until FROM outcomes '  # noqa: S608
                f'WHERE {_IS_TOMBSTONE} AND key IS NOT NULL GROUP BY topic, "partition", key'
            )
            source = (
                f"(SELECT {position}, error FROM {source}) AS t LEFT ANTI JOIN ({keys}) AS d "  # noqa: S608
                'ON t.topic = d.topic AND t."partition" = d."partition" AND t.key = d.key '
                'AND t."offset" < d.until'
            )
        query = f"error['code'] AS code, count(*) AS number FROM {source} GROUP BY 1"
        return {
            row["code"]: row["number"]
            for batch in select_batches(self._opened, query)
            for row in batch.to_pylist()
        }

    def _write_replay(self, option: str, value: str) -> str:
        """Return the command that tries failures again; '' if nothing can.

        Rows of `embedstream batch` came from no topic.
        """
        if not isinstance(self._config, StreamConfig):
            return ""
        return f"embedstream replay {self._config_words} {option} {shlex.quote(value)}"

    def _select_newest(self, condition: str, count: int) -> list[Card]:
        """Return the newest visible rows that satisfy a condition, the newest first."""
        limit = 2 * count
        while True:
            rows = self._select(
                f"WHERE {condition} AND {self._bound(condition, limit)} ORDER BY processed_at DESC "
                f'NULLS LAST, timestamp DESC NULLS LAST, "offset" DESC LIMIT {limit}'
            )
            visible = self._hide(rows)
            if len(visible) >= count or len(rows) < limit:
                return [make_card(row) for row in visible[:count]]
            limit *= 8

    def _bound(self, condition: str, limit: int) -> str:
        """Return a condition that the newest rows satisfy, and few others.

        The files' statistics exclude most files, and a query of one column most rows: the other
        columns are read of a few pages only. Of a million rows it takes a third of the time of one
        query, measured in one file and in 2,000.
        """
        if "processed_at" not in name_columns(self._opened):
            return "TRUE"
        bound = self._bound_files(limit) if condition == "error IS NULL" else "TRUE"
        query = (
            "min(processed_at) AS first, count(*) AS number "  # noqa: S608
            "FROM (SELECT processed_at FROM outcomes "
            f"WHERE {condition} AND {bound} AND processed_at IS NOT NULL "
            f"ORDER BY processed_at DESC LIMIT {limit})"
        )
        for batch in select_batches(self._opened, query):
            (row,) = batch.to_pylist()
            if row["number"] == limit:
                return _write_bound(row["first"])
        return "TRUE"

    def _bound_files(self, limit: int) -> str:
        """Return a condition for the embeddings of the newest files, which are at least `limit`."""
        import pyarrow as pa

        actions = pa.table(self._opened.get_add_actions(flatten=True))
        names = ("null_count.error.code", "min.processed_at", "max.processed_at")
        if not set(names) <= set(actions.column_names):
            return "TRUE"
        files = list(zip(*(actions.column(name).to_pylist() for name in names), strict=True))
        if any(None in file for file in files):
            return "TRUE"
        found, first = 0, datetime.max.replace(tzinfo=UTC)
        for embeddings, oldest, _ in sorted(files, key=lambda file: file[2], reverse=True):
            found += embeddings
            first = min(first, _as_utc(oldest))
            if found >= limit:
                return _write_bound(first)
        return "TRUE"

    def _select(self, rest: str) -> list[Row]:
        """Return rows by a WHERE and what follows; columns that the table lacks are null."""
        present = name_columns(self._opened)
        inner = [
            quote_name(name) if name in present else f"NULL AS {quote_name(name)}"
            for name in _COLUMNS
        ]
        # Names are constants, and the callers quote texts.
        query = f"* FROM (SELECT {', '.join(inner)} FROM outcomes) {rest}"  # noqa: S608
        return [row for batch in select_batches(self._opened, query) for row in list_rows(batch)]

    def _read_tombstones(self) -> Tombstones:
        return self._tombstones.get(self._opened.version())

    def _hide(self, rows: Sequence[Row]) -> list[Row]:
        """Return the rows whose keys were not deleted."""
        tombstones = self._read_tombstones()
        return [
            row
            for row in rows
            if not tombstones.hides(row["topic"], row["partition"], row["key"], row["offset"])
        ]


def make_card(row: Mapping[str, Any]) -> Card:
    """Return a row as the page shows it; texts of any length are cut."""
    error, media = row.get("error") or {}, row.get("media") or {}
    attributes = dict((row.get("attributes") or [])[:_MOST_ATTRIBUTES])
    return Card(
        position=_read_position(row),
        image_id=shorten(row["image_id"] or ""),
        model_id=shorten(row["model_id"]),
        uri=shorten(row["uri"]),
        media_type=shorten(media.get("type")),
        width=media.get("width"),
        height=media.get("height"),
        duration_s=media.get("duration_s"),
        characters=media.get("characters"),
        attributes={shorten(name): shorten(value or "") for name, value in attributes.items()},
        timestamp=row.get("timestamp"),
        processed_at=row.get("processed_at"),
        similarity=row.get("similarity"),
        code=shorten(error.get("code")),
        stage=shorten(error.get("stage")),
        message=shorten(error.get("message")),
    )


Text = TypeVar("Text", str, str | None)


def shorten(text: Text) -> Text:
    """Return the beginning of a text."""
    if text is None or len(text) <= _MOST_CHARACTERS:
        return text
    return f"{text[:_MOST_CHARACTERS]}…"


def _read_position(row: Mapping[str, Any]) -> RowPosition:
    """Return a row's message; rows of `embedstream batch` have none."""
    if row["topic"] is None or row["partition"] is None or row["offset"] is None:
        return RowPosition("", 0, -1)
    return RowPosition(row["topic"], row["partition"], row["offset"])


def _get_code(row: Row) -> str | None:
    return (row["error"] or {}).get("code")


def _as_utc(time: datetime) -> datetime:
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _write_bound(first: datetime) -> str:
    moment = _as_utc(first).isoformat(timespec="microseconds")
    return f"processed_at >= arrow_cast('{moment}', 'Timestamp(Microsecond, Some(\"UTC\"))')"
