"""Reading image files: the fields of their headers, without decoding."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from PIL import Image
from pyspark.sql import SparkSession

from embedstream import DataFrameConfig, read_images
from embedstream.config.sections import DecodeConfig
from embedstream_core.errors import Code, SetupError

pytestmark = pytest.mark.spark


def picture(kind: str, width: int, height: int, **options: int | Image.Exif) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(data, kind, **options)
    return data.getvalue()


def test_each_file_has_a_row(spark: SparkSession, tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    whole = picture("JPEG", 40, 30)
    files = {
        "photo.jpg": (whole, 40, 30, "JPEG", None),
        "below/turned.jpg": (picture("JPEG", 40, 30, exif=turned), 30, 40, "JPEG", None),
        "below/named.txt": (picture("PNG", 5, 7), 5, 7, "PNG", None),
        # The header is whole; only decoding could tell.
        "cut.jpg": (whole[:-5], 40, 30, "JPEG", None),
        "text.jpg": (b"<html>", None, None, None, Code.IMAGE_UNSUPPORTED),
        "large.png": (picture("PNG", 200, 200), None, None, None, Code.IMAGE_TOO_LARGE),
        "below/an empty + 50%.jpg": (b"", None, None, None, Code.IMAGE_EMPTY),
        "_DSC0001.JPG": (whole, 40, 30, "JPEG", None),
        "below/_[raw]{1}/a#b?.jpg": (whole, 40, 30, "JPEG", None),
    }
    (tmp_path / "below" / "_[raw]{1}").mkdir(parents=True)
    (tmp_path / ".DS_Store").touch()
    for name, (content, *_) in files.items():
        (tmp_path / name).write_bytes(content)
    limit = DataFrameConfig(decode=DecodeConfig(max_image_pixels=10_000))

    rows = read_images(spark, str(tmp_path), config=limit).collect()

    found = {
        row.path.removeprefix(f"file:{tmp_path}/"): (
            bytes(row.content), row.width, row.height, row.format, row.error and row.error.code
        )
        for row in rows
    }  # fmt: skip
    assert found == files


def test_a_file_that_cannot_be_read_has_an_error(spark: SparkSession, tmp_path: Path) -> None:
    outside = tmp_path / "outside.jpg"
    outside.write_bytes(picture("JPEG", 40, 30))
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link.jpg").symlink_to(outside)
    (folder / "gone.jpg").symlink_to("absent")
    (folder / "large.jpg").write_bytes(bytes(10_001))
    (folder / os.fsdecode(b"\xff.jpg")).write_bytes(picture("JPEG", 40, 30))
    os.mkfifo(folder / "pipe.jpg")
    limit = DataFrameConfig(decode=DecodeConfig(max_image_bytes=10_000))

    rows = read_images(spark, str(folder), config=limit).collect()

    found = {
        row.path.rpartition("/")[2]: (bool(row.content), row.width, row.error and row.error.code)
        for row in rows
    }
    assert found == {
        "link.jpg": (True, 40, None),
        "gone.jpg": (False, None, Code.REFERENCE_NOT_FOUND),
        "large.jpg": (False, None, Code.REFERENCE_TOO_LARGE),
        "%FF.jpg": (True, 40, None),
        "pipe.jpg": (False, None, Code.REFERENCE_UNREADABLE),
    }


def test_files_that_only_spark_reads_have_rows_too(spark: SparkSession, tmp_path: Path) -> None:
    whole = picture("JPEG", 40, 30)
    for name, content in {"a [1].jpg": whole, "_b.jpg": whole, "empty.jpg": b""}.items():
        (tmp_path / name).write_bytes(content)
    mount = "fs.viewfs.mounttable.images.link./pictures"
    settings = spark.sparkContext._jsc.hadoopConfiguration()
    settings.set(mount, tmp_path.as_uri())

    rows = read_images(spark, "viewfs://images/pictures").collect()

    found = {
        row.path: (row.content and bytes(row.content), row.width, row.error and row.error.code)
        for row in rows
    }
    assert found == {
        "viewfs://images/pictures/a [1].jpg": (whole, 40, None),
        "viewfs://images/pictures/_b.jpg": (None, None, Code.REFERENCE_UNREADABLE),
        "viewfs://images/pictures/empty.jpg": (b"", None, Code.IMAGE_EMPTY),
    }


def test_an_empty_folder_has_no_row_and_a_missing_one_is_an_error(
    spark: SparkSession, tmp_path: Path
) -> None:
    empty = read_images(spark, str(tmp_path))
    assert empty.columns == ["path", "content", "width", "height", "format", "error"]
    assert empty.count() == 0
    with pytest.raises(SetupError, match=r"there is no file or folder '.*/absent'"):
        read_images(spark, str(tmp_path / "absent"))


def test_many_large_files_are_read_in_small_batches(spark: SparkSession, tmp_path: Path) -> None:
    """Together they exceed one Arrow batch, and each file still has its row."""
    for number in range(6):
        (tmp_path / f"{number}.jpg").write_bytes(bytes([number]) * 9 * 2**20)

    rows = read_images(spark, str(tmp_path)).coalesce(1).selectExpr("path", "length(content) AS n")

    found = {(row.path[-5:], row.n) for row in rows.collect()}
    assert found == {(f"{number}.jpg", 9 * 2**20) for number in range(6)}
