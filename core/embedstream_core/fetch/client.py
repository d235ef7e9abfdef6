"""HTTP requests that end at their item's deadline, for web references and for object stores."""

from __future__ import annotations

import functools
import re
import ssl
from collections.abc import Collection, Mapping
from threading import Lock, Semaphore
from typing import Final
from urllib.parse import quote
from weakref import WeakValueDictionary

import httpcore

from embedstream_core.errors import SystemicError
from embedstream_core.fetch import network
from embedstream_core.fetch.addresses import Network
from embedstream_core.fetch.errors import NotFound, TimedOut, TryAgain, Unreadable
from embedstream_core.fetch.headers import build_retry_error
from embedstream_core.fetch.limits import Deadline, read_within
from embedstream_core.settings import FetchPolicy

__all__ = ["HttpClient"]

_REDIRECTS = {301, 302, 303, 307, 308}
_MISSING = {404, 410}
_RETRIED = {408, 425, 429}
_CODE = re.compile(r"\w{1,60}", re.ASCII)
_HEADERS: Final = {
    "User-Agent": "embedstream",
    "Accept": "*/*",
    "Accept-Encoding": "identity",
}
_ASCII = "".join(map(chr, range(128)))
_IDLE_CONNECTIONS = 64
_IDLE_S = 15.0

# Trusts the authorities of the system and of certifi. Reading them takes 50 ms.
_default_tls = functools.cache(httpcore.default_ssl_context)


class HttpClient:
    """GETs over pooled connections, TLS certificates checked, without proxies or cookies.

    networks: the private addresses that may be connected to.
    server: what messages call the other side.
    code_header: the header, in lower case, in which the server says what an error is.
    systemic: statuses, and codes of `code_header`, that every request would meet.
    """

    def __init__(
        self,
        policy: FetchPolicy,
        *,
        networks: tuple[Network, ...],
        resolver: network.Resolver = network.resolve,
        tls: ssl.SSLContext | None = None,
        server: str = "the server",
        code_header: str = "",
        systemic: Collection[int | str] = (),
    ) -> None:
        self._policy = policy
        self._server = server
        self._code_header = code_header
        self._systemic = systemic
        # Weak, because a wildcard admits any number of hosts.
        self._turns: WeakValueDictionary[str, Semaphore] = WeakValueDictionary()
        self._lock = Lock()
        self._backend = network.GuardedBackend(networks, resolver)
        self._pool = httpcore.ConnectionPool(
            ssl_context=tls or _default_tls(),
            max_connections=None,
            max_keepalive_connections=_IDLE_CONNECTIONS,
            keepalive_expiry=_IDLE_S,
            network_backend=self._backend,
        )

    def get(
        self, url: httpcore.URL, headers: Mapping[str, str], deadline: Deadline
    ) -> tuple[bytes, str | None]:
        """Return the whole body of a 200 response, or empty bytes and a redirect's location.

        `headers` has `Host`; `connections_per_host` counts by it.

        Raises:
            ItemError: NOT_FOUND, TOO_LARGE, or UNREADABLE for any other status.
            TransientError: the next attempt may succeed; with `Retry-After` where it is valid.
            SystemicError: for `systemic`.
        """
        authority = headers["Host"]
        all_headers = [*headers.items(), *_HEADERS.items()]
        new = Semaphore(self._policy.connections_per_host)
        with self._lock:
            turn = self._turns.setdefault(authority, new)
        try:
            with (
                deadline.hold(turn),
                network.use_deadline(deadline),
                self._pool.stream("GET", url, headers=all_headers) as response,
            ):
                return self._read(response, deadline)
        except httpcore.TimeoutException as error:
            raise TimedOut(f"{self._server} did not answer in time") from error
        except (httpcore.NetworkError, httpcore.ProtocolError) as error:
            raise TryAgain(f"the connection failed: {error}") from error

    def close(self) -> None:
        """Close all connections."""
        self._pool.close()
        self._backend.close()

    def _read(self, response: httpcore.Response, deadline: Deadline) -> tuple[bytes, str | None]:
        status = response.status
        headers: dict[str, str] = {}
        for key, value in response.headers:
            name, text = key.decode("latin-1").lower(), value.decode("latin-1")
            # A header that is given more than once is one list.
            headers[name] = f"{headers[name]}, {text}" if name in headers else text
        if status in _REDIRECTS and "location" in headers:
            # Servers write other characters as they are, mostly in UTF-8. Like browsers, send the
            # same bytes back.
            return b"", quote(headers["location"], safe=_ASCII, encoding="latin-1")
        code = headers.get(self._code_header, "")
        reason = f"{self._server} answered {status}{f' {code}' if _CODE.fullmatch(code) else ''}"
        if status in self._systemic or code in self._systemic:
            raise SystemicError(f"{reason}: check the credentials and the clock of this machine")
        if status in _MISSING:
            raise NotFound(reason)
        if status in _RETRIED or status >= 500:
            raise build_retry_error(reason, headers)
        if status != 200:
            raise Unreadable(reason)
        content = read_within(
            response.iter_stream(),
            encoding=headers.get("content-encoding", ""),
            # h11 has checked its form.
            declared_bytes=int(headers.get("content-length", "0")),
            max_bytes=self._policy.max_bytes,
            deadline=deadline,
        )
        return content, None
