"""Serve the metrics, the health and the live page of one source at an address."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from embedstream.config.sections import StreamConfig
from embedstream.monitor.counts import Samples
from embedstream.monitor.http.app import build_app
from embedstream.monitor.http.server import FEATURE, open_server
from embedstream.monitor.status import StatusSource
from embedstream.monitor.viewing.process import open_viewer
from embedstream_core.extras import require_extra

__all__ = ["open_site"]


@contextmanager
def open_site(
    source: StatusSource,
    config: StreamConfig,
    *,
    config_words: str = "CONFIG",
    read_counts: Callable[[], Samples] = dict,
) -> Iterator[str]:
    """Serve a source at `monitor.listen` while the context lasts; yield the URL.

    `config_words` name the configuration in the commands that the page shows. `read_counts` gives
    the counters and histograms of a stream.

    Raises:
        SetupError: on entering, the address cannot be listened at, or the extra is missing.
    """
    with require_extra("monitor", feature=FEATURE):
        from embedstream.monitor.page import build_page
    viewer = open_viewer(config, config_words=config_words)
    try:
        page = build_page(source, viewer, config=config)
        app = build_app(source, config.monitor, read_counts=read_counts, page=page)
        with open_server(config.monitor, app) as url:
            yield url
    finally:
        viewer.close()
