"""The core imports where there is neither Spark nor the streaming package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import embedstream_core

# None in sys.modules makes an import fail, as if the package were not installed.
WITHOUT = "import sys; sys.modules.update(pyspark=None, embedstream=None)\n"

IMPORT_ALL = """
import importlib, pkgutil
import embedstream_core as core
for module in pkgutil.walk_packages(core.__path__, "embedstream_core."):
    importlib.import_module(module.name)
    print(module.name)
"""


def python(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )


def module_name(path: Path, root: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def modules_on_disk() -> set[str]:
    package = Path(embedstream_core.__path__[0])
    names = {module_name(path, package.parent) for path in package.rglob("*.py")}
    return names - {"embedstream_core"}


def test_every_module_of_the_core_imports_alone() -> None:
    result = python(WITHOUT + IMPORT_ALL)

    assert result.returncode == 0, result.stderr
    assert set(result.stdout.split()) == modules_on_disk()
    assert "embedstream_core.pipeline.pipeline" in modules_on_disk()


def test_a_hidden_package_cannot_be_imported() -> None:
    for name in ("pyspark", "pyspark.sql", "embedstream", "embedstream.cli.app"):
        result = python(f"{WITHOUT}import {name}")
        assert "ModuleNotFoundError" in result.stderr
