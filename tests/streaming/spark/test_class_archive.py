"""The archive of Spark's classes is used where it fits, and nothing changes where it does not."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from embedstream.config.sections import PipelineConfig, SparkConfig
from embedstream.spark import session
from embedstream.spark.class_archive import add_class_archive, find_class_archive
from embedstream.spark.java import find_java
from embedstream.spark.session import build_settings

OPTION = "spark.driver.defaultJavaOptions"


def test_without_an_archive_the_options_stay(tmp_path: Path) -> None:
    assert add_class_archive("-Xss8m", folder=tmp_path, java=find_java()) == "-Xss8m"


def test_each_java_has_its_archive(tmp_path: Path) -> None:
    other = tmp_path / "java/bin/java"
    other.parent.mkdir(parents=True)
    other.touch()

    assert find_class_archive(tmp_path, other) != find_class_archive(tmp_path, find_java())


def test_an_archive_is_not_used_while_another_is_written(tmp_path: Path) -> None:
    find_class_archive(tmp_path, find_java()).touch()
    writing = "-XX:ArchiveClassesAtExit=new.jsa"

    assert add_class_archive(writing, folder=tmp_path, java=find_java()) == writing


def test_a_local_session_uses_it_beside_the_given_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "fetch_jars", lambda *_: [])
    monkeypatch.setenv("EMBEDSTREAM_JARS", str(tmp_path))
    archive = find_class_archive(tmp_path, find_java())
    archive.touch()

    def settings(master: str) -> dict[str, str]:
        config = SparkConfig(master=master, options={OPTION: "-Xss8m"})
        return build_settings(config, PipelineConfig(), java=find_java())

    options = settings("local[2,4]")[OPTION].split()
    assert options[:2] == ["-Xss8m", f"-XX:SharedArchiveFile={archive}"]
    assert settings("spark://host:7077")[OPTION] == "-Xss8m"


def test_java_says_nothing_of_an_archive_that_is_broken(tmp_path: Path) -> None:
    find_class_archive(tmp_path, find_java()).write_text("not an archive")
    options = add_class_archive("", folder=tmp_path, java=find_java()).split()

    ended = subprocess.run(
        [find_java(), *options, "-version"], capture_output=True, text=True, check=True
    )

    assert len(options) == 3
    assert ended.stdout == ""
    assert "archive" not in ended.stderr
