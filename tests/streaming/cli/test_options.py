"""What options become, beyond what the commands' own tests see."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import typer

from embedstream.cli.options import require_local, write_config_words


@pytest.mark.parametrize("name", ["conf/my stream.yaml", "a'b; rm -rf $HOME", "möwe"])
def test_a_configuration_is_named_as_a_user_types_it(name: str) -> None:
    assert shlex.split(write_config_words(Path(name), ["a=b c"])) == [name, "--set", "a=b c"]


def test_a_secret_is_not_among_the_words_and_a_reference_to_one_is() -> None:
    jaas = 'kafka.options.kafka.sasl.jaas.config=x required password="${env:PASSWORD}";'
    given = ["monitor.token=abc", "monitor.token=env:TOKEN", jaas, "index.path=http://u:p@host"]
    words = shlex.split(write_config_words(Path("a"), given))
    assert words[2::2] == [
        "monitor.token=[redacted]", "monitor.token=env:TOKEN", jaas, "index.path=[redacted]"
    ]  # fmt: skip


def test_a_name_is_not_taken_for_an_option() -> None:
    assert write_config_words(Path("-x.yaml"), None) == "./-x.yaml"


@pytest.mark.parametrize("given", ["s3a://bucket/jars", "DBFS:/jars", "hdfs:///jars"])
def test_a_location_elsewhere_does_not_become_a_local_folder(given: str) -> None:
    with pytest.raises(typer.BadParameter, match="it takes a path on this machine"):
        require_local(Path(given))
    with pytest.raises(typer.BadParameter, match="it takes a path on this machine"):
        require_local([Path("a.png"), Path(given)])


def test_a_local_path_stays_as_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a:").mkdir()
    for path in (Path("conf/a.yaml"), Path("IMG:1.jpg"), Path("a:/b"), Path("/data")):
        (path if path.is_absolute() else path.absolute()).parent.mkdir(exist_ok=True)
        if path == Path("a:/b"):
            path.touch()
        assert require_local(path) == path
    assert require_local([Path("a")]) == [Path("a")]
    assert require_local(None) is None
    assert require_local(Path("file:///data/jars")) == Path("/data/jars")
