"""Run the HTTP server of the driver in a thread that can neither stop nor outlive the driver."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from embedstream.config.sections.monitoring import MonitorConfig
from embedstream_core.errors import SetupError
from embedstream_core.extras import require_extra

if TYPE_CHECKING:
    from starlette.types import ASGIApp
    from uvicorn import Server

__all__ = ["FEATURE", "open_server"]

_log = logging.getLogger(__name__)

FEATURE = "monitor.listen"
"""What the extra is needed for."""

# The end of the stream waits for these: for answers in progress, then for what is cut off.
_FINISH_S = 0.4
_CUT_OFF_S = 0.5
# A connection that a client leaves open between scrapes; Prometheus asks each 15 to 60 s.
_KEEP_ALIVE_S = 75
# Clients that open connections and send nothing must not take the driver's file descriptors. Of
# more, one without a request is cut off.
_MAX_CONNECTIONS = 100


@contextmanager
def open_server(config: MonitorConfig, app: ASGIApp) -> Iterator[str]:
    """Serve an application at `config.listen`; yield the URL.

    It runs in a daemon thread with an event loop of its own. What fails there later is logged. On
    leaving, answers in progress are given half a second; then all connections are cut off.

    Raises:
        SetupError: on entering, the address cannot be listened at, or the extra is missing.
    """
    with require_extra("monitor", feature=FEATURE):
        import uvicorn
        from uvicorn.protocols.http.h11_impl import H11Protocol

    class BoundedProtocol(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > _MAX_CONNECTIONS:
                # A probe must get through, or a driver that works would be restarted.
                idle = (one for one in self.connections if one is not self and _is_idle(one))
                next(idle, self).transport.abort()

    with _listen(config) as listener:
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                lifespan="off",
                # Logging is configured by the command alone; the application logs its exceptions.
                log_config=None,
                log_level="critical",
                access_log=False,
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=1,
                http=BoundedProtocol,
                ws="none",
                loop="asyncio",
            )
        )
        thread = threading.Thread(target=_serve, args=(server, listener), name="monitor")
        thread.daemon = True
        thread.start()
        try:
            yield _build_url(config, listener)
        finally:
            server.should_exit = True
            thread.join(_FINISH_S)
            server.force_exit = True
            thread.join(_CUT_OFF_S)


def _is_idle(connection: Any) -> bool:
    """Return whether an open connection of uvicorn has no request in progress."""
    is_free = connection.cycle is None or connection.cycle.response_complete
    return is_free and not connection.transport.is_closing()


def _serve(server: Server, listener: socket.socket) -> None:
    try:
        server.run(sockets=[listener])
    # uvicorn ends its process when it cannot start.
    except (Exception, SystemExit):
        _log.warning("monitor.listen: the server ended, and the stream goes on", exc_info=True)


def _listen(config: MonitorConfig) -> socket.socket:
    host, port = config.address
    try:
        family, *_, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise SetupError(
                f"monitor.listen '{config.listen}': another program listens at port {port}; give "
                "another port, or 0 for a free one"
            ) from None
        raise SetupError(
            f"monitor.listen '{config.listen}' is no address of this machine that can be listened "
            f"at: {error.strerror or error}"
        ) from None


def _build_url(config: MonitorConfig, listener: socket.socket) -> str:
    host, _ = config.address
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{listener.getsockname()[1]}"
