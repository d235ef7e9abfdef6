"""`http://` and `https://`: allowed hosts, at checked addresses; each redirect is checked too."""

from __future__ import annotations

import re
import ssl
from typing import Final
from urllib.parse import quote, urljoin

import httpcore

from embedstream_core.fetch import network
from embedstream_core.fetch.client import HttpClient
from embedstream_core.fetch.errors import Denied, Unreadable
from embedstream_core.fetch.limits import Deadline
from embedstream_core.fetch.references import check_form, split_reference
from embedstream_core.settings import FetchPolicy

__all__ = ["HttpSource"]

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_MAX_HOST_CHARACTERS = 253
# A name in ASCII, or an address, which urlsplit has checked where it stands in brackets.
_HOST = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*|[0-9a-f:.]*:[0-9a-f:.]*")
# The characters that a URL may hold unchanged; all others are percent-encoded.
_URL_CHARACTERS = "!#$%&'()*+,/:;=?@[]~"


class HttpSource:
    """Fetches from the allowed hosts, and follows redirects to them."""

    def __init__(
        self,
        policy: FetchPolicy,
        *,
        resolver: network.Resolver = network.resolve,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._policy = policy
        self._rules = policy.host_rules
        self._client = HttpClient(
            policy, networks=policy.private_networks, resolver=resolver, tls=tls
        )

    def fetch(self, uri: str, deadline: Deadline) -> bytes:
        """Return the body of a 200 response, complete and decompressed."""
        max_redirects = self._policy.max_redirects
        for _ in range(max_redirects + 1):
            url, authority = self._check_url(uri)
            content, location = self._client.get(url, {"Host": authority}, deadline)
            if location is None:
                return content
            try:
                uri = urljoin(uri, location)
            except ValueError as error:
                raise Unreadable("the server redirects to an invalid URL") from error
            if "@" in split_reference(uri).netloc:
                raise Denied("a redirect with a user name or password is not followed")
            check_form(uri)
        raise Denied(f"redirected more often than max_redirects allows: {max_redirects}")

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

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
