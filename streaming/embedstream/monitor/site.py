"""Serves a status at an address: the metrics, the health and the live page of one source."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from embedstream.config.monitoring import MonitorConfig
from embedstream.monitor.app import build_app
from embedstream.monitor.counts import Samples
from embedstream.monitor.server import open_server
from embedstream.monitor.status import StatusSource

__all__ = ["open_site"]


@contextmanager
def open_site(
    source: StatusSource,
    monitor: MonitorConfig,
    *,
    read_counts: Callable[[], Samples] = dict,
) -> Iterator[str]:
    """Serve a source at `monitor.listen` while the context lasts; yield the URL.

    `read_counts` gives the counters and histograms of a stream.

    Raises:
        SetupError: on entering, the address cannot be listened at, or the extra is missing.
    """
    with open_server(monitor, build_app(source, monitor, read_counts=read_counts)) as url:
        yield url
