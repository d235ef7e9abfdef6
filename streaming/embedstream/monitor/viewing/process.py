"""The viewer, as the driver sees it: it asks child processes and reads nothing itself.

The children are plain subprocesses, as the sandbox's and the index's are. An executor of
`concurrent.futures` would import the driver's main module in them, fail every waiting request when
one crashes, have no way to end one that takes too long, and leave its workers behind after kill -9
of the driver, since each of them holds both ends of the executor's pipes.
"""

from __future__ import annotations

from dataclasses import dataclass

from embedstream.config.sections import BulkFilesConfig, StreamConfig
from embedstream.monitor.viewer import (
    Card,
    FailureGroup,
    Found,
    Preview,
    Question,
    RowPosition,
    Viewer,
)
from embedstream.monitor.viewing.lane import Lane
from embedstream_core.errors import SetupError

__all__ = ["MAX_UPLOAD_BYTES", "ViewerLimits", "open_viewer"]

MAX_UPLOAD_BYTES = 20 * 2**20
"""The largest upload of a search; `decode` may set a smaller limit."""

_MOST_CHARACTERS = 10_000


@dataclass(frozen=True, slots=True)
class ViewerLimits:
    """Bounds of the viewer's work.

    `request_s` is for one request, `search_s` for a search, the first of which loads torch and a
    model. `waiting` is how many previews may wait for their turn; `waiting_others` bounds searches
    and requests of rows. A child process that has nothing to do for `idle_s` seconds is ended.
    """

    request_s: float = 20.0
    search_s: float = 120.0
    waiting: int = 64
    waiting_others: int = 8
    idle_s: float = 600.0


def open_viewer(
    config: StreamConfig | BulkFilesConfig,
    *,
    config_words: str = "CONFIG",
    limits: ViewerLimits | None = None,
) -> Viewer:
    """Return the viewer of a table; nothing is started before the first request.

    It has up to three child processes: a slow preview holds up no list of rows, and the model of a
    search is loaded only where somebody searches. `config_words` name the configuration in
    the commands that the page shows, quoted for a shell.
    """
    return _ProcessViewer(config, config_words=config_words, limits=limits or ViewerLimits())


class _ProcessViewer:
    """A `Viewer` of child processes."""

    def __init__(
        self, config: StreamConfig | BulkFilesConfig, *, config_words: str, limits: ViewerLimits
    ) -> None:
        def open_lane(limit_s: float, waiting: int) -> Lane:
            return Lane(
                config,
                config_words=config_words,
                limit_s=limit_s,
                waiting=waiting,
                idle_s=limits.idle_s,
            )

        self._rows = open_lane(limits.request_s, limits.waiting_others)
        self._previews = open_lane(limits.request_s, limits.waiting)
        self._searches = open_lane(limits.search_s, limits.waiting_others)

    async def list_newest(self, *, count: int = 24) -> list[Card]:
        """Return the newest embeddings, the newest first."""
        cards: list[Card] = await self._rows.ask("list_newest", count)
        return cards

    async def list_failures(self, *, newest: int = 6) -> list[FailureGroup]:
        """Return the failures by code, the most frequent first."""
        groups: list[FailureGroup] = await self._rows.ask("list_failures", newest)
        return groups

    async def find_card(self, position: RowPosition) -> Card:
        """Return the row of a message; an embedding if it has one."""
        card: Card = await self._rows.ask("find_card", position)
        return card

    async def preview(self, position: RowPosition) -> Preview:
        """Return the content of a row, fetched as the stream fetches and decoded in a sandbox."""
        preview: Preview = await self._previews.ask("preview", position)
        return preview

    async def search(self, question: Question) -> Found:
        """Return the nearest rows."""
        _check_question(question)
        found: Found = await self._searches.ask("search", question)
        return found

    def close(self) -> None:
        """End the processes; requests in progress fail."""
        for lane in (self._rows, self._previews, self._searches):
            lane.close()


def _check_question(question: Question) -> None:
    """Raise SetupError for what is too large to be sent to a child."""
    size = len(question.upload or b"")
    if size > MAX_UPLOAD_BYTES:
        raise SetupError(
            f"the file has {size} bytes, and a search takes at most {MAX_UPLOAD_BYTES}; choose a "
            "smaller one"
        )
    for name in ("words", "where", "model_id"):
        length = len(getattr(question, name) or "")
        if length > _MOST_CHARACTERS:
            raise SetupError(
                f"{name} has {length} characters, and a search takes at most {_MOST_CHARACTERS}; "
                "write less"
            )
