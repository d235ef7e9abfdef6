"""The page on a real HTTP server that a test can stop, and start again at the same port."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field

from embedstream.config.sections import BulkFilesConfig, StreamConfig
from embedstream.config.sections.monitoring import MonitorConfig
from embedstream.monitor.http.app import build_app
from embedstream.monitor.http.server import open_server
from embedstream.monitor.page import build_page
from embedstream.monitor.status import StatusSource
from embedstream.monitor.viewer import Viewer
from watched import CONFIG

__all__ = ["PageServer"]


@dataclass
class PageServer:
    """The page of a source and a viewer, behind the monitor's own checks and headers."""

    source: StatusSource
    viewer: Viewer
    config: StreamConfig | BulkFilesConfig = CONFIG
    url: str = "http://127.0.0.1:0"
    _stack: ExitStack = field(default_factory=ExitStack, repr=False)

    def start(self) -> None:
        """Serve at the port of `url`; the first time, at a free one."""
        config = MonitorConfig(listen=self.url.removeprefix("http://"))
        page = build_page(self.source, self.viewer, config=self.config)
        app = build_app(self.source, config, page=page)
        self.url = self._stack.enter_context(open_server(config, app))

    def stop(self) -> None:
        self._stack.close()
