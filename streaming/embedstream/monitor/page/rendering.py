"""Render the templates of the page."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import files
from typing import Any
from urllib.parse import quote

import jinja2
from starlette.requests import Request

from embedstream.monitor.page import flow, formats
from embedstream.monitor.page.health import assess
from embedstream.monitor.page.history import draw_history
from embedstream.monitor.page.meanings import find_meaning
from embedstream.monitor.page.rows import RecentRows
from embedstream.monitor.status import Status
from embedstream.monitor.viewer import Preview, RowPosition

__all__ = ["Fragments", "build_environment", "find_root"]

_STATIC = files("embedstream.monitor.page").joinpath("static")


def build_environment(find_preview: Callable[[RowPosition], Preview | None]) -> jinja2.Environment:
    """Return the environment of the templates; all values are escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("embedstream.monitor.page"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names = [name for name in formats.__all__ if name.startswith("format_")]
    environment.filters.update({name: getattr(formats, name) for name in names})
    environment.filters.update(show=formats.show_text, meaning=find_meaning, row=_quote_position)
    environment.globals.update(static=_find_static, find_preview=find_preview)
    return environment


def _quote_position(position: RowPosition) -> str:
    """Return the end of a row's address."""
    return f"{quote(position.topic, safe='')}/{position.partition}/{position.offset}"


def find_root(request: Request) -> str:
    """Return the relative address of the page's root: a proxy may serve it below a prefix."""
    # Not the decoded path: a slash in the name of a topic is one character of a step.
    path = request.scope["raw_path"].decode("ascii", "replace")
    return "../" * (path.removeprefix(request.scope.get("root_path", "")).count("/") - 1) or "./"


@cache
def _find_static(name: str) -> str:
    """Return the address of a static file; it changes with the content, so it can be cached."""
    digest = hashlib.sha256((_STATIC.joinpath(name)).read_bytes()).hexdigest()
    return f"static/{name}?v={digest[:12]}"


class Fragments:
    """The parts of the page that change, each rendered only if what it shows has changed."""

    def __init__(
        self, environment: jinja2.Environment, rows: RecentRows, *, can_replay: bool
    ) -> None:
        self._environment = environment
        self._rows = rows
        self._can_replay = can_replay
        self._rendered: dict[str, tuple[object, str]] = {}

    def render(self, status: Status) -> Mapping[str, str]:
        """Return the HTML of each part by its name, which is the id of its place in the page."""
        health = assess(status)
        newest, failures, revision = self._rows.newest, self._rows.failures, self._rows.revision
        counts = status.model_dump(exclude={"history", "now"})
        topics = flow.list_topics(status)
        self._show("state", (status.now, health), status=status, health=health)
        self._show("numbers", counts, status=status)
        self._show("parts", counts, status=status, topics=topics)
        if status.state != "unwatched":
            stages = flow.list_stages(status)
            self._show("flow", counts, status=status, topics=topics, stages=stages)
            # The rate of the newest point changes while its time passes.
            moment = status.now.timestamp() // 5
            self._show("history", (status.history, moment), status=status, draw=draw_history)
        self._show("newest", revision, newest=newest, root="./")
        self._show(
            "failures",
            (revision, status.failures),
            failures=failures,
            status=status,
            can_replay=self._can_replay,
            root="./",
        )
        return {name: html for name, (_, html) in self._rendered.items()}

    def _show(self, name: str, key: object, **values: Any) -> None:
        if name not in self._rendered or self._rendered[name][0] != key:
            template = self._environment.get_template(f"fragments/{name}.html")
            self._rendered[name] = (key, template.render(values))
