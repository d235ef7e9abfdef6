"""The jar list is exact, and nothing but the listed bytes is ever returned."""

from __future__ import annotations

import errno
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import NoReturn

import pyspark
import pytest

from embedstream.spark import jars
from embedstream.spark.jars import Jar, fetch_jars, find_jars_folder, read_jar_set
from embedstream_core.errors import SetupError

CONTENT = b"a small jar"
SMALL = Jar("org.example:small:1.0", hashlib.sha256(CONTENT).hexdigest())
WRONG = Jar("org.example:small:1.0", "0" * 64)

DECISION = Path(__file__).parents[3] / "docs" / "decisions" / "0042-short-micro-batches.md"

SPARKS = ["4.1", "4.2"]
SETS = ["broker", *(f"{name}-{spark}" for name in ("spark", "s3") for spark in SPARKS)]


class Repository(ThreadingHTTPServer):
    """A Maven repository with one jar; it keeps the paths that were requested."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), RepositoryHandler)
        self.requested: list[str] = []


class RepositoryHandler(BaseHTTPRequestHandler):
    """Serves the one jar and answers 404 to all else."""

    def do_GET(self) -> None:
        assert isinstance(self.server, Repository)
        self.server.requested.append(self.path)
        found = self.path == "/org/example/small/1.0/small-1.0.jar"
        self.send_response(200 if found else 404)
        self.send_header("Content-Length", str(len(CONTENT) if found else 0))
        self.end_headers()
        if found:
            self.wfile.write(CONTENT)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Repository]:
    """A repository on this machine that jgo's settings name, in the place of Maven's own."""
    server = Repository()
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    settings = tmp_path / "jgo.conf"
    settings.write_text(f"[repositories]\nlocal = http://127.0.0.1:{server.server_port}\n")
    monkeypatch.setenv("JGO_CONFIG_FILE", str(settings))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield server
    server.shutdown()
    server.server_close()


def list_jars(monkeypatch: pytest.MonkeyPatch, *listed: Jar) -> None:
    monkeypatch.setattr(jars, "read_jar_set", lambda _: listed)


@pytest.mark.parametrize("name", SETS)
def test_every_jar_has_an_exact_version_and_a_checksum(name: str) -> None:
    for jar in read_jar_set(name):
        assert re.fullmatch(r"[\w.-]+:[\w.-]+:\d[\w.-]*", jar.coordinate)
        assert re.fullmatch(r"[0-9a-f]{64}", jar.sha256)


@pytest.mark.parametrize("name", SETS)
def test_no_set_has_an_artifact_twice(name: str) -> None:
    artifacts = [jar.coordinate.rsplit(":", 1)[0] for jar in read_jar_set(name)]
    assert len(artifacts) == len(set(artifacts))


@pytest.mark.parametrize("name", ["spark", "s3"])
def test_no_jar_is_among_those_of_pyspark(name: str) -> None:
    folder = Path(pyspark.__file__).parent / "jars"
    shipped = {re.sub(r"-\d.*", "", path.name) for path in folder.glob("*.jar")}
    assert len(shipped) > 100
    assert not shipped & {jar.coordinate.split(":")[1] for jar in read_jar_set(name)}


@pytest.mark.parametrize("spark", SPARKS)
@pytest.mark.parametrize("name", ["spark", "s3"])
def test_a_set_is_for_the_minor_version_of_the_installed_pyspark(
    monkeypatch: pytest.MonkeyPatch, name: str, spark: str
) -> None:
    monkeypatch.setattr(pyspark, "__version__", f"{spark}.9")

    assert read_jar_set(name) == read_jar_set(f"{name}-{spark}")


@pytest.mark.parametrize("spark", SPARKS)
def test_delta_and_the_connector_are_made_for_that_spark(spark: str) -> None:
    versions = dict(jar.coordinate.rsplit(":", 1) for jar in read_jar_set(f"spark-{spark}"))

    assert f"io.delta:delta-spark_{spark}_2.13" in versions
    assert versions["org.apache.spark:spark-sql-kafka-0-10_2.13"].startswith(f"{spark}.")


def test_a_spark_without_jars_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyspark, "__version__", "4.3.0")

    with pytest.raises(SetupError) as refused:
        read_jar_set("spark")

    for part in ("PySpark 4.3.0 is installed", "4.1 and 4.2", "spark.jars: provided"):
        assert part in str(refused.value)
    assert read_jar_set("broker")


def test_an_unknown_set_is_named_with_the_known_ones() -> None:
    with pytest.raises(SetupError, match="unknown jar set 'flink'; known: broker, s3, spark"):
        read_jar_set("flink")


def test_the_file_name_is_mavens() -> None:
    assert Jar("io.delta:delta-spark_4.2_2.13:4.4.0", "").file_name == (
        "delta-spark_4.2_2.13-4.4.0.jar"
    )


def test_the_folder_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDSTREAM_JARS", "/somewhere")
    assert find_jars_folder() == Path("/somewhere")
    monkeypatch.setenv("EMBEDSTREAM_JARS", "dbfs:/jars")
    with pytest.raises(SetupError, match="'dbfs:/jars' is not on a local disk"):
        find_jars_folder()
    monkeypatch.delenv("EMBEDSTREAM_JARS")
    assert find_jars_folder() == Path.home() / ".cache" / "embedstream" / "jars"


def test_a_missing_jar_is_downloaded_once(
    tmp_path: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    list_jars(monkeypatch, SMALL)
    folder = tmp_path / "not" / "yet" / "there"
    first = fetch_jars(["example"], folder)
    requested = list(repository.requested)
    assert fetch_jars(["example", "example"], folder) == first
    assert repository.requested == requested
    assert [path.read_bytes() for path in first] == [CONTENT]


def test_nothing_but_the_jar_is_left_in_the_folder(
    tmp_path: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    list_jars(monkeypatch, SMALL)
    fetch_jars(["example"], tmp_path / "jars")
    assert [path.name for path in (tmp_path / "jars").iterdir()] == ["small-1.0.jar"]


def test_many_fetches_at_once_agree(
    tmp_path: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    list_jars(monkeypatch, SMALL)
    with ThreadPoolExecutor(8) as pool:
        fetched = list(pool.map(lambda _: fetch_jars(["example"], tmp_path / "jars"), range(16)))
    assert {path.read_bytes() for paths in fetched for path in paths} == {CONTENT}


def test_a_download_with_another_checksum_is_refused_and_not_kept(
    tmp_path: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    list_jars(monkeypatch, WRONG)
    with pytest.raises(SetupError) as error:
        fetch_jars(["example"], tmp_path / "jars")
    for part in ("small-1.0.jar", WRONG.sha256, SMALL.sha256):
        assert part in str(error.value)
    assert not list((tmp_path / "jars").iterdir())


def test_a_tampered_jar_is_refused_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    list_jars(monkeypatch, SMALL)
    (tmp_path / SMALL.file_name).write_bytes(CONTENT.replace(b"small", b"smalL"))
    with pytest.raises(SetupError, match=r"small-1\.0\.jar must have sha256 .* delete the file"):
        fetch_jars(["example"], tmp_path)


def test_a_jar_that_the_repository_lacks_is_named(
    tmp_path: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    list_jars(monkeypatch, Jar("org.example:absent:2.0", "0" * 64))
    with pytest.raises(SetupError, match=r"cannot download org\.example:absent:2\.0"):
        fetch_jars(["example"], tmp_path / "jars")


def test_no_network_says_what_to_do(
    tmp_path: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    list_jars(monkeypatch, SMALL)
    repository.shutdown()
    repository.server_close()
    with pytest.raises(SetupError, match=r"cannot download .* check the network and run again"):
        fetch_jars(["example"], tmp_path / "jars")


def test_a_folder_that_cannot_be_created_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match=r"cannot write to .*file/jars.*EMBEDSTREAM_JARS"):
        fetch_jars(["spark"], tmp_path / "file" / "jars")


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    list_jars(monkeypatch, SMALL)
    monkeypatch.setattr(jars, "TemporaryDirectory", refuse)
    with pytest.raises(SetupError, match="No space left on device; free some space"):
        fetch_jars(["example"], tmp_path)


def test_importing_loads_no_http_client() -> None:
    code = "import embedstream.spark.jars, json, sys; print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(subprocess.check_output([sys.executable, "-c", code]))
    assert "embedstream.spark.jars" in loaded
    assert not {"requests", "jgo", "pyspark", "torch"} & set(loaded)


def test_a_new_delta_is_a_reason_to_look_for_the_fix_that_replaces_a_thread() -> None:
    """The decision says what to do; it names the version without the fix."""
    listed = [jar.coordinate for name in SETS for jar in read_jar_set(name)]
    [version] = {each.rpartition(":")[2] for each in listed if each.startswith("io.delta:")}
    assert f"Delta {version}, whose jars are listed, does not contain it" in DECISION.read_text()
