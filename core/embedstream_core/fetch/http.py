"""`http://` and `https://`: allowed hosts, at checked addresses; each redirect is checked too."""

from __future__ import annotations

import functools
import re
import ssl
from threading import Lock, Semaphore
from typing import Final
from urllib.parse import quote, urljoin
from weakref import WeakValueDictionary

import httpcore

from embedstream_core.fetch import network
from embedstream_core.fetch.errors import Denied, NotFound, TimedOut, TryAgain, Unreadable
from embedstream_core.fetch.headers import build_retry_error, check_encoding
from embedstream_core.fetch.limits import Deadline, read_within
from embedstream_core.fetch.references import check_form, split_reference
from embedstream_core.settings import FetchPolicy

__all__ = ["HttpSource"]

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_REDIRECTS = {301, 302, 303, 307, 308}
_MISSING = {404, 410}
_RETRIED = {408, 425, 429}
_HEADERS: Final[dict[bytes | str, bytes | str]] = {
    "User-Agent": "embedstream",
    "Accept": "*/*",
    "Accept-Encoding": "identity",
}
_IDLE_CONNECTIONS = 64
_IDLE_S = 15.0
_MAX_HOST_CHARACTERS = 253
# A name in ASCII, or an address, which urlsplit has checked where it stands in brackets.
_HOST = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*|[0-9a-f:.]*:[0-9a-f:.]*")
# The characters that a URL may hold unchanged; all others are percent-encoded.
_URL_CHARACTERS = "!#$%&'()*+,/:;=?@[]~"

# Trusts the authorities of the system and of certifi. Reading them takes 50 ms.
_default_tls = functools.cache(httpcore.default_ssl_context)


class HttpSource:
    """Fetches over pooled connections, TLS certificates checked, without proxies or cookies."""

    def __init__(
        self,
        policy: FetchPolicy,
        *,
        resolver: network.Resolver = network.resolve,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._policy = policy
        self._rules = policy.host_rules
        # Weak, because a wildcard admits any number of hosts.
        self._turns: WeakValueDictionary[str, Semaphore] = WeakValueDictionary()
        self._lock = Lock()
        self._backend = network.GuardedBackend(policy.private_networks, resolver)
        self._pool = httpcore.ConnectionPool(
            ssl_context=tls or _default_tls(),
            max_connections=None,
            max_keepalive_connections=_IDLE_CONNECTIONS,
            keepalive_expiry=_IDLE_S,
            network_backend=self._backend,
        )

    def fetch(self, uri: str, deadline: Deadline) -> bytes:
        """Return the body of a 200 response, complete and not compressed in transfer."""
        max_redirects = self._policy.max_redirects
        try:
            for _ in range(max_redirects + 1):
                url, authority = self._check_url(uri)
                headers = {"Host": authority, **_HEADERS}
                new = Semaphore(self._policy.connections_per_host)
                with self._lock:
                    turn = self._turns.setdefault(authority, new)
                with (
                    deadline.hold(turn),
                    network.use_deadline(deadline),
                    self._pool.stream("GET", url, headers=headers) as response,
                ):
                    content, location = self._read(response, deadline)
                if location is None:
                    return content
                try:
                    uri = urljoin(uri, location)
                except ValueError as error:
                    raise Unreadable("the server redirects to an invalid URL") from error
                if "@" in split_reference(uri).netloc:
                    raise Denied("a redirect with a user name or password is not followed")
                check_form(uri)
        except httpcore.TimeoutException as error:
            raise TimedOut("the server did not answer in time") from error
        except (httpcore.NetworkError, httpcore.ProtocolError) as error:
            raise TryAgain(f"the connection failed: {error}") from error
        raise Denied(f"redirected more often than max_redirects allows: {max_redirects}")

    def close(self) -> None:
        """Close all connections."""
        self._pool.close()
        self._backend.close()

    def _check_url(self, uri: str) -> tuple[httpcore.URL, str]:
        """Return the URL and its authority, `host` or `host:port`, if the policy allows them."""
        parts = split_reference(uri)
        if parts.scheme not in _DEFAULT_PORTS:
            raise Denied(f"a redirect to scheme {parts.scheme[:20]!r} is not followed")
        default_port = _DEFAULT_PORTS[parts.scheme]
        try:
            port = default_port if parts.port is None else parts.port
        except ValueError as error:
            raise Denied("not a URL: its port is not a number from 0 to 65535") from error
        host = (parts.hostname or "").rstrip(".")
        if len(host) > _MAX_HOST_CHARACTERS or not _HOST.fullmatch(host) or "\\" in uri:
            raise Denied("a web reference needs an ASCII host (write xn-- names) and no '\\'")
        authority = f"[{host}]" if ":" in host else host
        if port != default_port:
            authority = f"{authority}:{port}"
        if parts.scheme not in self._policy.schemes:
            raise Denied(f"scheme {parts.scheme!r} is not allowed")
        if not any(rule.matches(host, port, default_port) for rule in self._rules):
            allowed = ", ".join(self._policy.hosts)
            raise Denied(f"host {authority!r} is not allowed; allowed: {allowed}")
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        # Built from the checked parts, so that no second parser reads the reference differently.
        url = httpcore.URL(
            scheme=parts.scheme.encode(),
            host=host.encode(),
            port=port,
            target=quote(path, safe=_URL_CHARACTERS).encode(),
        )
        return url, authority

    def _read(self, response: httpcore.Response, deadline: Deadline) -> tuple[bytes, str | None]:
        """Return the content, or empty bytes and the location of a redirect."""
        status = response.status
        headers: dict[str, str] = {}
        for key, value in response.headers:
            name, text = key.decode("latin-1").lower(), value.decode("latin-1")
            # A header that is given more than once is one list.
            headers[name] = f"{headers[name]}, {text}" if name in headers else text
        if status in _REDIRECTS and "location" in headers:
            return b"", headers["location"]
        reason = f"the server answered {status}"
        if status in _MISSING:
            raise NotFound(reason)
        if status in _RETRIED or status >= 500:
            raise build_retry_error(reason, headers)
        if status != 200:
            raise Unreadable(reason)
        check_encoding(headers.get("content-encoding", ""))
        content = read_within(
            response.iter_stream(),
            # h11 has checked its form.
            declared_bytes=int(headers.get("content-length", "0")),
            max_bytes=self._policy.max_bytes,
            deadline=deadline,
        )
        return content, None
