"""An index in LanceDB: what its crash safety and its locations rest on."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pytest

from embedstream.config.sections import IndexConfig
from embedstream.index.stores.contract import Write
from embedstream.index.stores.kinds import open_store
from embedstream.index.stores.lance_indexes import count_segments
from embedstream.index.stores.lance_location import LanceLocation, locate_index
from embedstream.index.stores.lance_reader import STATE_TABLE
from embedstream.index.stores.lancedb import LanceStore, LanceWriter
from embedstream_core.errors import MissingExtra, SetupError
from index_stores import build_keys, build_rows
from object_storage import KEYS, REGION, open_object_storage


def list_offsets(store: LanceStore, collection: str = "one") -> list[int]:
    return sorted(store.list_keys(collection)["offset"].to_pylist())


@pytest.fixture
def place(tmp_path: Path) -> LanceLocation:
    return locate_index(str(tmp_path / "index"), table="unused")


@pytest.fixture
def committed(place: LanceLocation) -> LanceLocation:
    """The location of an index whose state `a` has the rows 0 to 19 in the collection `one`."""
    with closing(LanceWriter(place)) as writer:
        writer.write([Write("one", 8, build_rows(range(20)))], "a")
    return place


class TestLocation:
    @pytest.mark.parametrize(
        ("path", "table", "uri"),
        [
            (None, "/data/table", "/data/table/_embedstream/index"),
            (None, "/data/table/", "/data/table/_embedstream/index"),
            (None, "file:///data/a b%20", "/data/a b%20/_embedstream/index"),
            (None, "s3a://bucket/table", "s3://bucket/table/_embedstream/index"),
            (None, "S3A://bucket/table", "s3://bucket/table/_embedstream/index"),
            ("s3n://bucket", "/data/table", "s3://bucket"),
            ("gs://bucket/index", "/data/table", "gs://bucket/index"),
            (
                None,
                "abfss://box@account.dfs.core.windows.net/a/table",
                "az://box/a/table/_embedstream/index",
            ),
            ("wasbs://box@account.blob.core.windows.net/i", "/data/table", "az://box/i"),
            ("/index", "hdfs://host/table", "/index"),
        ],
    )
    def test_a_location_of_spark_becomes_one_of_lance(
        self, path: str | None, table: str, uri: str
    ) -> None:
        location = locate_index(path, table=table)

        assert location.uri == uri
        assert location.folder == (Path(uri) if uri.startswith("/") else None)
        account = {"account_name": "account"} if uri.startswith("az:") else {}
        assert location.storage_options == account

    @pytest.mark.parametrize("table", ["hdfs://host/table", "dbfs:/table", "viewfs://a/b"])
    def test_a_file_system_that_lance_does_not_know_is_refused(self, table: str) -> None:
        with pytest.raises(SetupError, match=r"set index\.path"):
            locate_index(None, table=table)

    def test_a_folder_of_other_tables_is_refused(self, place: LanceLocation) -> None:
        lancedb.connect(place.uri).create_table("theirs", pa.table({"a": [1]}))

        for open_one in (LanceWriter, lambda where: LanceStore(where).read_state()):
            with pytest.raises(SetupError, match="'theirs'"):
                open_one(place)

        assert lancedb.connect(place.uri).open_table("theirs").count_rows() == 1

    def test_reading_an_index_that_does_not_exist_makes_no_folder(
        self, place: LanceLocation
    ) -> None:
        assert LanceStore(place).read_state() is None
        assert place.folder is not None
        assert not place.folder.exists()

    def test_a_folder_that_cannot_be_made_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")

        with pytest.raises(SetupError, match="file/index"):
            LanceWriter(locate_index(str(tmp_path / "file" / "index"), table="unused"))

    def test_the_missing_extra_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "lancedb", None)

        with pytest.raises(MissingExtra, match=r"pip install 'embedstream\[lancedb\]'"):
            open_store(IndexConfig(), table=str(tmp_path), mode="read")


def _add(connection: Any) -> None:
    connection.open_table("one").add(build_rows([50]))


def _delete(connection: Any) -> None:
    connection.open_table("one").delete("offset < 5")


def _create(connection: Any) -> None:
    connection.create_table("two", build_rows([1]))


def _optimize(connection: Any) -> None:
    connection.open_table("one").optimize()


def _restore(connection: Any) -> None:
    connection.open_table("one").restore(1)


STEPS: list[Callable[[Any], None]] = [_add, _delete, _create, _optimize, _restore]


class TestRestore:
    @pytest.mark.parametrize("done", range(1, len(STEPS) + 1))
    def test_steps_without_a_commit_are_undone(self, committed: LanceLocation, done: int) -> None:
        reader = LanceStore(committed)
        for step in STEPS[:done]:
            step(lancedb.connect(committed.uri))
        # A reader does not see them, nor do they stop it.
        assert list_offsets(reader) == list(range(20))

        with closing(LanceWriter(committed)) as writer:
            assert writer.read_state() == "a"
            assert writer.list_collections() == ["one"]
            assert list_offsets(writer) == list(range(20))
            writer.write([Write("two", 8, build_rows([7])), Write("one", 8, build_rows([50]))], "b")

        assert lancedb.connect(committed.uri).list_tables().tables == [STATE_TABLE, "one", "two"]
        assert reader.read_state() == "b"
        assert list_offsets(reader) == [*range(20), 50]
        assert list_offsets(reader, "two") == [7]

    def test_a_writer_that_failed_goes_on(self, committed: LanceLocation) -> None:
        with closing(LanceWriter(committed)) as writer:
            for _ in range(2):
                with pytest.raises(SetupError):
                    writer.write(
                        [
                            Write("one", 8, build_rows([50])),
                            Write("one", 9, build_rows([51], dimension=9)),
                        ],
                        "b",
                    )
                assert list_offsets(writer) == list(range(20))
            writer.write([Write("one", 8, build_rows([52]))], "c")

            assert list_offsets(writer) == [*range(20), 52]

    def test_an_index_whose_version_is_gone_is_lost(
        self, committed: LanceLocation, caplog: pytest.LogCaptureFixture
    ) -> None:
        table = lancedb.connect(committed.uri).open_table("one")
        table.add(build_rows([50]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            table.optimize(cleanup_older_than=timedelta(0))

        with caplog.at_level(logging.WARNING), closing(LanceWriter(committed)) as writer:
            assert writer.read_state() is None
            assert writer.list_collections() == []
            assert "is lost" in caplog.text
            writer.write([Write("one", 8, build_rows([1]))], "b")
            assert list_offsets(writer) == [1]

    def test_a_collection_that_is_gone_is_lost_too(self, committed: LanceLocation) -> None:
        reader = LanceStore(committed)
        assert reader.count_rows("one") == 20
        lancedb.connect(committed.uri).drop_table("one")
        with pytest.raises(SetupError):
            reader.search("one", np.ones(8, np.float32), 3)

        with closing(LanceWriter(committed)) as writer:
            assert writer.read_state() is None

        assert reader.read_state() is None


class TestOtherWriters:
    """Where no lock keeps a second writer out, as in a bucket."""

    @pytest.fixture
    def bucket(self, committed: LanceLocation) -> LanceLocation:
        return LanceLocation(committed.uri)

    def test_the_first_writer_notices_the_second(self, bucket: LanceLocation) -> None:
        first, second = LanceWriter(bucket), LanceWriter(bucket)

        changes: list[Callable[[], object]] = [
            lambda: first.write([Write("one", 8, build_rows([50]))], "first"),
            lambda: first.maintain(["one"]),
            lambda: first.drop(["one"]),
            lambda: first.build_ann("one", rows=20, dimension=8),
        ]
        for change in changes:
            with pytest.raises(SetupError, match="another process has written"):
                change()

        assert list_offsets(second) == list(range(20))
        second.write([Write("one", 8, build_rows([51]))], "second")
        assert list_offsets(LanceStore(bucket)) == [*range(20), 51]

    def test_rows_that_another_process_adds_are_not_taken_over(self, bucket: LanceLocation) -> None:
        writer = LanceWriter(bucket)
        _add(lancedb.connect(bucket.uri))

        with pytest.raises(SetupError, match="another process has written"):
            writer.write([Write("one", 8, build_rows([60]))], "b")
        writer.write([Write("one", 8, build_rows([61]))], "c")

        assert list_offsets(LanceStore(bucket)) == [*range(20), 61]


class Interrupted(LanceStore):
    """A reader during which something happens after it has opened a collection, once."""

    def __init__(self, location: LanceLocation, event: Callable[[], None]) -> None:
        super().__init__(location)
        self.events = [event]

    def _open(self, collection: str) -> Any:
        opened = super()._open(collection)
        while self.events:
            self.events.pop()()
        return opened


class TestReaders:
    @pytest.mark.parametrize("read", ["search", "get_vector", "list_keys", "sample"])
    def test_they_cope_with_files_that_are_deleted(
        self, committed: LanceLocation, read: str
    ) -> None:
        def replace_files() -> None:
            grace = timedelta(milliseconds=1)
            with closing(LanceWriter(committed, grace=grace)) as writer:
                for step in range(3):
                    rows = build_rows([step, 100 + step])
                    writer.write([Write("one", 8, rows, "upsert")], str(step))
                    writer.maintain(["one"])
                    time.sleep(0.01)
                writer.maintain(["one"])

        store = Interrupted(committed, replace_files)
        reads: dict[str, Callable[[], Any]] = {
            "search": lambda: store.search("one", np.ones(8, np.float32), 99).num_rows == 23,
            "get_vector": lambda: (
                store.get_vector("one", topic="photos", partition=0, offset=102) is not None
            ),
            "list_keys": lambda: list_offsets(store) == [*range(20), 100, 101, 102],
            "sample": lambda: store.sample("one", 99).shape == (23, 8),
        }
        assert reads[read]()
        assert store.read_state() == "2"

    def test_old_versions_are_deleted(self, committed: LanceLocation) -> None:
        with closing(LanceWriter(committed, grace=timedelta(milliseconds=1))) as writer:
            for step in range(10):
                writer.write([Write("one", 8, build_rows([100 + step]))], str(step))
            writer.maintain(["one"])

        connection = lancedb.connect(committed.uri)
        for name in ("one", STATE_TABLE):
            assert len(connection.open_table(name).list_versions()) <= 3


class TestIndexes:
    def test_they_are_built_again_when_they_have_many_segments(self, place: LanceLocation) -> None:
        keys = [f"{one % 50:02x}" for one in range(600)]
        expected = set(range(600))
        with closing(LanceWriter(place, max_segments=3)) as writer:
            rows = build_rows(range(600), message_key=keys)
            writer.write([Write("one", 8, rows)], "a")
            ann = writer.build_ann("one", rows=600, dimension=8)
            assert ann is not None
            segments = []
            for step in range(8):
                new = range(600 + 10 * step, 610 + 10 * step)
                tombstone = {"topic": ["photos"], "message_key": [keys[step]], "offset": [300]}
                deleted = build_keys([590 - step])
                buried = pa.table({**tombstone, "partition": pa.array([0], pa.int32())})
                writer.write(
                    [
                        Write("one", 8, build_rows(new, message_key=["ff" * 20_000] * 10)),
                        Write("one", 8, build_rows(range(400, 415)), "upsert"),
                        Write("one", 8, deleted=deleted, deleted_keys=buried),
                    ],
                    "b",
                )
                expected |= {*new}
                expected -= {590 - step, *range(step, 300, 50)}
                for _ in range(2):
                    # Every row is in one segment, or in none of them and is found as well.
                    found = writer.search("one", np.ones(8, np.float32), 1000, effort=30)
                    assert sorted(found["offset"].to_pylist()) == sorted(expected)
                    writer.maintain(["one"])
                segments.append(count_segments(lancedb.connect(place.uri).open_table("one")))

        assert max(segments) == 3
        assert 1 in segments[segments.index(3) :]


@pytest.fixture
def bucket_uri(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with open_object_storage() as (url, client):
        client.create_bucket(Bucket="lake")
        settings = {**KEYS, "AWS_REGION": REGION, "AWS_ENDPOINT": url, "AWS_ALLOW_HTTP": "true"}
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        yield "s3a://lake/table"


def test_an_index_lives_in_a_bucket(bucket_uri: str) -> None:
    config = IndexConfig()
    reader = open_store(config, table=bucket_uri, mode="read")
    assert reader.read_state() is None
    with closing(open_store(config, table=bucket_uri, mode="write")) as writer:
        writer.write([Write("one", 8, build_rows(range(20)))], "a")
        writer.write([Write("one", 8, build_rows([5, 30]), "upsert")], "b")
        writer.maintain(["one"])
        # No lock tells them of each other, but the later one is noticed.
        with closing(open_store(config, table=bucket_uri, mode="write")):
            pass
        with pytest.raises(SetupError, match="another process has written"):
            writer.write([], "c")

    assert reader.read_state() == "b"
    assert reader.count_rows("one") == 21
    assert reader.address == "s3://lake/table/_embedstream/index"
