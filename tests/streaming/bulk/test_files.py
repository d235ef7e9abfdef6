"""Files in bulk, as a user runs the command."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
from pyspark.sql import Row, SparkSession
from pyspark.sql import functions as f

from doors import core_vectors, write_pictures
from embedstream.bulk.chunks import Chunk
from embedstream.bulk.files import Files
from embedstream.cli import session
from embedstream.cli.actions.bulk import explain_chunk_error
from embedstream.cli.app import main
from embedstream.cli.session import StreamFailed, explain_errors
from embedstream.config.load import load_files_config
from embedstream_core.errors import Code, SetupError
from streams import prepared

pytestmark = pytest.mark.spark


def settings(folder: Path) -> list[str]:
    return ["--from", str(folder / "pictures"), "--table", str(folder / "table"),
            "--encoder", "efficientnet_lite0", "--set", "encoder.precision=float32"]  # fmt: skip


def batch(folder: Path, *further: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "embedstream", "batch", *settings(folder), *further]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def files(
    spark: SparkSession,
    folder: Path,
    *,
    source: str | None = None,
    partition_by: str | None = None,
    **encoder: str,
) -> Files:
    config = load_files_config(
        {
            "encoder": {"name": "efficientnet_lite0", **encoder},
            "table": {"path": str(folder / "table"), "partition_by": partition_by},
        }
    )
    return Files(spark, config, prepared(config)[0], source or str(folder / "pictures"))


def rows(spark: SparkSession, folder: Path) -> dict[str, Row]:
    found = spark.read.format("delta").load(str(folder / "table")).collect()
    by_name = {row.uri.rpartition("/")[2]: row for row in found}
    assert len(by_name) == len(found)
    return by_name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of images, one in a subfolder with a space in its name, and other files."""
    pictures = tmp_path / "pictures"
    (pictures / "below").mkdir(parents=True)
    write_pictures(pictures)
    shutil.move(pictures / "astronaut.jpg", pictures / "below" / "an astronaut.jpg")
    (pictures / "nothing.jpg").touch()
    return tmp_path


@pytest.mark.long
def test_the_command_embeds_existing_files_and_then_new_ones(
    spark: SparkSession, folder: Path
) -> None:
    result = batch(folder, "--chunk-rows", "4")
    (folder / "pictures" / "new.jpg").write_bytes((folder / "pictures" / "camera.jpg").read_bytes())
    since = files(spark, folder)
    (chunk,) = since.plan(chunk_rows=3)
    since.run(chunk)

    assert result.returncode == 0, result.stderr
    assert "8 files to embed, in 2 chunks" in result.stdout
    assert "8 files embedded, 2 failures" in result.stdout
    assert chunk.rows == 1
    found = rows(spark, folder)
    assert len(found) == 9
    failures = {name: row.error.code for name, row in found.items() if row.error}
    assert failures == {
        "broken.jpg": Code.IMAGE_UNSUPPORTED,
        "nothing.jpg": Code.IMAGE_EMPTY,
    }
    astronaut = found["an%20astronaut.jpg"]
    content = (folder / "pictures" / "below" / "an astronaut.jpg").read_bytes()
    (expected,) = core_vectors([content])
    assert astronaut.embedding == pytest.approx(list(expected), abs=1e-3)
    assert found["new.jpg"].content_sha256 == found["camera.jpg"].content_sha256


def test_a_stopped_run_is_resumed(spark: SparkSession, folder: Path) -> None:
    begun = files(spark, folder, partition_by="date")
    chunks = begun.plan(chunk_rows=3)
    begun.run(chunks[0])

    left = files(spark, folder, partition_by="date").plan(chunk_rows=100)

    assert [chunk.rows for chunk in chunks] == [3, 3, 2]
    assert left == [Chunk(chunks[1].parts + chunks[2].parts, 5)]
    # Files have no timestamp of a message.
    assert {row.date for row in rows(spark, folder).values()} == {None}


