"""What options become, beyond what the commands' own tests see."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from embedstream.cli.options import write_config_words


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
