"""The HTTP API of a schema registry: what a consumer needs of it.

https://docs.confluent.io/platform/current/schema-registry/develop/api.html
"""

from __future__ import annotations

import base64
import json
import random
import ssl
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, urlsplit

import httpcore

from embedstream_core.errors import SetupError, SystemicError
from embedstream_core.messages.registry.connection import RegistryConnection

__all__ = ["RegisteredSchema", "RegistryClient"]

_ATTEMPTS = 3
_PAUSE_S = 0.2
# Kafka's limit for a message, and so a registry's for a schema, is 1 MB by default.
_MAX_ANSWER_BYTES = 8 * 2**20
_MAX_REFERENCES = 200
_RETRIED = {408, 425, 429}
# Subject, version or schema not found, and a version that cannot be one. A 404 without such a code
# is not the answer of a registry.
_UNKNOWN: Final = (40401, 40402, 40403, 42202)
# Not seeded, so that workers forked from one process do not all pause equally long.
_RANDOM = random.SystemRandom()


@dataclass(frozen=True, slots=True)
class RegisteredSchema:
    """A schema, and the names and texts of those that it refers to, each after its own references.

    `kind` is AVRO, PROTOBUF, JSON, or what else the registry holds. The texts of Protobuf are
    descriptors in base64.
    """

    kind: str
    text: str
    references: tuple[tuple[str, str], ...]


class RegistryClient:
    """Asks one registry over pooled connections, without proxies, cookies or redirects.

    Raises:
        SetupError: the certificates or the key are not valid.
    """

    def __init__(
        self,
        connection: RegistryConnection,
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url = connection.url.rstrip("/")
        self._timeout_s = connection.timeout_s
        self._sleep = sleep
        self._clock = clock
        self._headers = [
            ("Host", urlsplit(self._url).netloc),
            ("User-Agent", "embedstream"),
            ("Accept", "application/vnd.schemaregistry.v1+json, application/json"),
            *_build_authorization(connection),
        ]
        self._pool = httpcore.ConnectionPool(ssl_context=_build_tls(connection))

    def close(self) -> None:
        """Close all connections."""
        self._pool.close()

    def check(self) -> str:
        """Ask for the subjects, and return in a few words what the registry answered.

        Raises:
            SystemicError: it cannot be asked now, refuses the credentials, or is not a registry.
        """
        status, body = self._ask("/subjects?limit=1")
        if status == 403:
            return "it answers, and does not list its subjects"
        if not isinstance(self._read(status, body), list):
            raise SystemicError(f"{self._url} answers, but not like a schema registry")
        return "it answers"

    def find_schema(self, path: str) -> RegisteredSchema:
        """Return a schema by its path below `/schemas/`, such as `ids/7`, with its references.

        Raises:
            ValueError: the registry does not hold it, or one of its references.
            SystemicError: it cannot be asked now, or refuses the credentials.
        """
        answer = self._get(f"/schemas/{path}")
        kind, query = _read_text(answer, "schemaType", "AVRO"), "deleted=true"
        if kind == "PROTOBUF":
            # Python has no parser of the text that is as good as the descriptor.
            answer = self._get(f"/schemas/{path}?format=serialized")
            query += "&format=serialized"
        found: dict[tuple[str, int], tuple[str, str]] = {}
        # JSON is read without its schema.
        if kind != "JSON":
            try:
                self._find_references(answer, query, found, set())
            except (AttributeError, KeyError, TypeError):
                raise ValueError("its references are not well formed") from None
        return RegisteredSchema(kind, _read_text(answer, "schema"), tuple(found.values()))

    def _find_references(
        self,
        schema: Mapping[str, Any],
        query: str,
        found: dict[tuple[str, int], tuple[str, str]],
        seen: set[tuple[str, int]],
    ) -> None:
        """Add the references of a schema to `found`, each once and after its own."""
        for one in schema.get("references") or ():
            key = subject, version = _read_text(one, "subject"), int(one["version"])
            if key in seen:
                continue
            seen.add(key)
            if len(seen) > _MAX_REFERENCES:
                raise ValueError(f"it has more than {_MAX_REFERENCES} references")
            answer = self._get(f"/subjects/{quote(subject, safe='')}/versions/{version}?{query}")
            self._find_references(answer, query, found, seen)
            found[key] = _read_text(one, "name"), _read_text(answer, "schema")

    def _get(self, target: str) -> Mapping[str, Any]:
        status, body = self._ask(target)
        # A message alone chooses to name its schema so, and a registry may not know this way.
        if status in (400, 404, 405) and target.startswith("/schemas/guids/"):
            raise ValueError("the registry does not hold it, or does not find schemas by UUID")
        answer = self._read(status, body)
        if isinstance(answer, dict):
            return answer
        raise SystemicError(f"the schema registry {self._url} answers without a schema")

    def _ask(self, target: str) -> tuple[int, bytes]:
        """Return the status and the body of an answer, after retries where these could help."""
        ends_at = self._clock() + self._timeout_s
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                status, body = self._try(target, ends_at)
                # 501: it will never do what was asked.
                if status not in _RETRIED and (status < 500 or status == 501):
                    return status, body
                reason = f"it answered {status}"
            except (httpcore.NetworkError, httpcore.ProtocolError) as error:
                reason = f"the connection failed: {error}"
                # The pool raises it again from None, which leaves the context.
                if isinstance(error.__context__, ssl.SSLCertVerificationError):
                    refusal = error.__context__.verify_message
                    reason = f"its certificate is refused: {refusal}; see message.registry.tls_ca"
                    break
            except (httpcore.TimeoutException, TimeoutError):
                reason = "it did not answer in time"
            pause_s = _PAUSE_S * 2**attempt * _RANDOM.uniform(0.5, 1.0)
            if attempt == _ATTEMPTS or self._clock() + pause_s >= ends_at:
                break
            self._sleep(pause_s)
        raise SystemicError(f"the schema registry {self._url} cannot be asked: {reason}")

    def _try(self, target: str, ends_at: float) -> tuple[int, bytes]:
        """Ask once, with an equal part of the whole time."""
        timeout_s = self._timeout_s / _ATTEMPTS
        timeouts = dict.fromkeys(("connect", "read", "write", "pool"), timeout_s)
        with self._pool.stream(
            "GET", self._url + target, headers=self._headers, extensions={"timeout": timeouts}
        ) as response:
            body = bytearray()
            for chunk in response.iter_stream():
                body += chunk
                if len(body) > _MAX_ANSWER_BYTES:
                    raise ValueError(f"the answer has more than {_MAX_ANSWER_BYTES} bytes")
                if self._clock() > ends_at:
                    raise TimeoutError
            return response.status, bytes(body)

    def _read(self, status: int, body: bytes) -> Any:
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError):
            answer = None
        if status == 200 and answer is not None:
            return answer
        if status == 401:
            raise SystemicError(
                f"the schema registry {self._url} refuses the credentials (401): check username "
                "and password, or token, in message.registry"
            )
        if status == 403:
            raise SystemicError(
                f"the schema registry {self._url} does not let this user read schemas (403)"
            )
        given = answer if isinstance(answer, dict) else {}
        if status == 404 and given.get("error_code") in _UNKNOWN:
            raise ValueError("the registry does not hold it")
        raise SystemicError(
            f"{self._url} answered {status}, but not like a schema registry: check "
            "message.registry.url"
        )


