"""Remove secrets from texts: a row identifies the image without granting access to it.

A URI loses its user name and password, and the values of parameters in its query and fragment that
are named like secrets: signatures, tokens, keys. Scheme, host, path and all other parameters stay.
Other texts stay unchanged, unless they are named like secrets.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import unquote

__all__ = [
    "NAMES_OF_SECRETS",
    "REDACTED",
    "names_secret",
    "redact_attributes",
    "redact_prose",
    "redact_text",
    "redact_uri",
]

REDACTED = "[redacted]"
"""Replaces a secret."""

NAMES_OF_SECRETS = (
    "credential|passw|passphrase|secret|token|[.]sas[.]|keystore[.]key"
    "|(api|access|account|encryption|private|provided|shared)[-_.]?key"
)
"""Matches the names of secrets: a regular expression of Python and Java, for any case.

It matches more than secrets: a setting `token.endpoint` is hidden too, which does no harm.
"""

# Also the names in HTTP headers and URIs; in settings these words name switches and paths.
_SECRET_NAME = re.compile(
    rf"{NAMES_OF_SECRETS}|authoriz|authentic|cookie|signature|session[-_.]?(id|key)"
    r"|^(auth|hmac|jwt|pwd|sas|sig)$",
    re.IGNORECASE,
)
# Without slashes, the text before the first colon may be the user's name.
# In Azure's references a container stands there.
_USER = re.compile(
    r"^(?!(?:abfss?|az)://[^:/?#@]+@[^/?#@]+(?:/|$))"
    r"((?:[a-z][a-z0-9+.-]*:)?/+|(?:https?|file|s3):)?[^/?#]*@",
    re.IGNORECASE,
)
_PARAMETER = re.compile(r"([?&;#])([^?&;#=]+)=([^&;#]*)")
_URI = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
# Within a sentence: it ends at a blank, a quote or a bracket that closes.
_URI_IN_PROSE = re.compile(r"(?<![a-z0-9+.-])[a-z][a-z0-9+.-]*+:/[^\s\"'`<>)\]}]*+", re.IGNORECASE)
# `password=…`, `"password": "…"`, `Authorization: Bearer …`; the name and what follows it.
_NAME = re.compile(r"(?<![\w.-])(?P<name>[\w.-]++)[\"']?\s*+(?P<sign>[:=]\s*+)")
_QUOTED_VALUE = (
    rf"{re.escape(REDACTED)}|\"(?:[^\"\\]|\\.)*+\"?|'(?:[^'\\]|\\.)*+'?"
    r"|(?:basic|bearer)\s++\S++"
)
_PLAIN_VALUE = r"[^\s,;&\"')}\]]++"
_VALUE = re.compile(rf"{_QUOTED_VALUE}|{_PLAIN_VALUE}", re.IGNORECASE | re.DOTALL)
# After a colon and a blank, a word that others follow is the beginning of a sentence.
_VALUE_AFTER_BLANK = re.compile(
    rf"{_QUOTED_VALUE}|{_PLAIN_VALUE}(?=[,;&\"')}}\]]|[^\S\n]*$)",
    re.IGNORECASE | re.DOTALL | re.MULTILINE,
)
# A token without a name, as in the headers of an HTTP library, and a key in the PEM format.
_UNNAMED = re.compile(
    r"(?P<scheme>\bbearer\s++)[\w.~+/=-]{16,}"
    r"|-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----.*?(?:-----END (?:[A-Z]+ )?PRIVATE KEY-----|\Z)",
    re.IGNORECASE | re.DOTALL,
)


def redact_uri(uri: str) -> str:
    """Return a reference without its secrets."""

    def redact_value(parameter: re.Match[str]) -> str:
        start, name, value = parameter.groups()
        plain = unquote(name)
        # In a URI `key` names the key of an interface, elsewhere it is an ordinary word.
        is_secret = plain.lower() == "key" or names_secret(plain)
        return f"{start}{name}={REDACTED if is_secret else value}"

    return _PARAMETER.sub(redact_value, _USER.sub(rf"\g<1>{REDACTED}@", uri))


def redact_text(text: str) -> str:
    """Return a text that is a URI without its secrets, and any other unchanged."""
    return redact_uri(text) if _URI.match(text) else text


def redact_prose(text: str) -> str:
    """Return a text without the secrets of the URIs and settings in it.

    For messages of libraries, such as `cannot connect to http://user:password@host` and
    `required username="a" password="b"`. Bearer tokens and private keys are found without a name;
    what has none of these forms is not found.
    """
    text = _URI_IN_PROSE.sub(lambda uri: redact_uri(uri[0]), text)
    text = _UNNAMED.sub(lambda found: f"{found['scheme'] or ''}{REDACTED}", text)
    parts, end = [], 0
    for found in _NAME.finditer(text):
        if found.start() < end or not names_secret(found["name"]):
            continue
        is_prose = found["sign"].startswith(":") and found["sign"] != ":"
        if value := (_VALUE_AFTER_BLANK if is_prose else _VALUE).match(text, found.end()):
            parts += [text[end : found.end()], REDACTED]
            end = value.end()
    return "".join([*parts, text[end:]])


def names_secret(name: str) -> bool:
    """Return whether a value under that name must not be shown."""
    return _SECRET_NAME.search(name) is not None


def redact_attributes(attributes: Mapping[str, str]) -> dict[str, str]:
    """Return headers and fields by name, without secrets."""
    return {
        name: REDACTED if names_secret(name) else redact_text(value)
        for name, value in attributes.items()
    }
