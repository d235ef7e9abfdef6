"""Connections to checked addresses only, which end at their item's deadline."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from ipaddress import ip_address
from typing import Any

import httpcore

from embedstream_core.fetch.addresses import Network, is_admitted
from embedstream_core.fetch.errors import Denied, TryAgain, Unreadable
from embedstream_core.fetch.limits import Deadline

__all__ = ["GuardedBackend", "Resolver", "resolve", "use_deadline"]

Resolver = Callable[[str, int], Iterable[str]]

_LOOKUPS = 16
_deadline: ContextVar[Deadline] = ContextVar("deadline")


@contextmanager
def use_deadline(deadline: Deadline) -> Iterator[None]:
    """End every connect, read and write of this thread with `deadline`."""
    token = _deadline.set(deadline)
    try:
        yield
    finally:
        _deadline.reset(token)


def resolve(host: str, port: int) -> list[str]:
    """Return all addresses of `host`, in the order to try them."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class GuardedBackend(httpcore.NetworkBackend):
    """Resolves names itself, checks every address, and connects to exactly a checked one.

    Raises REFERENCE_DENIED, without connecting, if any address is refused. Each name is looked up
    once, because a second look-up could answer differently.
    """

    def __init__(self, networks: tuple[Network, ...], resolver: Resolver) -> None:
        self._networks = networks
        self._resolver = resolver
        self._sockets = httpcore.SyncBackend()
        # getaddrinfo has no time limit, so it runs on a thread that can be abandoned.
        self._lookups = ThreadPoolExecutor(_LOOKUPS, thread_name_prefix="resolve")

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """Try the addresses in turn; each gets its share of the time that is left."""
        deadline = _deadline.get()
        try:
            lookup = self._lookups.submit(self._resolver, host, port)
            addresses = list(deadline.wait_for(lookup))
        except (OSError, UnicodeError) as error:
            raise TryAgain(f"host {host!r} cannot be resolved") from error
        for address in addresses:
            if not is_admitted(ip_address(address), self._networks):
                allowed = ", ".join(map(str, self._networks)) or "none"
                raise Denied(
                    f"host {host!r} leads to {address}, which is not public; "
                    f"allowed networks: {allowed}"
                )
        failure: Exception = TryAgain(f"host {host!r} has no address")
        for position, address in enumerate(addresses):
            share_s = deadline.require_time_s() / (len(addresses) - position)
            try:
                return _DeadlineStream(
                    self._sockets.connect_tcp(address, port, share_s, local_address, socket_options)
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure

    def close(self) -> None:
        """Cancel the look-ups; one that is stuck ends by itself."""
        self._lookups.shutdown(wait=False, cancel_futures=True)


class _DeadlineStream(httpcore.NetworkStream):
    """A connection whose every step ends with the deadline of the item that uses it now."""

    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _deadline.get().require_time_s())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _deadline.get().require_time_s())

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        timeout_s = _deadline.get().require_time_s()
        try:
            stream = self._stream.start_tls(ssl_context, server_hostname, timeout_s)
        except httpcore.ConnectError as error:
            if isinstance(error.__cause__, ssl.SSLCertVerificationError):
                reason = error.__cause__.verify_message
                raise Unreadable(f"certificate refused: {reason}") from error
            raise
        return _DeadlineStream(stream)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
