"""`http://` and `https://`: allowed hosts, at checked addresses, each redirect like a new one."""

from __future__ import annotations

import functools
import re
import ssl
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, urljoin

import httpcore

from embedstream_core.errors import ItemError
from embedstream_core.fetch import network, verdicts
from embedstream_core.fetch.headers import check_encoding, parse_retry_after
from embedstream_core.fetch.limits import Deadline, read_within
from embedstream_core.fetch.references import check_form, split_reference
from embedstream_core.settings import FetchPolicy

__all__ = ["HttpSource"]

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_REDIRECTS = {301, 302, 303, 307, 308}
_MISSING = {404, 410}
_PASSING = {408, 425, 429}
_IDLE_CONNECTIONS = 64
_IDLE_S = 15.0
_MAX_HOST_CHARACTERS = 253
# A name in ASCII, or an address, which urlsplit has checked where it stands in brackets.
_HOST = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*|[0-9a-f:.]*:[0-9a-f:.]*")
# What a URL may hold as it is; all else is percent-encoded.
_URL_CHARACTERS = "!#$%&'()*+,/:;=?@[]~"


@dataclass(frozen=True, slots=True)
class _Target:
    """A URL that the policy allows."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def url(self) -> httpcore.URL:
        """Built from the checked parts, so that no second parser reads the reference otherwise."""
        scheme, host, path = self.scheme.encode(), self.host.encode(), self.path.encode()
        return httpcore.URL(scheme=scheme, host=host, port=self.port, target=path)


@dataclass(frozen=True, slots=True)
class _Redirect:
    location: str


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
        self._gate = _HostGate(policy.connections_per_host)
        self._backend = network.GuardedBackend(policy.private_networks, resolver)
        self._pool = httpcore.ConnectionPool(
            ssl_context=tls or _public_tls(),
            max_connections=None,
            max_keepalive_connections=_IDLE_CONNECTIONS,
            keepalive_expiry=_IDLE_S,
            network_backend=self._backend,
        )

    def fetch(self, uri: str, deadline: Deadline) -> bytes:
        """The body of a 200 answer, complete and not compressed in transfer."""
        max_redirects = self._policy.max_redirects
        for _ in range(max_redirects + 1):
            answer = self._exchange(self._admitted(uri), deadline)
            if isinstance(answer, bytes):
                return answer
            uri = _followed(uri, answer.location)
        raise verdicts.denied(f"redirected more often than max_redirects allows: {max_redirects}")

    def close(self) -> None:
        """Closes all connections."""
        self._pool.close()
        self._backend.close()

    def _admitted(self, uri: str) -> _Target:
        target = _target(uri)
        if target.scheme not in self._policy.schemes:
            raise verdicts.denied(f"scheme {target.scheme!r} is not allowed")
        default_port = _DEFAULT_PORTS[target.scheme]
        if not any(rule.matches(target.host, target.port, default_port) for rule in self._rules):
            raise verdicts.denied(
                f"host {target.authority!r} is not allowed; "
                f"allowed: {verdicts.listed(self._policy.hosts)}"
            )
        return target

    def _exchange(self, target: _Target, deadline: Deadline) -> bytes | _Redirect:
        headers: dict[bytes | str, bytes | str] = {
            "Host": target.authority,
            "User-Agent": "embedstream",
            "Accept": "*/*",
            "Accept-Encoding": "identity",
        }
        with (
            self._gate.passed(target.authority, deadline),
            network.within(deadline),
            _translated(),
            self._pool.stream("GET", target.url, headers=headers) as response,
        ):
            return self._answer(response, deadline)

    def _answer(self, response: httpcore.Response, deadline: Deadline) -> bytes | _Redirect:
        headers: dict[bytes, str] = {}
        for name, value in response.headers:
            key, text = name.lower(), value.decode("latin-1")
            # A header that is given more than once is one list.
            headers[key] = f"{headers[key]}, {text}" if key in headers else text
        if response.status in _REDIRECTS and b"location" in headers:
            return _Redirect(headers[b"location"])
        if response.status != 200:
            raise _verdict(response.status, headers)
        check_encoding(headers.get(b"content-encoding", ""))
        # Its form is checked by h11 before.
        if int(headers.get(b"content-length", "0")) > self._policy.max_bytes:
            raise verdicts.too_large(self._policy.max_bytes)
        chunks = response.iter_stream()
        return read_within(chunks, max_bytes=self._policy.max_bytes, deadline=deadline)


@functools.cache
def _public_tls() -> ssl.SSLContext:
    """Trusts what the system and certifi trust; reading these takes 50 ms, so once for all."""
    return httpcore.default_ssl_context()


class _HostGate:
    """At most `limit` requests at once to one host; remembers only hosts that are in use."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._active: Counter[str] = Counter()
        self._changed = threading.Condition()

    @contextmanager
    def passed(self, host: str, deadline: Deadline) -> Iterator[None]:
        """Waits for its turn, not beyond the deadline."""
        with self._changed:
            if not self._changed.wait_for(
                lambda: self._active[host] < self._limit, deadline.remaining_s()
            ):
                raise deadline.error()
            self._active[host] += 1
        try:
            yield
        finally:
            with self._changed:
                self._active[host] -= 1
                if not self._active[host]:
                    del self._active[host]
                self._changed.notify_all()


def _target(uri: str) -> _Target:
    parts = split_reference(uri)
    if parts.scheme not in _DEFAULT_PORTS:
        raise verdicts.denied(f"a redirect to scheme {parts.scheme[:20]!r} is not followed")
    try:
        port = parts.port
    except ValueError as error:
        raise verdicts.denied("not a URL: its port is no number from 0 to 65535") from error
    host = (parts.hostname or "").rstrip(".")
    if len(host) > _MAX_HOST_CHARACTERS or not _HOST.fullmatch(host) or "\\" in uri:
        raise verdicts.denied("a web reference needs an ASCII host (write xn-- names) and no '\\'")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return _Target(
        scheme=parts.scheme,
        host=host,
        port=_DEFAULT_PORTS[parts.scheme] if port is None else port,
        path=quote(path, safe=_URL_CHARACTERS),
    )


def _followed(uri: str, location: str) -> str:
    try:
        following = urljoin(uri, location)
    except ValueError as error:
        raise verdicts.unreadable("the server redirects to what is not a URL") from error
    if "@" in split_reference(following).netloc:
        raise verdicts.denied("a redirect with a user name or password is not followed")
    check_form(following)
    return following


def _verdict(status: int, headers: Mapping[bytes, str]) -> ItemError:
    reason = f"the server answered {status}"
    if status in _MISSING:
        return verdicts.not_found(reason)
    if status in _PASSING or status >= 500:
        pause_s = parse_retry_after(headers.get(b"retry-after"), headers.get(b"date"))
        return verdicts.try_again(reason, retry_after_s=pause_s)
    return verdicts.unreadable(reason)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except httpcore.TimeoutException as error:
        raise verdicts.timed_out("the server did not answer in time") from error
    except (httpcore.NetworkError, httpcore.ProtocolError) as error:
        raise verdicts.try_again(f"the connection failed: {error}") from error
