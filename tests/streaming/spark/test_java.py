"""find_java takes the Java that Spark would take, or says what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from embedstream.spark.java import find_java
from embedstream_core.errors import SetupError


def make_java(folder: Path, *, says: str) -> Path:
    folder.mkdir(parents=True)
    java = folder / "java"
    java.write_text(f"#!/bin/sh\necho '{says}' >&2\n")
    java.chmod(0o755)
    return java


@pytest.fixture(autouse=True)
def no_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the machine's own Java, but not its shell."""
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))


@pytest.mark.parametrize(
    "says",
    ['openjdk version "17.0.15" 2025-04-15', 'java version "21" 2023-09-19', 'version "25-ea"'],
)
def test_java_on_the_path(tmp_path: Path, says: str) -> None:
    java = make_java(tmp_path / "path", says=says)
    assert find_java() == java


def test_java_home_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_java(tmp_path / "path", says='openjdk version "21.0.1"')
    java = make_java(tmp_path / "home" / "bin", says='openjdk version "17.0.1"')
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "home"))
    assert find_java() == java


@pytest.mark.parametrize(
    ("says", "version"),
    [('java version "1.8.0_402"', "is 8;"), ('openjdk version "11.0.22" 2024-01-16', "is 11;")],
)
def test_an_old_java_is_refused(tmp_path: Path, says: str, version: str) -> None:
    java = make_java(tmp_path / "path", says=says)
    with pytest.raises(SetupError, match="Java 17 or newer is needed") as error:
        find_java()
    assert f"{java} {version} install a Java runtime 17 or newer" in str(error.value)


def test_an_old_java_home_is_not_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_java(tmp_path / "path", says='openjdk version "17.0.1"')
    make_java(tmp_path / "home" / "bin", says='openjdk version "11.0.1"')
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "home"))
    with pytest.raises(SetupError, match="is 11"):
        find_java()


def test_no_java() -> None:
    with pytest.raises(SetupError, match="PATH has no java; install a Java runtime 17 or newer"):
        find_java()


def test_a_java_home_without_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(SetupError, match="which has no bin/java"):
        find_java()


def test_a_java_that_prints_no_version(tmp_path: Path) -> None:
    make_java(tmp_path / "path", says="no runtime present")
    with pytest.raises(SetupError, match="does not print its version but 'no runtime present'"):
        find_java()


def test_a_java_that_does_not_run(tmp_path: Path) -> None:
    java = make_java(tmp_path / "path", says="")
    java.write_bytes(b"\x7fELF, but not really")
    with pytest.raises(SetupError, match="does not run"):
        find_java()
