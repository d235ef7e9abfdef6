"""Prometheus' promtool, which `make programs` installs, and the rules that it checks."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

__all__ = ["MONITORING", "RULES", "run_promtool", "run_rule_tests"]

_ROOT = Path(__file__).parents[2]
MONITORING = _ROOT / "deploy" / "monitoring"
RULES = MONITORING / "rules.yaml"


def run_promtool(*arguments: object) -> subprocess.CompletedProcess[str]:
    program = shutil.which("promtool") or _ROOT / ".tools/programs/usr/bin/promtool"
    return subprocess.run(
        [str(program), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def run_rule_tests(tests: dict[str, Any], folder: Path) -> None:
    """Run unit tests of rules; fails with what promtool says."""
    path = folder / "rules_test.yaml"
    path.write_text(yaml.safe_dump(tests), encoding="utf-8")
    done = run_promtool("test", "rules", path)
    assert done.returncode == 0, done.stdout + done.stderr
