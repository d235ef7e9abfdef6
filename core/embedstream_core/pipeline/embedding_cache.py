"""Embeddings that were made before, by the sha256 of the image: one file for all on a machine."""

from __future__ import annotations

import sqlite3
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from embedstream_core.records import Embedding

__all__ = ["Known", "KnownFile", "open_known"]

Found = TypeVar("Found")

# A lookup takes tens of microseconds and a model milliseconds, so waiting for the file soon costs
# more than it saves. Together they bound what a locked file may take: 3% of a thread's time.
_BUSY_S = 0.05
_REST_S = 2.0

_SETTINGS = (
    # Readers and the one writer do not wait for each other.
    "PRAGMA journal_mode = WAL",
    # The file ends with its executor: nothing in it has to outlive the machine.
    "PRAGMA synchronous = OFF",
)

_TABLE = """
CREATE TABLE IF NOT EXISTS known (
    number INTEGER PRIMARY KEY,
    content_sha256 TEXT NOT NULL UNIQUE,
    record BLOB NOT NULL
)
"""

# A row that is already there takes no number, so the numbers have no gaps.
_INSERT = "INSERT OR IGNORE INTO known (content_sha256, record) VALUES (?, ?)"
_SELECT = "SELECT record FROM known WHERE content_sha256 = ?"
_EVICT = "DELETE FROM known WHERE number <= (SELECT max(number) FROM known) - ?"

# A checksum, the width and the height; the vector follows.
_HEADER = struct.Struct("<III")


class Known(Protocol):
    """Remembers embeddings; shared by threads. It may forget, and never raises."""

    def get(self, content_sha256: str) -> Embedding | None:
        """The embedding of the image with that sha256; None where it is not known."""

    def put(self, embeddings: Sequence[Embedding]) -> None:
        """Remember embeddings; what is known already stays."""


class KnownFile:
    """A file of at most `entries` embeddings, shared by threads and processes of one machine.

    Beyond that the oldest go. Where the file is locked, broken or gone nothing is known and nothing
    is kept, and the file is left alone for a while.
    """

    def __init__(self, path: Path, *, entries: int) -> None:
        self._path = path
        self._entries = entries
        self._connection: sqlite3.Connection | None = None
        self._lock = threading.Lock()
        self._rests_until = 0.0

    def get(self, content_sha256: str) -> Embedding | None:
        row = self._attempt(lambda file: file.execute(_SELECT, (content_sha256,)).fetchone())
        return None if row is None else _embedding(content_sha256, row[0])

    def put(self, embeddings: Sequence[Embedding]) -> None:
        rows = [(embedding.content_sha256, _record(embedding)) for embedding in embeddings]
        self._attempt(lambda file: self._insert(file, rows))

    def close(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()

    def _insert(self, file: sqlite3.Connection, rows: Sequence[tuple[str, bytes]]) -> None:
        with file:
            file.executemany(_INSERT, rows)
            file.execute(_EVICT, (self._entries,))

    def _attempt(self, action: Callable[[sqlite3.Connection], Found]) -> Found | None:
        with self._lock:
            if time.monotonic() < self._rests_until:
                return None
            try:
                if self._connection is None:
                    self._connection = _connect(self._path)
                return action(self._connection)
            except sqlite3.Error:
                self._rests_until = time.monotonic() + _REST_S
                return None


@contextmanager
def open_known(path: Path, *, entries: int) -> Iterator[KnownFile]:
    """The known embeddings in a file, which is made when it is first used; closed on leaving."""
    known = KnownFile(path, entries=entries)
    try:
        yield known
    finally:
        known.close()


def _connect(path: Path) -> sqlite3.Connection:
    # IMMEDIATE takes the write lock where waiting for it is allowed: at the beginning.
    connection = sqlite3.connect(
        path, timeout=_BUSY_S, isolation_level="IMMEDIATE", check_same_thread=False
    )
    try:
        for statement in (*_SETTINGS, _TABLE):
            connection.execute(statement)
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _record(embedding: Embedding) -> bytes:
    vector = np.asarray(embedding.vector, "<f4").tobytes()
    return _HEADER.pack(_checksum(embedding, vector), embedding.width, embedding.height) + vector


def _embedding(content_sha256: str, record: object) -> Embedding | None:
    """Read a record; None where its bytes are not those that were written.

    SQLite notices broken pages only by their structure, and a wrong vector is worse than none.
    """
    if not isinstance(record, bytes) or len(record) < _HEADER.size or len(record) % 4:
        return None
    checksum, width, height = _HEADER.unpack_from(record)
    vector = np.frombuffer(record, "<f4", offset=_HEADER.size)
    embedding = Embedding(vector, width=width, height=height, content_sha256=content_sha256)
    return embedding if checksum == _checksum(embedding, record[_HEADER.size :]) else None


def _checksum(embedding: Embedding, vector: bytes) -> int:
    told = f"{embedding.content_sha256} {embedding.width} {embedding.height}"
    return zlib.crc32(vector, zlib.crc32(told.encode()))
