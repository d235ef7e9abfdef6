"""What is in deploy/kubernetes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

__all__ = ["KUBERNETES", "ROOT", "Manifest", "read_manifests", "read_spark_conf"]

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"

Manifest = dict[str, Any]


def read_manifests(path: Path) -> list[Manifest]:
    """The objects of a file."""
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def read_spark_conf() -> dict[str, str]:
    """The settings that spark-submit is given."""
    (settings,) = read_manifests(KUBERNETES / "base" / "spark-conf.yaml")
    conf: dict[str, str] = settings["data"]
    return conf
