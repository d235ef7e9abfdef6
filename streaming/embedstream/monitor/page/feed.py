"""What changes on the page, sent to the browsers that listen.

All browsers share one rendering: a task renders the fragments once a second while at least one
browser listens, and each browser receives those that differ from what it was sent before. A slow
browser skips what came in between.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable, Mapping

__all__ = ["Feed"]

_log = logging.getLogger(__name__)

_INTERVAL_S = 1.0
# Fewer than the connections that the server takes: the rest is for probes and Prometheus.
_MAX_LISTENERS = 50
_LINES = re.compile(r"\r\n|\r|\n")


class Feed:
    """The fragments of the page by name, as they were rendered last."""

    def __init__(
        self, render: Callable[[], Mapping[str, str]], *, interval_s: float = _INTERVAL_S
    ) -> None:
        """Take the function that renders all fragments."""
        self._render = render
        self._interval_s = interval_s
        self._fragments: Mapping[str, str] = {}
        self._changed = asyncio.Event()
        self._listeners = 0
        self._task: asyncio.Task[None] | None = None

    @property
    def is_full(self) -> bool:
        """Whether as many browsers listen as may."""
        return self._listeners >= _MAX_LISTENERS

    async def listen(self) -> AsyncIterator[str]:
        """Yield server-sent events: at first each fragment, then each that has changed."""
        self._listeners += 1
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        sent: dict[str, str] = {}
        try:
            while True:
                changed = self._changed
                for name, html in self._fragments.items():
                    if sent.get(name) != html:
                        sent[name] = html
                        yield _build_event(name, html)
                await changed.wait()
        finally:
            self._listeners -= 1

    async def _run(self) -> None:
        while self._listeners:
            try:
                self._fragments = self._render()
            except Exception:
                # Browsers that receive nothing for some seconds say that they are not connected.
                _log.exception("the page cannot be rendered")
            self._changed.set()
            self._changed = asyncio.Event()
            await asyncio.sleep(self._interval_s)


def _build_event(name: str, html: str) -> str:
    """Return a message that htmx puts in the place of the element with that id."""
    partial = f'<hx-partial hx-target="#{name}" hx-swap="innerMorph">{html}</hx-partial>'
    return "".join(f"data: {line}\n" for line in _LINES.split(partial)) + "\n"
