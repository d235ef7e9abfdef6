"""A location is a path or a URI, and a URI is no folder below the working one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from embedstream.config.load import load_config
from embedstream.config.locations import (
    LocationError,
    absolute_location,
    local_folder,
    local_path,
    scheme_of,
)
from embedstream.config.sections import ConfigError
from embedstream.spark.folder import check_writable, disk_trouble, explain_location
from embedstream_core.errors import SetupError

LOCAL = Path(__file__).parents[3] / "conf" / "local.yaml"


@pytest.mark.parametrize(
    "location",
    [
        "dbfs:/mnt/tables/images",
        "dbfs:///mnt/tables/images",
        "hdfs:/t",
        "hdfs://namenode:8020/t",
        "viewfs:/t",
        "s3a://bucket/t",
        "gs://bucket/t",
        "abfss://container@store.dfs.core.windows.net/t",
        "wasbs://container@store.blob.core.windows.net/t",
        "adl://store/t",
        "maprfs:///t",
        "x-y.z+1:/t",
    ],
)
def test_a_uri_stays(location: str) -> None:
    assert absolute_location(location) == location
    config = load_config(LOCAL, [f"table.path={location}", f"checkpoint={location}/c"])
    assert config.locations == [location, f"{location}/c"]


@pytest.mark.parametrize(
    ("location", "path"),
    [
        ("/data/t", "/data/t"),
        ("t", "{here}/t"),
        ("./a:b", "{here}/a:b"),
        ("~/t", "/home/me/t"),
        ("file:/data/t", "/data/t"),
        ("file:///data/t", "/data/t"),
        ("FILE:/data/t", "/data/t"),
        ("file://localhost/data/t", "/data/t"),
        ("file:///data/a%20b/", "/data/a%20b"),
    ],
)
def test_what_is_on_a_local_disk_has_an_absolute_path(
    location: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    wanted = path.format(here=tmp_path)
    # Where Hadoop is set up, a path alone can be on HDFS.
    uri = f"file://{wanted}" if scheme_of(location) else wanted
    assert absolute_location(location) == uri
    assert local_folder(location) == str(local_path(uri)) == wanted
    overrides = [f"{key}={location}" for key in ("table.path", "checkpoint", "spark.log_file")]
    config = load_config(LOCAL, [*overrides, f"references.folders=[{location}]"])
    assert config.locations == [uri, uri]
    assert (config.spark.log_file, config.references.folders) == (wanted, (wanted,))


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("file://data/t", "write it as file:///FOLDER"),
        ("file:t", "write it as file:///FOLDER"),
        ("dbfs:t", r"a local folder of that name is './dbfs:t'"),
        ("C:\\data", "a drive of Windows"),
        ("C:/data", "a local folder of that name is './C:/data'"),
        ("s3a//bucket/t", "lacks a colon: write s3a://"),
        ("https://store.blob.core.windows.net/t", "address of a web server"),
        ("abfss://store.dfs.core.windows.net/t", "write abfss://CONTAINER@ACCOUNT"),
        ("s3a:/bucket/t", "write s3a://BUCKET/FOLDER"),
        ("gs:///t", "write gs://BUCKET/FOLDER"),
        ("~nosuchuser/t", "has no home folder"),
        ("a\0b", "no NUL character"),
    ],
)
def test_what_is_no_location_is_refused(location: str, message: str) -> None:
    with pytest.raises(LocationError, match=message):
        absolute_location(location)


@pytest.mark.parametrize("key", ["spark.log_file", "references.folders"])
def test_what_is_read_without_spark_is_on_a_local_disk(key: str) -> None:
    value = "[hdfs:/t]" if key == "references.folders" else "hdfs:/t"
    with pytest.raises(ConfigError, match=rf"{key}.*'hdfs:/t' is on no local disk"):
        load_config(LOCAL, [f"{key}={value}"])


@pytest.mark.parametrize(
    ("location", "scheme"),
    [("S3A://b/t", "s3a"), ("dbfs:/t", "dbfs"), ("/a:b", None), ("./a:b", None), ("a", None)],
)
def test_the_scheme_of_a_location(location: str, scheme: str | None) -> None:
    assert scheme_of(location) == scheme


@pytest.mark.parametrize("location", ["dbfs:/mnt/t", "hdfs:/t", "s3a://bucket/t"])
def test_what_is_elsewhere_is_on_no_local_disk(location: str) -> None:
    assert local_path(location) is None
    check_writable("table.path", location)
    assert disk_trouble(Exception("No space left on device"), {"table.path": location}) is None


def test_a_file_uri_is_looked_at_as_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    location = absolute_location(f"file:{tmp_path}/file/table")
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
        ("odd:/t", {"UnsupportedFileSystemException"}, "no file system for .*some jar has it"),
        ("hdfs:/t", {"IllegalArgumentException"}, "is no location that Spark can read"),
        ("hdfs:/t", {"IOException"}, "cannot be reached"),
        (
            "hdfs://n/t",
            {"IllegalArgumentException", "UnknownHostException"},
            "cannot be reached .*spark.options",
        ),
        ("hdfs://n/t", {"ConnectException"}, "cannot be reached"),
    ],
)
def test_what_java_raises_over_a_location_is_a_sentence(
    location: str, kinds: set[str], message: str
) -> None:
    told = explain_location(location, kinds, "what Java says")
    assert f"'{location}'" in told
    assert "(what Java says)" in told
    assert re.search(message, told)
