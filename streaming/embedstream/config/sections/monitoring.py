"""The configuration of what watches a stream: its HTTP address, its log, its guards."""

from __future__ import annotations

import ipaddress
import re
from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from embedstream.config.field_types import Section
from embedstream.config.secrets import SecretReference

__all__ = ["GuardsConfig", "LogConfig", "MonitorConfig", "is_loopback"]

_ADDRESS = re.compile(r"(?P<host>\[[0-9a-fA-F:]+\]|[^:\s\[\]]+):(?P<port>\d{1,5})")


class MonitorConfig(Section):
    """Metrics, health and the live page, which the driver serves over HTTP."""

    listen: str | None = None
    """The address, `127.0.0.1:9464`; port 0 takes a free one. By default nothing is served."""
    token: SecretReference | None = None
    """The token that every request except `/livez` and `/readyz` must have: as `Authorization:
    Bearer TOKEN`, or in a browser as the password. Required for an address that other machines can
    reach; give it as `env:NAME` or `file:PATH`."""

    @model_validator(mode="after")
    def _check(self) -> MonitorConfig:
        if self.token is not None and not self.token.get_secret_value():
            raise ValueError("token is empty, so that anybody has it; give one, or leave it out")
        if self.listen is None:
            return self
        host, _ = self.address
        if self.token is None and not is_loopback(host):
            raise ValueError(
                f"listen '{self.listen}' can be reached from other machines, so it needs a token; "
                "set monitor.token to env:NAME or file:PATH, or listen at 127.0.0.1"
            )
        return self

    @property
    def address(self) -> tuple[str, int]:
        """The host and the port of `listen`.

        Raises:
            ValueError: it is not host:port.
        """
        found = _ADDRESS.fullmatch(self.listen or "")
        if found is None or int(found["port"]) > 65535:
            raise ValueError(f"listen '{self.listen}' has to be host:port, such as 127.0.0.1:9464")
        return found["host"].strip("[]"), int(found["port"])


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach an address of that host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class LogConfig(Section):
    """What the command prints while it works."""

    format: Literal["text", "json"] = "text"
    """`text`: lines for people; `json`: an object for each event, one a line."""
    level: Literal["debug", "info", "warning", "error"] = "info"
    """The lowest level of the records that are printed."""


class GuardsConfig(Section):
    """When the stream stops itself."""

    max_failure_ratio: float | None = Field(None, gt=0, le=1)
    """The stream stops when a greater share of its newest rows are failures, before a broken
    producer fills the table with them; by default it never does."""
    window_rows: PositiveInt = 1000
    """The number of newest rows over which the ratio is computed, rounded up to whole
    micro-batches. With fewer rows the stream continues; a restart begins with none."""
