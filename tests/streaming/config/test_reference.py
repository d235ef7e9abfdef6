"""docs/configuration.md is what the models say, and what it shows can be loaded."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from embedstream.config.load import load_config
from embedstream.config.reference import build_reference
from embedstream.config.sections import StreamConfig

PAGE = Path(__file__).parents[3] / "docs" / "configuration.md"


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The dotted keys of a model that are no section themselves."""
    for name, field in model.model_fields.items():
        part = field.annotation
        if isinstance(part, type) and issubclass(part, BaseModel):
            yield from keys(part, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def cells(key: str) -> list[str]:
    """The type and the default that the reference gives for a key."""
    (row,) = [line for line in build_reference().splitlines() if line.startswith(f"| `{key}` |")]
    return row.split(" | ")[1:3]


def test_the_page_is_up_to_date() -> None:
    stale = PAGE.read_text(encoding="utf-8") != build_reference()
    assert not stale, "docs/configuration.md differs from the models: run `make docs`"


def test_each_key_has_one_row_in_the_order_of_the_models() -> None:
    rows = re.findall(r"^\| `([a-z0-9_.]+)` \|", build_reference(), re.MULTILINE)
    assert rows == list(keys(StreamConfig))


def test_each_row_has_four_cells_with_text() -> None:
    rows = [line for line in build_reference().splitlines() if line.startswith("| `")]
    for row in rows:
        inner = re.split(r"(?<!\\)\|", row)[1:-1]
        assert len(inner) == 4, row
        assert all(cell.strip() for cell in inner), row


@pytest.mark.parametrize(
    ("key", "kind", "default"),
    [
        ("kafka.bootstrap_servers", "string", "required"),
        ("kafka.assign", "map of lists of integers", "`null`"),
        (
            "kafka.starting_offsets",
            "`earliest`, `latest` or map of maps of integers",
            "`earliest`",
        ),
        ("kafka.starting_timestamp", "time", "`null`"),
        ("kafka.options", "map of strings", "`{}`"),
        (
            "references.schemes",
            "list of `file`, `http`, `https`, `s3`, `s3a`, `s3n`, `gs`, `abfss`, `abfs`, `az`",
            "`[file, https, s3, s3a, s3n, gs, abfss, abfs, az]`",
        ),
        ("references.max_redirects", "integer from 0 up to 10", "`0`"),
        ("references.timeout_s", "positive number", "`10.0`"),
        ("encoder.sha256", "string like `^[0-9a-fA-F]{8,64}$`", "`null`"),
        ("decode.max_image_pixels", "positive integer up to 89478485", "`89478485`"),
        ("checkpoint", "string", "required"),
        ("trigger.interval_s", "number from 0", "`1.0`"),
    ],
)
def test_types_and_defaults_are_readable(key: str, kind: str, default: str) -> None:
    assert cells(key) == [kind, default]


@pytest.fixture
def shortest(tmp_path: Path) -> Path:
    """The one YAML file that the page shows."""
    (example,) = re.findall(r"```yaml\n(.*?)```", build_reference(), re.DOTALL)
    path = tmp_path / "shortest.yaml"
    path.write_text(example, encoding="utf-8")
    return path


def test_the_shortest_file_loads(shortest: Path) -> None:
    assert load_config(shortest, environment={}).kafka.subscribe == "images"


def test_the_overrides_that_the_page_shows_work(shortest: Path) -> None:
    variables = dict(re.findall(r"`(EMBEDSTREAM_\w+)=(\w+)`", build_reference()))
    assert load_config(shortest, environment=variables).kafka.subscribe == "cats"

    shown = re.findall(r"`--set '?([^'` ]+=[^'`]+)'?`", build_reference())
    config = load_config(shortest, shown, environment={})
    assert config.kafka.subscribe == "cats"
    assert config.references.hosts == ("images.example.com",)
    assert config.spark.options == {"spark.ui.enabled": "false"}
