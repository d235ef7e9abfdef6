"""GET of an object from a store, whose address comes from the configuration."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from ipaddress import ip_network
from ssl import SSLContext
from typing import Final
from urllib.parse import urlsplit

import httpcore

from embedstream_core.fetch.client import HttpClient
from embedstream_core.fetch.errors import Unreadable
from embedstream_core.fetch.limits import Deadline
from embedstream_core.settings import FetchPolicy

__all__ = ["StoreClient"]

# Stores have private addresses, too: an endpoint of a virtual network, a server on premises.
_ANYWHERE: Final = (ip_network("0.0.0.0/0"), ip_network("::/0"))


class StoreClient:
    """GETs of objects; the arguments are those of `HttpClient`."""

    def __init__(
        self,
        policy: FetchPolicy,
        *,
        server: str,
        systemic: Collection[int | str],
        code_header: str = "",
        tls: SSLContext | None = None,
    ) -> None:
        self._client = HttpClient(
            policy,
            networks=_ANYWHERE,
            tls=tls,
            server=server,
            code_header=code_header,
            systemic=systemic,
        )
        self._server = server

    def get(self, address: str, headers: Mapping[str, str], deadline: Deadline) -> bytes:
        """Return the bytes at `address`. A redirect is refused: it would take the token along."""
        host = urlsplit(address).netloc
        content, location = self._client.get(
            httpcore.URL(address), {**headers, "Host": host}, deadline
        )
        if location is not None:
            raise Unreadable(f"{self._server} answered with a redirect, which is not followed")
        return content

    def close(self) -> None:
        """Close all connections."""
        self._client.close()
