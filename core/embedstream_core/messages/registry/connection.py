"""How a schema registry is reached."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from embedstream_core.errors import SetupError

__all__ = ["RegistryConnection"]

_TOKEN = re.compile("[!-~]+")


@dataclass(frozen=True)
class RegistryConnection:
    """The address of a schema registry and what it asks for, with the secrets in clear.

    `url` may have a path, such as `https://registry.example.com/contexts/.staging`. `tls_ca`,
    `tls_certificate` and `tls_key` are texts in PEM. `timeout_s` is for one answer, with retries.

    Raises:
        SetupError: a value is not valid.
    """

    url: str
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    tls_ca: str | None = field(default=None, repr=False)
    tls_certificate: str | None = field(default=None, repr=False)
    tls_key: str | None = field(default=None, repr=False)
    timeout_s: float = 10.0

    def __post_init__(self) -> None:
        if not _is_address(self.url):
            # The address may hold a password.
            raise SetupError(
                "url has to be the address of a schema registry, such as "
                "https://registry.example.com:8081, without user, password and query"
            )
        if self.token is not None and self.username is not None:
            raise SetupError("give username and password, or token, not both")
        if self.token is not None and not _TOKEN.fullmatch(self.token):
            raise SetupError("token has a blank, a line break or a letter that is not ASCII")
        if self.password is not None and self.username is None:
            raise SetupError("password needs username")
        if self.tls_key is not None and self.tls_certificate is None:
            raise SetupError("tls_key needs tls_certificate")
        if not self.timeout_s > 0:
            raise SetupError(f"timeout_s is {self.timeout_s}; it is more than 0")


def _is_address(url: str) -> bool:
    """Return whether a text is a URL without user, query and fragment."""
    try:
        parts = urlsplit(url)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    return is_url and url.isascii() and not any(mark in url for mark in "@?#")
