"""Read values that a serializer wrote with a schema from a registry, as plain documents."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from embedstream_core.errors import Code, ItemError, SetupError, Stage, SystemicError
from embedstream_core.extras import require_extra
from embedstream_core.messages.registry.avro import build_avro_reader
from embedstream_core.messages.registry.client import RegistryClient
from embedstream_core.messages.registry.connection import RegistryConnection
from embedstream_core.messages.registry.frame import read_frame
from embedstream_core.messages.registry.protobuf import build_protobuf_reader

__all__ = ["SchemaReaders", "SchemaRegistry"]

_CACHED_SCHEMAS = 256
_CACHED_REFUSALS = 1024
# A follower of the registry may not know a new schema yet, so the first pause is short. A producer
# with a wrong registry writes such ids all the time, so the pause doubles.
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 60.0


@dataclass(frozen=True)
class SchemaRegistry:
    """Decodes values in the wire format of a schema registry; safe to call from many threads.

    It can be sent to other processes. Each process has its own connections and its own schemas,
    which all equal objects in it share.
    """

    connection: RegistryConnection

    def decode(self, value: bytes, *, schema_header: bytes | None = None) -> Any:
        """Return a value as a plain document: dicts, lists, texts, numbers, booleans, None, bytes.

        `schema_header` is the header `__value_schema_id` of the message, in which newer serializers
        name the schema instead of in the value.

        Raises:
            ItemError: the value is not in the wire format, or its schema is unknown, cannot be
                used, or did not write it.
            SystemicError: the registry cannot be asked now, or refuses the credentials.
            MissingExtra: the packages for this kind of schema are not installed.
        """
        try:
            frame = read_frame(value, schema_header=schema_header)
        except ValueError as error:
            reason = f"the value is not in the wire format of a schema registry: {error}"
            raise ItemError(Code.MESSAGE_MALFORMED, Stage.MESSAGE, reason) from None
        name = frame.schema.partition("/")[2]
        fault = f"the schema {name} cannot be used"
        try:
            read = self._open().find(frame.schema)
            fault = f"the value cannot be read with the schema {name}"
            return read(frame.data)
        except RecursionError:
            reason = "it is nested too deeply"
        except ValueError as error:
            reason = str(error)
        raise ItemError(Code.MESSAGE_MALFORMED, Stage.MESSAGE, f"{fault}: {reason}")

    def check(self) -> str:
        """Ask the registry once, and return in a few words what it answered.

        Raises:
            SetupError: it cannot be asked, refuses the credentials, or is not a registry.
            MissingExtra: the packages for Avro and Protobuf are not installed.
        """
        with require_extra("registry", feature="message.registry"):
            import fastavro  # noqa: F401
            import google.protobuf  # noqa: F401
        # Not the shared client: the driver's process may be forked, and its connections with it.
        with closing(RegistryClient(self.connection)) as client:
            try:
                return client.check()
            except (SystemicError, ValueError) as error:
                raise SetupError(str(error)) from None

    def close(self) -> None:
        """Close the connections of this process, and forget the schemas."""
        with _lock:
            readers = _opened.pop(self, None)
        if readers is not None:
            readers.client.close()

    def _open(self) -> SchemaReaders:
        with _lock:
            if self not in _opened:
                _opened[self] = SchemaReaders(RegistryClient(self.connection))
            return _opened[self]


class SchemaReaders:
    """The schemas of a registry that this process has used, as functions that read their data."""

    def __init__(
        self, client: RegistryClient, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.client = client
        self._clock = clock
        self._load_cached = lru_cache(maxsize=_CACHED_SCHEMAS)(self._load)
        self._refusals: dict[str, _Refusal] = {}

    def find(self, path: str) -> Callable[[bytes], Any]:
        """Return the function that reads the data of a schema, by the schema's path.

        A schema that is unknown or cannot be used is not asked for again within a pause, which
        begins with a second and doubles up to a minute.

        Raises:
            ValueError: the schema is unknown or cannot be used.
            SystemicError: the registry cannot be asked now, or refuses the credentials.
            MissingExtra: the packages for this kind of schema are not installed.
        """
        refusal = self._refusals.get(path)
        if refusal is not None and self._clock() < refusal.ends_at:
            raise ValueError(refusal.reason)
        try:
            read = self._load_cached(path)
        except ValueError as error:
            pause_s = _FIRST_PAUSE_S if refusal is None else 2 * refusal.pause_s
            self._refuse(path, str(error), min(pause_s, _LONGEST_PAUSE_S))
            raise
        self._refusals.pop(path, None)
        return read

    def _load(self, path: str) -> Callable[[bytes], Any]:
        schema = self.client.find_schema(path)
        if schema.kind == "JSON":
            return json.loads
        build = {"AVRO": build_avro_reader, "PROTOBUF": build_protobuf_reader}.get(schema.kind)
        if build is None:
            raise ValueError(f"it is of the kind {schema.kind}, not Avro, Protobuf or JSON")
        try:
            return build(schema.text, schema.references)
        except RecursionError:
            raise ValueError("it is nested too deeply") from None

    def _refuse(self, path: str, reason: str, pause_s: float) -> None:
        if len(self._refusals) >= _CACHED_REFUSALS:
            # Another thread may have taken the oldest one.
            with suppress(KeyError, RuntimeError, StopIteration):
                del self._refusals[next(iter(self._refusals))]
        self._refusals[path] = _Refusal(reason, self._clock() + pause_s, pause_s)


@dataclass(frozen=True, slots=True)
class _Refusal:
    """Why a schema cannot be used, and until when nobody asks again."""

    reason: str
    ends_at: float
    pause_s: float


_lock = threading.Lock()
_opened: dict[SchemaRegistry, SchemaReaders] = {}