@pytest.mark.long
def test_sigint_ends_after_the_chunk_in_flight(spark: SparkSession, folder: Path) -> None:
    command = [sys.executable, "-m", "embedstream", "batch", *settings(folder), "--chunk-rows", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("chunk 1/"):
                process.send_signal(signal.SIGINT)
                break
        output = process.stdout.read()

    assert process.returncode == 0
    assert "are left: re-run the same command to resume" in output
    assert 0 < len(rows(spark, folder)) < 8


def test_an_error_ends_it_with_a_sentence(spark: SparkSession, folder: Path) -> None:
    failing = spark.range(1).select(f.raise_error(f.lit("ValueError: the worker is gone")))

    explaining = explain_errors({"table.path": str(folder)}, explain_chunk_error)
    with pytest.raises(StreamFailed) as caught, explaining:
        failing.collect()

    assert "the work ended by an error: " in str(caught.value)
    assert "ValueError: the worker is gone" in str(caught.value)
    assert str(caught.value).endswith("; re-run the same command to resume")
    assert "\n" not in str(caught.value)


@pytest.mark.long
def test_only_files_below_the_source_are_read(spark: SparkSession, folder: Path) -> None:
    secret = folder / "secret.jpg"
    secret.write_bytes((folder / "pictures" / "camera.jpg").read_bytes())
    (folder / "pictures" / "link.jpg").symlink_to(secret)
    linked = files(spark, folder)

    for chunk in linked.plan(chunk_rows=100):
        linked.run(chunk)

    assert rows(spark, folder)["link.jpg"].error.code == Code.REFERENCE_DENIED


def test_files_of_any_name_become_rows(spark: SparkSession, folder: Path) -> None:
    pictures = folder / "pictures"
    content = (pictures / "camera.jpg").read_bytes()
    shutil.rmtree(pictures)
    names = ["_DSC0001.JPG", "a[1]/b.jpg", "{x}/c.jpg", "back\\slash/d.jpg", "100%.jpg", "e?#.jpg"]
    names += ["ü.jpg", os.fsdecode(b"\xff.jpg")]
    for name in [*names, ".DS_Store", ".thumbs/f.jpg"]:
        (pictures / name).parent.mkdir(parents=True, exist_ok=True)
        (pictures / name).write_bytes(content)
    found = files(spark, folder)

    for chunk in found.plan():
        found.run(chunk)

    assert found.hidden == 2
    by_uri = {
        row.uri: row for row in spark.read.format("delta").load(str(folder / "table")).collect()
    }
    assert by_uri.keys() == {(pictures / name).as_uri() for name in names}
    assert {row.error for row in by_uri.values()} == {None}
    assert files(spark, folder).plan() == []


@pytest.mark.long
def test_a_link_to_one_file_is_embedded(spark: SparkSession, folder: Path) -> None:
    link = folder / "elsewhere" / "link.jpg"
    link.parent.mkdir()
    link.symlink_to(folder / "pictures" / "camera.jpg")
    found = files(spark, folder, source=str(link))

    (chunk,) = found.plan()
    found.run(chunk)

    (row,) = rows(spark, folder).values()
    assert (row.uri, row.error) == (link.as_uri(), None)


@pytest.mark.long
def test_the_exit_code_says_that_every_file_failed(
    spark: SparkSession,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The command, but for its session: that is the tests' own."""
    source = str(folder / "pictures" / "broken.jpg")
    arguments = ["embedstream", "batch", *settings(folder), "--from", source]
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.setattr(session, "open_session", lambda *_, **__: nullcontext(spark))

    with pytest.raises(SystemExit) as end:
        main()

    assert end.value.code == 1
    assert "1 file embedded, 1 failures (1 image_unsupported)" in capsys.readouterr().out


@pytest.mark.parametrize(
    "source",
    [
        "pictures",
        "{folder}/pictures/c*.jpg",
        pytest.param("file://{folder}/pictures", marks=pytest.mark.long),
        "file:{folder}/p%69ctures",
    ],
)
def test_a_relative_path_a_pattern_and_a_uri_are_read(
    spark: SparkSession, folder: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    found = files(spark, folder, source=source.format(folder=folder))
    camera = [uri for uri in found._uris if uri.endswith("/camera.jpg")]

    found.run(Chunk(tuple(camera), 1))

    assert rows(spark, folder)["camera.jpg"].error is None


def test_errors_are_raised_before_anything_is_written(spark: SparkSession, folder: Path) -> None:
    files(spark, folder)
    with pytest.raises(SetupError, match=r"the table holds embeddings of .* choose another table"):
        files(spark, folder, weights="random")
    shutil.rmtree(folder / "pictures")
    (folder / "pictures").mkdir()
    (folder / "pictures" / ".hidden.jpg").touch()
    with pytest.raises(SetupError, match=r"there are no files at '.*', except 1 that are hidden"):
        files(spark, folder)
    with pytest.raises(SetupError, match=r"there is no file or folder '.*/absent'"):
        files(spark, folder, source=str(folder / "absent"))
    with pytest.raises(SetupError, match="tabel"):
        load_files_config({"table": {"path": "x"}}, ["tabel.path=y"])


def test_each_row_of_a_file_has_its_uri(spark: SparkSession, folder: Path) -> None:
    one = files(spark, folder)
    one.run(one.plan(chunk_rows=1)[0])

    (row,) = rows(spark, folder).values()

    assert (row.topic, row.partition, row.offset) == (None, None, None)
    assert row.image_id == row.uri
