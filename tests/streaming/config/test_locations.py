"""A location is a path or a URI, and a URI is not a folder in the working directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from embedstream.config.errors import ConfigError, LocationError
from embedstream.config.load import load_config
from embedstream.config.locations import (
    find_local_path,
    get_scheme,
    make_absolute,
    make_local,
    make_readable_without_spark,
)
from embedstream.follow.table_reader import open_table

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
    assert make_absolute(location) == location
    config = load_config(LOCAL, [f"table.path={location}", f"checkpoint={location}-c"])
    assert config.locations == [location, f"{location}-c"]


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
def test_a_local_location_becomes_absolute(
    location: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    wanted = path.format(here=tmp_path)
    # Where Hadoop is set up, a path alone can be on HDFS.
    uri = f"file://{wanted}" if get_scheme(location) else wanted
    assert make_absolute(location) == uri
    assert make_local(location) == str(find_local_path(uri)) == wanted
    overrides = [f"table.path={location}", f"spark.log_file={location}"]
    config = load_config(LOCAL, [*overrides, f"references.folders=[{location}]"])
    assert config.table.path == uri
    assert load_config(LOCAL, [f"checkpoint={location}"]).checkpoint == uri
    assert (config.spark.log_file, config.references.folders) == (wanted, (wanted,))


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("file://data/t", "write file:///FOLDER"),
        ("file:t", "write file:///FOLDER"),
        ("dbfs:t", r"a local folder of that name write './dbfs:t'"),
        ("C:\\data", "a Windows drive"),
        ("C:/data", "a local folder of that name write './C:/data'"),
        ("s3a//bucket/t", "lacks a colon: write s3a://"),
        ("https://store.blob.core.windows.net/t", "address of a web server"),
        ("abfss://store.dfs.core.windows.net/t", "write abfss://CONTAINER@ACCOUNT"),
        ("s3a:/bucket/t", "write s3a://BUCKET/FOLDER"),
        ("gs:///t", "write gs://BUCKET/FOLDER"),
        ("~nosuchuser/t", "has no home folder"),
        ("a\0b", "a NUL character"),
    ],
)
def test_an_invalid_location_is_refused(location: str, message: str) -> None:
    with pytest.raises(LocationError, match=message):
        make_absolute(location)


@pytest.mark.parametrize(
    ("location", "message"),
    [
        (" s3a://bucket/t", "white space"),
        ("t ", "white space"),
        ("  ", "white space"),
        ("$HOME/t", r"'\$HOME' in a location is not replaced"),
        ("s3a://bucket/${stage}/t", r"'\$\{stage\}' in a location is not replaced"),
        ("/data/$(date)/t", "not replaced"),
        ("{{ table }}", "not replaced"),
    ],
)
@pytest.mark.parametrize("key", ["table.path", "checkpoint", "spark.log_file"])
def test_what_would_become_an_odd_folder_is_refused(key: str, location: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"{key}: .*{message}"):
        load_config(LOCAL, [f"{key}={location!r}"])


@pytest.mark.parametrize("key", ["spark.log_file", "references.folders"])
def test_a_key_that_is_read_without_spark_takes_local_paths_only(key: str) -> None:
    value = "[hdfs:/t]" if key == "references.folders" else "hdfs:/t"
    with pytest.raises(ConfigError, match=rf"{key}.*'hdfs:/t' is not on a local disk"):
        load_config(LOCAL, [f"{key}={value}"])


@pytest.mark.parametrize(
    ("location", "scheme"),
    [("S3A://b/t", "s3a"), ("dbfs:/t", "dbfs"), ("/a:b", None), ("./a:b", None), ("a", None)],
)
def test_the_scheme_of_a_location(location: str, scheme: str | None) -> None:
    assert get_scheme(location) == scheme


@pytest.mark.parametrize("location", ["dbfs:/mnt/t", "hdfs:/t", "s3a://bucket/t"])
def test_a_location_elsewhere_has_no_local_path(location: str) -> None:
    assert find_local_path(location) is None


@pytest.mark.parametrize(
    ("location", "readable"),
    [
        ("/data/t", "/data/t"),
        ("FILE:/data/t", "file:///data/t"),
        ("S3A://bucket/t", "s3a://bucket/t"),
        ("s3n://bucket/t", "s3a://bucket/t"),
        ("gs://bucket/t", "gs://bucket/t"),
        ("abfss://c@store.dfs.core.windows.net/t", "abfss://c@store.dfs.core.windows.net/t"),
        ("wasbs://c@store.blob.core.windows.net/t", "abfss://c@store.dfs.core.windows.net/t"),
    ],
)
def test_a_store_that_deltalake_knows_is_read_without_spark(location: str, readable: str) -> None:
    assert make_readable_without_spark(location) == readable


@pytest.mark.parametrize(
    ("location", "instead"),
    [
        ("dbfs:/mnt/t", "the object store behind it"),
        ("DBFS:/mnt/t", "the object store behind it"),
        ("hdfs:/t", "a folder on which it is mounted"),
        ("hdfs://namenode:8020/t", "a folder on which it is mounted"),
        ("adl://store/t", "copy it"),
    ],
)
def test_a_command_without_spark_says_what_to_use_instead(location: str, instead: str) -> None:
    with pytest.raises(LocationError, match=rf"cannot be read without Spark: .*{instead}"):
        open_table(location)
    with pytest.raises(ConfigError, match="cannot be read without Spark"):
        load_config(LOCAL, [f"table.path={location}", "index.follow=true"])
