"""What may be fetched, and within which limits. An empty policy allows nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from urllib.parse import urlsplit

from embedstream_core.errors import SetupError
from embedstream_core.fetch.addresses import Network

__all__ = ["FetchPolicy", "HostRule"]

_HOST_RULE = re.compile(r"(\*\.)?[a-z0-9._-]+|\[[0-9a-f:.]+\]")


@dataclass(frozen=True, slots=True)
class HostRule:
    """One line of `FetchPolicy.hosts`. Without a port it stands for the scheme's own port."""

    name: str
    port: int | None

    @classmethod
    def parse(cls, text: str) -> HostRule:
        """Raises SetupError for what is no host name, wildcard or address."""
        match = re.fullmatch(
            rf"(?P<name>{_HOST_RULE.pattern})(:(?P<port>\d{{1,5}}))?", text.lower()
        )
        if match is None:
            raise SetupError(
                f"host {text!r} cannot be allowed: write a name, '*.example.com' or an address, "
                "without scheme or path, optionally with ':port'"
            )
        return cls(match["name"].strip("[]"), int(match["port"]) if match["port"] else None)

    def matches(self, host: str, port: int, default_port: int) -> bool:
        """Whether this rule allows that port of that host, which is in lower case."""
        if port != (self.port or default_port):
            return False
        return host.endswith(self.name[1:]) if self.name[0] == "*" else host == self.name


@dataclass(frozen=True, slots=True)
class FetchPolicy:
    """What may be fetched: nothing, unless it is named here.

    A scheme is open when it is in `schemes` and its list is not empty: `folders` for file,
    `hosts` for http and https, `buckets` for s3, s3a and s3n. Plain http, s3a and s3n have to be
    asked for in `schemes`.

    folders: what is no folder but a file allows that one file.
    hosts: exact names, or `*.example.com` for every name below it; `name:port` for a port that is
    not the scheme's own.
    networks: addresses that are not public by IANA's registries (private, loopback, link-local,
    reserved, ...) are refused unless they are in one of these, such as `10.1.0.0/16`.
    max_bytes: of one image. timeout_s: for one image in all, with waiting, retries and reading.
    backoff_s: the pause before the second attempt; it doubles with each further one.
    outage_after: so many references in a row that fail for passing reasons are an outage, which is
    no reference's fault; None knows no outage.

    Raises SetupError for values that make no sense.
    """

    schemes: tuple[str, ...] = ("file", "https", "s3")
    folders: tuple[Path, ...] = ()
    hosts: tuple[str, ...] = ()
    buckets: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    max_redirects: int = 0
    max_bytes: int = 32 * 1024 * 1024
    timeout_s: float = 30.0
    attempts: int = 3
    backoff_s: float = 0.2
    outage_after: int | None = 20
    connections_per_host: int = 16
    s3_endpoint: str | None = None
    s3_region: str | None = None

    def __post_init__(self) -> None:
        self._check_numbers()
        _ = self.host_rules, self.private_networks
        for folder in self.folders:
            if not folder.is_absolute():
                raise SetupError(f"folder '{folder}' cannot be allowed: give an absolute path")
        if self.s3_endpoint is not None and urlsplit(self.s3_endpoint).hostname is None:
            raise SetupError("s3_endpoint needs a URL such as 'https://storage.example.com'")

    def _check_numbers(self) -> None:
        lowest = {
            "max_redirects": 0,
            "max_bytes": 1,
            "attempts": 1,
            "backoff_s": 0,
            "connections_per_host": 1,
        }
        for name, least in lowest.items():
            if getattr(self, name) < least:
                raise SetupError(f"{name} is {getattr(self, name)}; it is at least {least}")
        if self.outage_after is not None and self.outage_after < 1:
            raise SetupError(f"outage_after is {self.outage_after}; it is at least 1, or None")
        if not self.timeout_s > 0:
            raise SetupError(f"timeout_s is {self.timeout_s}; it is more than 0")

    @property
    def host_rules(self) -> tuple[HostRule, ...]:
        """`hosts`, parsed."""
        return tuple(HostRule.parse(host) for host in self.hosts)

    @property
    def private_networks(self) -> tuple[Network, ...]:
        """`networks`, parsed."""
        try:
            return tuple(ip_network(network) for network in self.networks)
        except ValueError as error:
            raise SetupError(f"networks: {error}; write them as '10.1.0.0/16'") from error
