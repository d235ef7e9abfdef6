"""What a row keeps of texts that may carry secrets: enough to find the image, not to fetch it.

Of a URI the user name and password go, and in its query and fragment the values of what names a
secret: signatures, tokens, keys. Scheme, host, path and all other parameters stay. Other texts stay
as they are, unless their name says that they are secret.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import unquote

__all__ = [
    "NAMES_OF_SECRETS",
    "REDACTED",
    "names_secret",
    "redacted_attributes",
    "redacted_text",
    "redacted_uri",
]

REDACTED = "[redacted]"
"""Stands where a secret was."""

NAMES_OF_SECRETS = (
    "credential|passw|passphrase|secret|token|[.]sas[.]|keystore[.]key"
    "|(api|access|account|encryption|private|provided|shared)[-_.]?key"
)
"""What the names of secrets hold, as a regular expression of Python and Java for any case.

It matches more than secrets: a setting `token.endpoint` is hidden too, which does no harm.
"""

# Those of HTTP headers and of parameters in URIs. As names of settings they are switches and paths.
_SECRET_NAME = re.compile(
    rf"{NAMES_OF_SECRETS}|authoriz|authentic|cookie|signature|session[-_.]?(id|key)"
    r"|^(auth|hmac|jwt|pwd|sas|sig)$",
    re.IGNORECASE,
)
# Without slashes, what stands before the first colon may be the user's name.
_USER = re.compile(r"^((?:[a-z][a-z0-9+.-]*:)?/+|(?:https?|file|s3):)?[^/?#]*@", re.IGNORECASE)
_PARAMETER = re.compile(r"([?&;#])([^?&;#=]+)=([^&;#]*)")
_URI = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def redacted_uri(uri: str) -> str:
    """A reference without its secrets; it is the same where there are none."""
    return _PARAMETER.sub(_without_secret, _USER.sub(rf"\g<1>{REDACTED}@", uri))


def redacted_text(text: str) -> str:
    """A text that is a URI without its secrets; any other as it is."""
    return redacted_uri(text) if _URI.match(text) else text


def names_secret(name: str) -> bool:
    """Whether a value under that name must not be shown."""
    return _SECRET_NAME.search(name) is not None


def redacted_attributes(attributes: Mapping[str, str]) -> dict[str, str]:
    """Headers and fields by name, without secrets."""
    return {
        name: REDACTED if names_secret(name) else redacted_text(value)
        for name, value in attributes.items()
    }


def _without_secret(parameter: re.Match[str]) -> str:
    start, name, value = parameter.groups()
    plain = unquote(name)
    # In a URI that is what an interface asks for, elsewhere a word like any other.
    secret = plain.lower() == "key" or names_secret(plain)
    return f"{start}{name}={REDACTED if secret else value}"
