"""Small configuration files, and what loading them reports."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from embedstream.config.errors import ConfigError
from embedstream.config.load import load_config
from embedstream.config.sections import StreamConfig

MINIMAL: dict[str, Any] = {
    "kafka": {"bootstrap_servers": "localhost:9092", "subscribe": "images"},
    "table": {"path": "/data/table"},
    "checkpoint": "/data/checkpoint",
}

SECRET = "hunter2-und-möwe"

JAAS = 'ScramLoginModule required username="me" password="{}";'


def write(folder: Path, changes: Mapping[str, Any]) -> Path:
    """The minimal configuration, with these keys set in its sections."""
    tree = {name: value for name, value in MINIMAL.items() if name not in changes}
    for name, value in changes.items():
        old = MINIMAL.get(name)
        both = isinstance(old, dict) and isinstance(value, dict)
        tree[name] = {**old, **value} if both else value  # type: ignore[dict-item]
    path = folder / "stream.yaml"
    path.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
    return path


def load(
    folder: Path,
    changes: Mapping[str, Any] | None = None,
    *overrides: str,
    environment: Mapping[str, str] | None = None,
) -> StreamConfig:
    return load_config(write(folder, changes or {}), overrides, environment=environment or {})


def problems(folder: Path, changes: Mapping[str, Any], *overrides: str) -> list[str]:
    """What is text of a wrong configuration, a line each."""
    with pytest.raises(ConfigError) as error:
        load(folder, changes, *overrides)
    return str(error.value).splitlines()


def shown(config: StreamConfig) -> str:
    """All that a careless print or a log line could show of a configuration."""
    return "\n".join(
        [repr(config), str(config), str(config.model_dump()), config.model_dump_json()]
    )
