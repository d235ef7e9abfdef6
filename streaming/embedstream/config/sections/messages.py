"""The section of how messages are read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import model_validator

from embedstream.config.field_types import Section
from embedstream.config.sections.registry import RegistryConfig
from embedstream_core.errors import SetupError
from embedstream_core.messages.fields import FieldExpressions
from embedstream_core.settings import KeyFormat, MessageFormat

if TYPE_CHECKING:
    from embedstream_core.messages.parse import MessageReader

__all__ = ["FieldsConfig", "MessageConfig"]


class FieldsConfig(Section):
    """Where a message has its fields, as JMESPath expressions."""

    id: str | None = None
    """The message's id."""
    uri: str | None = None
    """A reference, or a data URI."""
    data: str | None = None
    """The content, in base64 or as bytes."""
    text: str | None = None
    """A text, or a caption."""
    attributes: str | None = None
    """An object whose members become attributes."""
    delete: str | None = None
    """A boolean: whether the message deletes its key."""

    @model_validator(mode="after")
    def _check(self) -> FieldsConfig:
        try:
            self.build_expressions()
        except SetupError as error:
            raise ValueError(str(error)) from error
        return self

    def build_expressions(self) -> FieldExpressions:
        """Return the expressions, checked.

        Raises:
            SetupError: an expression is not valid, or none finds content.
        """
        return FieldExpressions(**dict(self))


class MessageConfig(Section):
    """How a message is read."""

    format: MessageFormat = "auto"
    """`bytes`: the value is the content's own bytes; `json`: an object with `uri`, with `data` in
    base64, or with `text`; `auto`: JSON if the value starts with `{`."""
    fields: FieldsConfig | None = None
    """Where a message of another shape has its fields, as JMESPath expressions: `{id: sku,
    uri: 'images[0].url', attributes: '{shop: store.name}'}`. The fields are `id`, `uri`, `data`,
    `text`, `attributes`, an object whose members become attributes, and `delete`, a boolean that
    makes a message delete its key. What no expression names is left out; see messages.md."""
    key: KeyFormat = "auto"
    """How a key becomes an id, if the message has none itself: `auto` as text, or `0x` and
    hexadecimal digits if it is no printable UTF-8; `utf8`, `hex`, `base64`; `int64`, `int32` and
    `int16` of Kafka's serializers; `uuid` of 16 bytes or as text. A key of another form becomes
    `0x…` too."""
    id_header: str = "image-id"
    """The header that carries the message's id."""
    registry: RegistryConfig | None = None
    """The schema registry of values in Avro, Protobuf or JSON that Confluent's serializers wrote
    (extra `registry`): `{url: 'https://registry.example.com:8081', username: stream, password:
    env:REGISTRY_PASSWORD}`. Or a bearer `token`; `tls_ca`, `tls_certificate` and `tls_key`, texts
    in PEM such as `file:/etc/registry/ca.pem`; `timeout_s`, 10 seconds by default. `password`,
    `token` and `tls_key` are given by reference; see registry.md."""
    tombstones: Literal["count", "delete"] = "count"
    """What a message without a value means: `count` only counts it; `delete` deletes its key: the
    message makes a row with the error code `deleted`, and the earlier rows of its topic, partition
    and key are hidden from the views and leave the index. `embedstream forget` deletes them."""

    @model_validator(mode="after")
    def _check(self) -> MessageConfig:
        if self.format == "bytes" and self.fields is not None:
            raise ValueError("fields are found in documents: leave them out, or format: bytes")
        if self.registry is not None and self.format == "bytes":
            raise ValueError(
                "with format bytes no schema is read; take registry away, or set format to auto"
            )
        return self

    def build_reader(self) -> MessageReader:
        """Return what reads the messages."""
        from embedstream_core.messages.parse import MessageReader

        fields = None if self.fields is None else self.fields.build_expressions()
        decoder = None if self.registry is None else self.registry.build_decoder()
        return MessageReader(self.format, self.id_header, self.key, fields, decoder)
