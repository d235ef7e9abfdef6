"""Keep the viewer's answers for all browsers: the newest rows, the failures, and previews.

The viewer may be slow or down. What it has not answered yet is a sentence instead.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, TypeVar

from embedstream.monitor.status import Status
from embedstream.monitor.viewer import Card, FailureGroup, Preview, RowPosition, Viewer
from embedstream_core.errors import EmbedstreamError

__all__ = ["PreviewCache", "Reading", "RecentRows", "SharedRequests", "ask"]

_log = logging.getLogger(__name__)

_Key = TypeVar("_Key", bound=Hashable)
_T = TypeVar("_T")

# New commits may come several times a second, and each reading queries the table.
_PAUSE_S = 2.0
_RETRY_S = 10.0
# On a large table the viewer reuses an answer for a while, so the answer after the last commit of a
# burst may be old: it is asked for again after this time.
_REREAD_S = 30.0

_NEWEST = 24
_FAILURES = 6
_PREVIEW_BYTES = 32 * 2**20
# The viewer decodes one after another; more requests at once only make its queue longer.
_PREVIEWS_AT_ONCE = 4
# A preview that failed may succeed later: a server is back, or the row was embedded again.
_NONE_S = 60.0


@dataclass(frozen=True, slots=True)
class Reading(Generic[_T]):
    """What was read, or the sentence that says why it is not there."""

    value: _T | None = None
    note: str = ""


async def ask(question: Awaitable[_T]) -> Reading[_T]:
    """Return the viewer's answer, or its sentence."""
    try:
        return Reading(await question)
    except EmbedstreamError as error:
        return Reading(note=str(error))
    except Exception:
        _log.exception("the viewer of rows failed")
        return Reading(note="The viewer of rows failed; the driver's log has the reason.")


class SharedRequests(Generic[_Key, _T]):
    """Requests in progress: equal ones share one answer.

    A caller that stops waiting does not end the request.
    """

    def __init__(self) -> None:
        self._pending: dict[_Key, asyncio.Task[_T]] = {}

    async def ask(self, key: _Key, put: Callable[[], Coroutine[None, None, _T]]) -> _T:
        """Return the answer to the question of that key, which `put` asks."""
        task = self._pending.get(key)
        if task is None:
            task = self._pending[key] = asyncio.create_task(put())
            task.add_done_callback(lambda _: self._pending.pop(key))
        return await asyncio.shield(task)


class PreviewCache:
    """The previews that were made last, in memory of a fixed size."""

    def __init__(
        self,
        viewer: Viewer,
        *,
        max_bytes: int = _PREVIEW_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._viewer = viewer
        self._max_bytes = max_bytes
        self._clock = clock
        self._bytes = 0
        self._made: OrderedDict[RowPosition, tuple[float, Preview]] = OrderedDict()
        self._requests: SharedRequests[RowPosition, Preview] = SharedRequests()
        self._turns = asyncio.Semaphore(_PREVIEWS_AT_ONCE)

    def find(self, position: RowPosition) -> Preview | None:
        """Return a preview that was made; None if there is none."""
        _, preview = self._made.get(position, (0.0, None))
        return preview

    async def get(self, position: RowPosition) -> Preview:
        """Return a preview, made now if it is not there; one of kind `none` if it failed."""
        made_at, preview = self._made.get(position, (0.0, None))
        if preview is not None and (preview.kind != "none" or self._clock() - made_at < _NONE_S):
            self._made.move_to_end(position)
            return preview
        return await self._requests.ask(position, lambda: self._make(position))

    async def _make(self, position: RowPosition) -> Preview:
        async with self._turns:
            reading = await ask(self._viewer.preview(position))
        if reading.value is None:
            return Preview("none", note=reading.note)
        if position in self._made:
            self._bytes -= _measure(self._made.pop(position)[1])
        self._made[position] = self._clock(), reading.value
        self._bytes += _measure(reading.value)
        while self._bytes > self._max_bytes and len(self._made) > 1:
            _, (_, oldest) = self._made.popitem(last=False)
            self._bytes -= _measure(oldest)
        return reading.value


def _measure(preview: Preview) -> int:
    return len(preview.content) + len(preview.text) + 200


class RecentRows:
    """The newest rows and the failures, read again after a commit while a browser shows them.

    `revision` grows with each change.
    """

    def __init__(
        self, viewer: Viewer, previews: PreviewCache, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._viewer = viewer
        self._previews = previews
        self._clock = clock
        self._task: asyncio.Task[None] | None = None
        self._seen: tuple[int | None, int | None, datetime | None] | None = None
        self._started_at = 0.0
        self.newest: Reading[list[Card]] = Reading(note="The newest rows are being read.")
        self.failures: Reading[list[FailureGroup]] = Reading(note="The failures are being read.")
        self.revision = 0

    def refresh(self, status: Status) -> asyncio.Task[None] | None:
        """Start to read if there was a commit since; return the reading that is in progress."""
        if self._task is not None and not self._task.done():
            return self._task
        passed = self._clock() - self._started_at
        commit = (status.table.version, status.micro_batch, status.last_micro_batch)
        has_failed = self.newest.value is None or self.failures.value is None
        if self._seen is not None and passed < (_RETRY_S if has_failed else _PAUSE_S):
            return None
        if commit == self._seen and not has_failed and passed < _REREAD_S:
            return None
        self._seen, self._started_at = commit, self._clock()
        self._task = asyncio.create_task(self._read())
        return self._task

    async def _read(self) -> None:
        newest = await ask(self._viewer.list_newest(count=_NEWEST))
        # Old rows are better than none; the sentence marks them as old.
        self.newest = Reading(
            self.newest.value if newest.value is None else _drop_repeated(newest.value),
            newest.note,
        )
        self.revision += 1
        failures = await ask(self._viewer.list_failures(newest=_FAILURES))
        self.failures = Reading(
            self.failures.value if failures.value is None else failures.value, failures.note
        )
        self.revision += 1
        await self._preview_inline()

    async def _preview_inline(self) -> None:
        """Make the previews that stand in the page itself; those of pictures have an address."""
        texts = [one for one in self.newest.value or () if _is_text(one)]
        failed = [one for group in self.failures.value or () for one in group.newest]
        positions = [card.position for card in (*texts, *failed)]
        for made in asyncio.as_completed([self._previews.get(one) for one in positions]):
            await made
            self.revision += 1


def _is_text(card: Card) -> bool:
    return card.media_type is not None and card.media_type.startswith("text/")


def _drop_repeated(cards: Sequence[Card]) -> list[Card]:
    """Keep one card of each message: with several models each has a row of its own."""
    return list({card.position: card for card in reversed(cards)}.values())[::-1]
