"""A stream's status that a test sets, and servers over it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest

from embedstream.config.sections.monitoring import MonitorConfig
from embedstream.monitor.status import Status, TableStatus

Serve = Callable[..., str]


@dataclass
class FixedSource:
    """A `StatusSource` that says what a test sets."""

    is_alive: bool = True
    is_ready: bool = True
    status: Status = field(
        default_factory=lambda: Status(
            state="running", now=datetime(2026, 11, 26, tzinfo=UTC), table=TableStatus(path="table")
        )
    )

    def read_status(self) -> Status:
        return self.status

    def change(self, **update: Any) -> None:
        self.status = self.status.model_copy(update=update)


@pytest.fixture
def source() -> FixedSource:
    return FixedSource()


@pytest.fixture
def serve(source: FixedSource) -> Iterator[Serve]:
    """Serve the source; returns the URL. The arguments are those of `build_app`."""
    from embedstream.monitor.http.app import build_app
    from embedstream.monitor.http.server import open_server

    with ExitStack() as servers:

        def open_one(*, token: str | None = None, **arguments: Any) -> str:
            config = MonitorConfig.model_validate({"listen": "127.0.0.1:0", "token": token})
            app = build_app(source, config, **arguments)
            return servers.enter_context(open_server(config, app))

        yield open_one
