"""The HTTP application of a driver: metrics, health, the status as JSON, and the live page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from embedstream.config.sections.monitoring import MonitorConfig
from embedstream.monitor.counts import Samples
from embedstream.monitor.exposition import build_registry
from embedstream.monitor.http.gate import Gate
from embedstream.monitor.http.server import FEATURE
from embedstream.monitor.status import StatusSource
from embedstream_core.extras import require_extra

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import BaseRoute
    from starlette.types import ASGIApp

__all__ = ["build_app"]


def build_app(
    source: StatusSource,
    config: MonitorConfig,
    *,
    read_counts: Callable[[], Samples] = dict,
    page: Sequence[BaseRoute] = (),
) -> ASGIApp:
    """Return the application over a source.

    Args:
        source: What is shown.
        config: The address that is listened at, and the token.
        read_counts: The counters and histograms of `/metrics`.
        page: The routes of the live page.

    Raises:
        MissingExtra: a package of the extra `monitor` is not installed.
    """
    with require_extra("monitor", feature=FEATURE):
        from prometheus_client.exposition import choose_encoder
        from starlette.applications import Starlette
        from starlette.responses import PlainTextResponse, Response
        from starlette.routing import Route

    registry = build_registry(source, read_counts=read_counts)

    # Starlette calls these in threads, so that none holds up the event loop.
    def get_metrics(request: Request) -> Response:
        encode, media_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), media_type=media_type)

    def get_liveness(request: Request) -> Response:
        if source.is_alive:
            return PlainTextResponse("alive\n")
        return PlainTextResponse("the driver does not make its rounds\n", 503)

    def get_readiness(request: Request) -> Response:
        if source.is_ready:
            return PlainTextResponse("ready\n")
        status = source.read_status()
        # Without the token, which a probe has not: a reason may quote paths and messages.
        is_open = config.token is None
        reason = f": {status.reason}" if status.reason and is_open else ""
        return PlainTextResponse(f"{status.state}{reason}\n", 503)

    def get_status(request: Request) -> Response:
        return Response(
            source.read_status().model_dump_json(),
            media_type="application/json",
            headers={"Cache-Control": "no-store"},
        )

    routes = [
        Route("/metrics", get_metrics),
        Route("/livez", get_liveness),
        Route("/readyz", get_readiness),
        Route("/api/status", get_status),
    ]
    return Gate(Starlette(routes=[*routes, *page]), config)
