"""The cache of embeddings, with real SQLite, real threads and real processes."""

from __future__ import annotations

import hashlib
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from embedstream_core.pipeline import embedding_cache
from embedstream_core.pipeline.embedding_cache import EmbeddingCache
from embedstream_core.records import Embedding, Media

DIMENSION = 2048
MANY = 1_000


def sha256(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def embedding(number: int, *, width: int = 3) -> Embedding:
    """Return an embedding that its number determines."""
    vector = np.random.default_rng(number).standard_normal(DIMENSION).astype(np.float32)
    return Embedding(vector, Media("image/png", width=width, height=2), sha256(number))


def assert_found(found: Embedding | None, number: int) -> None:
    expected = embedding(number)
    assert found is not None
    assert found.media == expected.media
    assert found.content_sha256 == expected.content_sha256
    assert found.vector.dtype == np.float32
    np.testing.assert_array_equal(found.vector, expected.vector)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "embeddings.sqlite3"


def test_an_embedding_is_found_again_bit_for_bit(path: Path) -> None:
    with EmbeddingCache(path, entries=MANY) as cache:
        cache.put([embedding(1), embedding(2)])
        assert_found(cache.get(sha256(1)), 1)
        assert_found(cache.get(sha256(2)), 2)
        assert cache.get(sha256(3)) is None

    with EmbeddingCache(path, entries=MANY) as reopened:
        assert_found(reopened.get(sha256(1)), 1)


def test_a_cached_embedding_is_not_replaced(path: Path) -> None:
    with EmbeddingCache(path, entries=MANY) as cache:
        cache.put([embedding(1)])
        cache.put([embedding(1, width=99), embedding(2)])

        assert_found(cache.get(sha256(1)), 1)
        assert_found(cache.get(sha256(2)), 2)


@pytest.mark.parametrize("at_once", [1, 3, 40])
def test_the_oldest_are_evicted_beyond_the_limit(path: Path, at_once: int) -> None:
    with EmbeddingCache(path, entries=10) as cache:
        for first in range(0, 40, at_once):
            numbers = range(first, min(first + at_once, 40))
            cache.put([embedding(number) for number in numbers])
            cache.put([embedding(number) for number in numbers[-10:]])

        found = [number for number in range(40) if cache.get(sha256(number))]

    assert found == [*range(30, 40)]


PUT_FROM_A_PROCESS = """
import sys
from pathlib import Path
import numpy as np
from embedstream_core.pipeline.embedding_cache import EmbeddingCache
from embedstream_core.records import Embedding, Media

path, vectors, *sha256s = sys.argv[1:]
with EmbeddingCache(Path(path), entries=1_000) as cache:
    for sha256, vector in zip(sha256s, np.load(vectors), strict=True):
        cache.put([Embedding(vector, Media("image/png", width=3, height=2), sha256)])
"""


def test_processes_share_one_file(path: Path) -> None:
    parts = [range(30), range(20, 50)]
    with EmbeddingCache(path, entries=MANY) as cache:
        # The file exists, so neither process has to wait for the other to create it.
        cache.put([embedding(100)])
        processes = [putting(path, numbers) for numbers in parts]
        assert [process.wait() for process in processes] == [0, 0]
        found = {number: cache.get(sha256(number)) for number in range(50)}

    # A process that met a busy file may have skipped some; none is wrong.
    assert any(found.values())
    for number, its_embedding in found.items():
        if its_embedding is not None:
            assert_found(its_embedding, number)


def putting(path: Path, numbers: range) -> subprocess.Popen[bytes]:
    vectors = path.with_name(f"{numbers.start}.npy")
    np.save(vectors, [embedding(number).vector for number in numbers])
    sha256s = map(sha256, numbers)
    return subprocess.Popen(
        [sys.executable, "-c", PUT_FROM_A_PROCESS, str(path), str(vectors), *sha256s]
    )


def test_threads_share_one_file(path: Path) -> None:
    with EmbeddingCache(path, entries=MANY) as cache, ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: cache.put([embedding(number)]), range(100)))
        found = list(threads.map(lambda number: cache.get(sha256(number)), range(100)))

    for number, its_embedding in enumerate(found):
        assert_found(its_embedding, number)


# Files that cannot be used.


def overwrite(path: Path) -> None:
    path.write_bytes(b"no database" * 1_000)


def overwrite_the_middle(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\x5a" * 20_000)


def cut(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def replace_by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [overwrite, overwrite_the_middle, cut, replace_by_a_folder])
def test_a_broken_file_gives_no_wrong_embedding(path: Path, damage: Callable[[Path], None]) -> None:
    with EmbeddingCache(path, entries=MANY) as cache:
        cache.put([embedding(number) for number in range(20)])

    damage(path)

    for number in range(20):
        with EmbeddingCache(path, entries=MANY) as cache:
            found = cache.get(sha256(number))
            cache.put([embedding(number + 100)])
        if found is not None:
            assert_found(found, number)


def test_a_file_broken_in_use_raises_nothing(path: Path) -> None:
    with EmbeddingCache(path, entries=MANY) as cache:
        cache.put([embedding(number) for number in range(20)])
        overwrite(path)
        for number in range(20):
            found = cache.get(sha256(number))
            cache.put([embedding(number + 100)])
            if found is not None:
                assert_found(found, number)


@pytest.mark.parametrize("spoiled", [0, 4, 8, 12, 4_000, -1])
def test_a_record_with_one_wrong_byte_is_not_found(path: Path, spoiled: int) -> None:
    with EmbeddingCache(path, entries=MANY) as cache:
        cache.put([embedding(1)])
        with sqlite3.connect(path) as connection:
            ((record,),) = connection.execute("SELECT record FROM embeddings").fetchall()
            wrong = bytearray(record)
            wrong[spoiled] ^= 1
            connection.execute("UPDATE embeddings SET record = ?", (bytes(wrong),))
        connection.close()

        assert cache.get(sha256(1)) is None


@pytest.mark.parametrize("record", [b"", b"short", "text", 7, b"\0" * 12, b"\0" * 13])
def test_an_invalid_record_is_not_found(path: Path, record: object) -> None:
    with EmbeddingCache(path, entries=MANY) as cache:
        cache.put([embedding(1)])
        with sqlite3.connect(path) as connection:
            connection.execute("UPDATE embeddings SET record = ?", (record,))
        connection.close()

        assert cache.get(sha256(1)) is None


def test_without_a_folder_nothing_is_found(tmp_path: Path) -> None:
    with EmbeddingCache(tmp_path / "nowhere" / "embeddings.sqlite3", entries=MANY) as cache:
        cache.put([embedding(1)])
        assert cache.get(sha256(1)) is None


def test_a_locked_file_delays_no_thread_and_is_used_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding_cache, "_RETRY_AFTER_S", 0.5)
    with EmbeddingCache(path, entries=MANY) as cache:
        cache.put([embedding(1)])
    owner = sqlite3.connect(path, isolation_level=None)
    owner.execute("PRAGMA locking_mode = EXCLUSIVE")
    owner.execute("BEGIN EXCLUSIVE")

    with EmbeddingCache(path, entries=MANY) as cache:
        began = time.monotonic()
        assert [cache.get(sha256(1)) for _ in range(200)] == [None] * 200
        cache.put([embedding(2)])
        assert time.monotonic() - began < 0.5
        owner.close()
        time.sleep(0.6)

        assert_found(cache.get(sha256(1)), 1)
        assert cache.get(sha256(2)) is None
