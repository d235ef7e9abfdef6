"""Every file at a path is listed, whatever it is called, or counted as left out."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from embedstream.spark.listing import list_files
from embedstream_core.errors import SetupError

pytestmark = pytest.mark.spark

NAMES = [
    "_DSC0001.JPG",
    "_raw/b.jpg",
    "a[1]/x.jpg",
    "{x}/y.jpg",
    "back\\slash/z.jpg",
    "100%.jpg",
    "p%20c.jpg",
    "sp ace/ü é.jpg",
    "q?m#s.jpg",
    "star*.jpg",
]
HIDDEN = [".DS_Store", ".thumbs/a.jpg", ".thumbs/b.jpg", "_delta_log/0.json", "sub/_SUCCESS"]

Address = Callable[[Path], str]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder that is itself hidden, in it files of odd names and hidden ones."""
    folder = tmp_path / ".pictures"
    for name in [*NAMES, *HIDDEN]:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return folder


@pytest.fixture(params=["local", "hadoop"])
def address(request: pytest.FixtureRequest, spark: SparkSession, pictures: Path) -> Address:
    """Writes a path as it is, or on a file system that only Hadoop knows."""
    if request.param == "local":
        return str
    root = pictures.parent
    settings = spark.sparkContext._jsc.hadoopConfiguration()
    settings.set(f"fs.viewfs.mounttable.{root.name}.link./images", root.as_uri())
    return lambda path: f"viewfs://{root.name}/images/{path.relative_to(root)}"


def names(spark: SparkSession, path: str) -> list[str]:
    """The files below the folder of images."""
    return [file.partition("/.pictures/")[2] for file in list_files(spark, path).files]


def test_all_files_below_a_folder_are_listed(
    spark: SparkSession, pictures: Path, address: Address
) -> None:
    found = list_files(spark, address(pictures))
    assert names(spark, address(pictures)) == sorted(NAMES)
    assert found.hidden == 4
    assert found.folder == (str(pictures) if address is str else None)


@pytest.mark.parametrize("folder", ["_raw", "a[1]", "{x}", "back\\slash", "sp ace", ".thumbs"])
def test_an_existing_path_is_not_a_pattern(
    spark: SparkSession, pictures: Path, address: Address, folder: str
) -> None:
    expected = [name for name in [*NAMES, *HIDDEN] if name.startswith(f"{folder}/")]
    assert names(spark, address(pictures / folder)) == expected


@pytest.mark.parametrize("name", ["_DSC0001.JPG", "a[1]/x.jpg", "star*.jpg", ".DS_Store"])
def test_a_file_is_listed(spark: SparkSession, pictures: Path, address: Address, name: str) -> None:
    assert names(spark, address(pictures / name)) == [name]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.JPG", ["_DSC0001.JPG"]),
        ("{sp*,_raw}/*.jpg", ["_raw/b.jpg", "sp ace/ü é.jpg"]),
        ("?x?", ["{x}/y.jpg"]),
        ("*DS_Store", []),
        ("_d*", []),
        ("no*", []),
        ("absent.jpg", []),
    ],
)
def test_any_other_path_is_a_pattern(
    spark: SparkSession, pictures: Path, address: Address, pattern: str, expected: list[str]
) -> None:
    path = address(pictures / pattern)
    if expected:
        assert names(spark, path) == expected
    else:
        with pytest.raises(SetupError, match=r"there is no file or folder '.*', and no file"):
            list_files(spark, path)


@pytest.mark.parametrize("form", ["file:{}", "file://{}", "file://localhost{}", "FILE:{}"])
def test_a_uri_of_a_file_is_read_with_and_without_escapes(
    spark: SparkSession, pictures: Path, form: str
) -> None:
    for name in ("sp ace/ü é.jpg", "q?m#s.jpg", "100%.jpg"):
        plain, escaped = str(pictures / name), (pictures / name).as_uri().removeprefix("file://")
        assert names(spark, form.format(plain)) == [name]
        assert names(spark, form.format(escaped)) == [name]


def test_references_lead_back_to_the_files(spark: SparkSession, pictures: Path) -> None:
    found = list_files(spark, str(pictures))
    assert found.build_references() == [Path(file).as_uri() for file in found.files]


def test_relative_paths_and_home_are_known(
    spark: SparkSession, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pictures.parent)
    monkeypatch.setenv("HOME", str(pictures))
    assert names(spark, ".pictures/_raw") == names(spark, "~/_raw") == ["_raw/b.jpg"]
    with pytest.raises(SetupError, match="no file or folder ''"):
        list_files(spark, "")


def test_links_are_followed_and_each_folder_is_listed_once(
    spark: SparkSession, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    (folder / "below").mkdir(parents=True)
    (folder / "below" / "a.jpg").touch()
    (folder / "below" / "up").symlink_to(folder)
    (folder / "nowhere.jpg").symlink_to("absent")

    found = list_files(spark, str(folder))

    assert found.files == (f"{folder}/below/a.jpg", f"{folder}/nowhere.jpg")
    # Alone it is no file at all.
    with pytest.raises(SetupError, match=r"no file or folder '.*nowhere.jpg'"):
        list_files(spark, str(folder / "nowhere.jpg"))


def test_a_name_that_is_not_utf_8_is_listed(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff.jpg")).touch()
    found = list_files(spark, str(tmp_path))
    assert found.build_references() == [f"{tmp_path.as_uri()}/%FF.jpg"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_may_not_be_listed_is_reported(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o000)
    with pytest.raises(SetupError, match=r"cannot be listed: Permission denied: '.*/closed'"):
        list_files(spark, str(tmp_path))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("dbfs:/a", "no file system for 'dbfs:/a' .*only Databricks has it"),
        ("nosuch://a/b", "no file system for 'nosuch://a/b' .*add a jar"),
        ("hdfs://name.invalid:1/a", "'hdfs://name.invalid:1/a' cannot be reached .*; correct it"),
    ],
)
def test_an_unreachable_file_system_is_explained(
    spark: SparkSession, path: str, message: str
) -> None:
    with pytest.raises(SetupError, match=message):
        list_files(spark, path)


def test_an_empty_folder_holds_nothing(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / ".hidden").touch()
    found = list_files(spark, str(tmp_path))
    assert (found.files, found.hidden) == ((), 1)
