"""What a user may set, with the choices and the defaults; imports neither torch nor Pillow.

The sections of a stream's configuration take both from here, so that each is written once. The
classes have no slots: a default is read as `FetchPolicy.timeout_s`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Final, Literal, get_args
from urllib.parse import urlsplit

from embedstream_core.errors import SetupError

__all__ = [
    "DEFAULT_SCHEMES",
    "FORMATS",
    "Backend",
    "DecodeLimits",
    "Device",
    "EngineSettings",
    "FetchPolicy",
    "Fidelity",
    "HostRule",
    "ImageFormat",
    "Isolation",
    "MessageFormat",
    "PipelineLimits",
    "SchemeName",
]

MessageFormat = Literal["auto", "image", "json"]
SchemeName = Literal["file", "http", "https", "s3", "s3a", "s3n"]
ImageFormat = Literal["JPEG", "PNG", "WEBP", "GIF", "BMP"]
Fidelity = Literal["exact", "fast"]
Device = Literal["auto", "cpu", "cuda"]
Backend = Literal["torch", "compile", "openvino"]

FORMATS: Final[tuple[ImageFormat, ...]] = get_args(ImageFormat)

DEFAULT_SCHEMES: Final[tuple[SchemeName, ...]] = ("file", "https", "s3")
"""The others have to be asked for by name."""

_HOST_RULE = re.compile(r"(\*\.)?[a-z0-9._-]+|\[[0-9a-f:.]+\]")


@dataclass(frozen=True)
class DecodeLimits:
    """What is refused before any pixel is decoded.

    `max_scans` bounds the passes over a JPEG: encoders make about ten, and one of a few bytes costs
    as much as one over the whole picture.
    """

    max_bytes: int = 32 * 2**20
    # Above this Pillow warns, and at twice this it refuses: a higher limit could not be kept.
    max_pixels: int = 89_478_485
    max_scans: int = 100
    formats: tuple[str, ...] = FORMATS


@dataclass(frozen=True)
class Isolation:
    """What one image may take in a process of its own.

    `memory_bytes` is on top of what the idle process has.
    """

    timeout_s: float = 30.0
    memory_bytes: int = 2 * 2**30


@dataclass(frozen=True)
class EngineSettings:
    """What runs a model, as in the section `encoder` of a stream's configuration.

    `batch_size` is the number of pictures in a forward pass; None leaves it to the device.
    """

    device: Device = "auto"
    backend: Backend = "torch"
    batch_size: int | None = None


@dataclass(frozen=True)
class PipelineLimits:
    """What may be under way at once, so that memory is bounded whatever comes.

    `rows` and `bytes` bound what is read ahead of the model, `pixels` what is being decoded;
    a single item over a bound passes alone. At most `rows` repetitions wait for one model batch.
    `decode_threads` is None for as many as torch computes with. The timeouts are the watchdog's,
    for one image and one forward pass.
    """

    fetch_threads: int = 16
    decode_threads: int | None = None
    rows: int = 256
    bytes: int = 64 * 2**20
    pixels: int = 100_000_000
    decode_timeout_s: float = Isolation.timeout_s
    forward_timeout_s: float = 300.0


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


@dataclass(frozen=True)
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

    schemes: tuple[str, ...] = DEFAULT_SCHEMES
    folders: tuple[Path, ...] = ()
    hosts: tuple[str, ...] = ()
    buckets: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    max_redirects: int = 0
    max_bytes: int = DecodeLimits.max_bytes
    timeout_s: float = 10.0
    attempts: int = 3
    backoff_s: float = 0.2
    outage_after: int | None = 20
    connections_per_host: int = 8
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
    def private_networks(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """`networks`, parsed."""
        try:
            return tuple(ip_network(network) for network in self.networks)
        except ValueError as error:
            raise SetupError(f"networks: {error}; write them as '10.1.0.0/16'") from error
