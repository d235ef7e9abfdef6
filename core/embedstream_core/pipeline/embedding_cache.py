"""A cache of embeddings by the sha256 of the content: one SQLite file for a machine's workers."""

from __future__ import annotations

import json
import logging
import sqlite3
import struct
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Self, TypeVar

import numpy as np

from embedstream_core.records import Embedding, Media

__all__ = ["EmbeddingCache"]

Result = TypeVar("Result")

_log = logging.getLogger(__name__)

# A lookup takes tens of microseconds and a model milliseconds, so a long wait for the file costs
# more than it saves. Together these bound the cost of a locked file to 3% of a thread's time.
_BUSY_TIMEOUT_S = 0.05
_RETRY_AFTER_S = 2.0

# WAL: readers and the one writer do not wait for each other. No syncs: the file ends with its
# executor, so nothing in it has to survive a crash of the machine.
# An ignored INSERT takes no number, so the numbers have no gaps.
_SCHEMA = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = OFF;
CREATE TABLE IF NOT EXISTS embeddings (
    number INTEGER PRIMARY KEY,
    content_sha256 TEXT NOT NULL UNIQUE,
    record BLOB NOT NULL
);
"""
_INSERT = "INSERT OR IGNORE INTO embeddings (content_sha256, record) VALUES (?, ?)"
_SELECT = "SELECT record FROM embeddings WHERE content_sha256 = ?"
_EVICT = "DELETE FROM embeddings WHERE number <= (SELECT max(number) FROM embeddings) - ?"

# A record is a checksum of four bytes, the length of the media's JSON, that, and the vector.
_LENGTH = struct.Struct("<I")


class EmbeddingCache:
    """A file of at most `entries` embeddings, shared by threads and processes of one machine.

    Beyond that the oldest are evicted. It never raises: while the file is locked, broken or
    missing, nothing is found or stored, and after an error the file is not used for 2 seconds.
    """

    def __init__(self, path: Path, *, entries: int) -> None:
        self._path = path
        self._entries = entries
        self._connection: sqlite3.Connection | None = None
        self._lock = threading.Lock()
        self._retry_at = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._close()

    def get(self, content_sha256: str) -> Embedding | None:
        """Return the embedding of the content with that sha256, or None; it names no model."""
        row = self._attempt(lambda file: file.execute(_SELECT, (content_sha256,)).fetchone())
        if row is None or not isinstance(row[0], bytes):
            return None
        checksum, record = row[0][:4], row[0][4:]
        # SQLite notices broken pages only by their structure; a wrong vector is worse than none.
        if checksum != _checksum(content_sha256, record):
            return None
        end = _LENGTH.size + _LENGTH.unpack_from(record)[0]
        media = Media(**json.loads(record[_LENGTH.size : end]))
        return Embedding(np.frombuffer(record[end:], "<f4"), media, content_sha256)

    def put(self, embeddings: Sequence[Embedding]) -> None:
        """Store embeddings that are not stored yet."""
        rows = []
        for one in embeddings:
            media = json.dumps(asdict(one.media)).encode()
            vector = np.asarray(one.vector, "<f4").tobytes()
            record = _LENGTH.pack(len(media)) + media + vector
            rows.append((one.content_sha256, _checksum(one.content_sha256, record) + record))

        def insert(file: sqlite3.Connection) -> None:
            with file:
                file.executemany(_INSERT, rows)
                file.execute(_EVICT, (self._entries,))

        self._attempt(insert)

    def _attempt(self, action: Callable[[sqlite3.Connection], Result]) -> Result | None:
        with self._lock:
            if time.monotonic() < self._retry_at:
                return None
            try:
                if self._connection is None:
                    # IMMEDIATE takes the write lock at the beginning, where SQLite can wait for it.
                    self._connection = sqlite3.connect(
                        self._path,
                        timeout=_BUSY_TIMEOUT_S,
                        isolation_level="IMMEDIATE",
                        check_same_thread=False,
                    )
                    self._connection.executescript(_SCHEMA)
                return action(self._connection)
            except sqlite3.Error as error:
                self._close()
                self._retry_at = time.monotonic() + _RETRY_AFTER_S
                _log.warning("embedding cache %s is not used for now: %s", self._path, error)
                return None

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _checksum(content_sha256: str, record: bytes) -> bytes:
    return zlib.crc32(record, zlib.crc32(content_sha256.encode())).to_bytes(4)
