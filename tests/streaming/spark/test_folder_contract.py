"""What recovery relies on in a folder: the same on a local disk, on Hadoop's file systems, and in
the memory of tests."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from embedstream.spark.folder import Folder, UnreadableFile
from memory_folder import MemoryFolder

Write = Callable[[str, bytes], None]


@pytest.fixture(
    params=[
        "memory",
        pytest.param("local disk", marks=pytest.mark.spark),
        pytest.param("Hadoop", marks=pytest.mark.spark),
    ]
)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Folder, Write]:
    """A folder that is not there yet, and a function that writes bytes into it from outside."""
    if request.param == "memory":
        memory = MemoryFolder()
        return memory, lambda name, content: memory.files.update(
            {f"{memory.location}/{name}": content}
        )

    def write(name: str, content: bytes) -> None:
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    spark: SparkSession = request.getfixturevalue("spark")
    if request.param == "local disk":
        return Folder(spark, str(tmp_path / "folder")), write
    # A view of the same disk, which Folder does not recognize as local.
    view = uuid.uuid4().hex
    hadoop = spark.sparkContext._jsc.hadoopConfiguration()
    hadoop.set(f"fs.viewfs.mounttable.{view}.link./view", tmp_path.as_uri())
    return Folder(spark, f"viewfs://{view}/view/folder"), write


@pytest.fixture
def folder(place: tuple[Folder, Write]) -> Folder:
    return place[0]


@pytest.fixture
def write(place: tuple[Folder, Write]) -> Write:
    return place[1]


class TestFolder:
    def test_a_folder_that_is_not_there_is_empty(self, folder: Folder) -> None:
        folder.check_reachable()
        assert folder.list_sizes() == {}
        assert folder.read("file") is None
        folder.delete("file")
        folder.remove_if_empty()
        assert folder.list_sizes() == {}

    def test_a_created_file_is_read_and_listed_with_its_bytes(self, folder: Folder) -> None:
        assert folder.create("file", "Grüße")
        assert folder.read("file") == "Grüße"
        assert folder.list_sizes() == {"file": 7}

    def test_a_file_is_not_created_twice(self, folder: Folder) -> None:
        assert folder.create("file", "first")
        assert not folder.create("file", "second")
        assert folder.read("file") == "first"

    def test_of_several_that_create_a_file_at_once_one_succeeds(self, folder: Folder) -> None:
        if folder.location.startswith("viewfs:"):
            pytest.skip("the disk below looks for the file first and then overwrites it")
        with ThreadPoolExecutor(4) as pool:
            created = list(pool.map(lambda number: folder.create("file", str(number)), range(4)))
        assert created.count(True) == 1
        assert folder.read("file") == str(created.index(True))

    def test_a_file_is_replaced_whether_it_is_there_or_not(self, folder: Folder) -> None:
        folder.replace("file", "a long first text")
        folder.replace("file", "second")
        assert folder.read("file") == "second"
        assert folder.create("other", "")
        folder.replace("other", "third")
        assert folder.read("other") == "third"
        assert folder.list_sizes() == {"file": 6, "other": 5}

    def test_an_empty_file_is_there(self, folder: Folder) -> None:
        assert folder.create("file", "")
        assert not folder.create("file", "")
        assert folder.read("file") == ""
        assert folder.list_sizes() == {"file": 0}

    def test_a_deleted_file_is_gone_and_can_be_created(self, folder: Folder) -> None:
        folder.create("file", "first")
        folder.create("other", "stays")
        folder.delete("file")
        assert folder.read("file") is None
        assert folder.list_sizes() == {"other": 5}
        assert folder.create("file", "second")

    def test_a_folder_within_holds_its_own_files(self, folder: Folder) -> None:
        inner = folder.get_folder("inner")
        inner.create("file", "inside")
        folder.create("file", "outside")
        assert inner.location == f"{folder.location}/inner"
        assert inner.list_sizes() == {"file": 6}
        assert folder.read("inner/file") == "inside"
        assert folder.list_sizes().keys() == {"inner", "file"}
        folder.create("inner/deep/file", "deeper")
        assert inner.get_folder("deep").read("file") == "deeper"

    def test_hidden_files_are_not_listed(self, folder: Folder, write: Write) -> None:
        write(".hidden", b"1")
        write("file", b"1")
        assert folder.list_sizes() == {"file": 1}

    def test_only_a_folder_without_visible_files_is_removed(
        self, folder: Folder, write: Write
    ) -> None:
        write("inner/.hidden", b"1")
        folder.get_folder("inner").remove_if_empty()
        assert folder.list_sizes() == {}
        write("inner/.hidden", b"1")
        write("inner/file", b"1")
        folder.get_folder("inner").remove_if_empty()
        assert folder.get_folder("inner").list_sizes() == {"file": 1}
        assert folder.read("inner/.hidden") == "1"

    def test_what_is_no_text_cannot_be_read(self, folder: Folder, write: Write) -> None:
        write("file", b"\xff\xfe")
        with pytest.raises(UnreadableFile, match="it is not UTF-8 text"):
            folder.read("file")

    def test_a_folder_cannot_be_read_as_a_file(self, folder: Folder) -> None:
        folder.create("inner/file", "inside")
        with pytest.raises(UnreadableFile):
            folder.read("inner")
