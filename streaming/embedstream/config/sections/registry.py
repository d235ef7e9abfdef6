"""The section of the schema registry that a stream's producers use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import SecretStr, model_validator

from embedstream.config.field_types import PositiveSeconds, Section
from embedstream.config.secrets import Secret, SecretReference
from embedstream_core.errors import SetupError
from embedstream_core.messages.registry.connection import RegistryConnection

if TYPE_CHECKING:
    from embedstream_core.messages.registry.schema_registry import SchemaRegistry

__all__ = ["RegistryConfig"]


class RegistryConfig(Section):
    """The schema registry that knows the schemas of the messages."""

    url: str
    """The address, `https://registry.example.com:8081`."""
    username: str | None = None
    """The user, or the API key."""
    password: Secret | None = None
    """The password, or the API key's secret."""
    token: Secret | None = None
    """A bearer token."""
    tls_ca: SecretReference | None = None
    """The certificates of the authorities to trust, in PEM."""
    tls_certificate: SecretReference | None = None
    """The certificate to show, in PEM."""
    tls_key: Secret | None = None
    """The key of that certificate, in PEM."""
    timeout_s: PositiveSeconds = RegistryConnection.timeout_s
    """Seconds for one answer, with its retries."""

    @model_validator(mode="after")
    def _check(self) -> RegistryConfig:
        try:
            self._build_connection()
        except SetupError as error:
            raise ValueError(str(error)) from None
        return self

    def build_decoder(self) -> SchemaRegistry:
        """Return what decodes the values, with the secrets in clear; connects to nothing."""
        from embedstream_core.messages.registry.schema_registry import SchemaRegistry

        return SchemaRegistry(self._build_connection())

    def _build_connection(self) -> RegistryConnection:
        given: dict[str, Any] = {
            name: value.get_secret_value() if isinstance(value, SecretStr) else value
            for name, value in self
        }
        return RegistryConnection(**given)