def _read_text(answer: Mapping[str, Any], name: str, default: str | None = None) -> str:
    text = answer.get(name, default)
    if not isinstance(text, str):
        raise ValueError(f"the registry gives it without a '{name}'")
    return text


def _build_authorization(connection: RegistryConnection) -> list[tuple[str, str]]:
    if connection.token is not None:
        return [("Authorization", f"Bearer {connection.token}")]
    if connection.username is None:
        return []
    pair = f"{connection.username}:{connection.password or ''}".encode()
    return [("Authorization", f"Basic {base64.b64encode(pair).decode('ascii')}")]


def _build_tls(connection: RegistryConnection) -> ssl.SSLContext | None:
    """Return the authorities to trust and the certificate to show; None for httpcore's own."""
    if connection.tls_ca is None and connection.tls_certificate is None:
        return None
    try:
        if connection.tls_ca is None:
            context = httpcore.default_ssl_context()
        else:
            context = ssl.create_default_context(cadata=connection.tls_ca)
        if connection.tls_certificate is not None:
            # Python reads it from a file only; this one is private, and gone at once.
            with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
                file.write(f"{connection.tls_certificate}\n{connection.tls_key or ''}\n")
                file.flush()
                context.load_cert_chain(file.name, password="")
    except (ssl.SSLError, ValueError) as error:
        raise SetupError(
            "message.registry: tls_ca, tls_certificate and tls_key are texts in PEM, such as "
            f"file:/etc/registry/ca.pem, without a password: {error}"
        ) from None
    return context
