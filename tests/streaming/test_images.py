"""Reading image files: what their headers tell, without decoding."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image
from pyspark.sql import SparkSession

from embedstream import BatchConfig, read_images
from embedstream.config import DecodeConfig
from embedstream_core.errors import Code

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
    }
    (tmp_path / "below").mkdir()
    for name, (content, *_) in files.items():
        (tmp_path / name).write_bytes(content)
    limit = BatchConfig(decode=DecodeConfig(max_image_pixels=10_000))

    rows = read_images(spark, str(tmp_path), config=limit).collect()

    found = {
        row.path.removeprefix(f"file:{tmp_path}/"): (
            bytes(row.content), row.width, row.height, row.format, row.error and row.error.code
        )
        for row in rows
    }  # fmt: skip
    assert found == files
