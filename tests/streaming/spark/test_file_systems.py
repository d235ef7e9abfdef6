"""An unusable location is one sentence, whether it is on a local disk or elsewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from embedstream.config.locations import make_absolute
from embedstream.spark.hadoop import explain_location
from embedstream.spark.local_disk import check_writable, explain_disk_error
from embedstream_core.errors import SetupError


@pytest.mark.parametrize("location", ["dbfs:/mnt/t", "hdfs:/t", "s3a://bucket/t"])
def test_a_location_elsewhere_is_not_checked(location: str) -> None:
    check_writable("table.path", location)
    assert (
        explain_disk_error(Exception("No space left on device"), {"table.path": location}) is None
    )


def test_a_file_uri_is_checked_as_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    location = make_absolute(f"file:{tmp_path}/file/table")
    with pytest.raises(SetupError, match=r"table\.path '.*/file/table' cannot be written"):
        check_writable("table.path", location)


@pytest.mark.parametrize(
    ("location", "kinds", "message"),
    [
        ("s3://b/t", {"UnsupportedFileSystemException"}, "no file system for .*: write s3a://"),
        ("gs://b/t", {"UnsupportedFileSystemException"}, "no file system for .*gcs-connector"),
        (
            "abfss://c@a/t",
            {"RuntimeException", "ClassNotFoundException"},
            "no file system for .*hadoop-azure",
        ),
        ("s3a://b/t", {"ClassNotFoundException"}, "no file system for .*add s3 to spark.jar_sets"),
        ("odd:/t", {"UnsupportedFileSystemException"}, "no file system for .*another jar has it"),
        ("hdfs:/t", {"IllegalArgumentException"}, "is not a location that Spark can read"),
        ("hdfs:/t", {"IOException"}, "cannot be reached"),
        (
            "hdfs://n/t",
            {"IllegalArgumentException", "UnknownHostException"},
            "cannot be reached .*spark.options",
        ),
        ("hdfs://n/t", {"ConnectException"}, "cannot be reached"),
    ],
)
def test_a_java_exception_over_a_location_becomes_a_sentence(
    location: str, kinds: set[str], message: str
) -> None:
    text = explain_location(location, kinds, "what Java says")
    assert f"'{location}'" in text
    assert "(what Java says)" in text
    assert re.search(message, text)
