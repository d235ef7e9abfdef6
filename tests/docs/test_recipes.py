"""Commands, configurations and code of the documentation: they exist, are valid, and run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from pyspark.sql import SparkSession

from contents import CLIPS, TEXTS
from embedstream.cli.app import app
from embedstream.config.load import load_config

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "docs" / "recipes.md"
NAMES = ("catalogs", "images", "messages", "recipes", "references", "registry", "setups", "tables")
SETTINGS = [ROOT / "docs" / f"{name}.md" for name in NAMES]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

# What a fragment of a configuration leaves out.
BASE = {
    "kafka": {"bootstrap_servers": "localhost:9092", "subscribe": "things"},
    "table": {"path": "data/table"},
    "checkpoint": "data/checkpoint",
}


def find_blocks(page: Path, language: str) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def find_commands() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for block in (*find_blocks(page, ""), *find_blocks(page, "bash")):
            lines = block.replace("\\\n", " ").splitlines()
            found += [(page.name, line) for line in lines if line.startswith("embedstream ")]
    return found


@pytest.mark.parametrize(("page", "line"), find_commands())
def test_each_command_and_its_options_exist(page: str, line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    command: Any = typer.main.get_command(app)
    # `broker start|stop` is two commands.
    while words and hasattr(command, "commands"):
        name = words.pop(0).partition("|")[0]
        assert name in command.commands, line
        command = command.commands[name]
    known = {option for one in command.params for option in one.opts}
    given = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
    assert given <= known, line


@pytest.mark.parametrize(
    ("page", "block"),
    [(page.name, block) for page in SETTINGS for block in find_blocks(page, "yaml")],
)
def test_each_configuration_is_valid(
    page: str, block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in re.findall(r"env:(\w+)", block):
        monkeypatch.setenv(name, "secret")
    path = tmp_path / "stream.yaml"
    path.write_text(yaml.safe_dump({**BASE, **yaml.safe_load(block)}), encoding="utf-8")

    assert load_config(path, environment={}).all_encoders


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("recordings")
    for name, content in CLIPS.items():
        (folder / name).write_bytes(content)
    return str(folder)


@pytest.mark.spark
@pytest.mark.parametrize("code", find_blocks(RECIPES, "python ours"))
def test_the_code_runs(spark: SparkSession, recordings: str, code: str) -> None:
    reviews = spark.createDataFrame([*TEXTS.items()], "id string, text string")
    names: dict[str, Any] = {"spark": spark, "reviews": reviews, "recordings": recordings}

    exec(compile(code, RECIPES.name, "exec"), names)

    rows = names["found"].collect()
    assert len(rows) in {len(TEXTS), len(CLIPS), len(TEXTS) + len(CLIPS)}
    assert all(len(row["embedding"]) in (96, 384) for row in rows)
