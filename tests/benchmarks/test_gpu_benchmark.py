"""The benchmark for GPUs, on a CPU: it is brought to machines that have little else than torch."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"

AT_HAND = {"torch", "torchvision", "numpy", "pillow", "pyarrow"}


def name_in(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9_.-]", requirement)[0].lower()


def not_at_hand() -> list[str]:
    """The modules of everything else that embedstream needs or can use."""
    others = {name_in(each) for each in requires("embedstream") or ()} - AT_HAND
    return [
        module
        for module, distributions in packages_distributions().items()
        if others.intersection(name.lower() for name in distributions)
    ]


@pytest.mark.long
def test_it_measures_and_writes_its_result(tmp_path: Path) -> None:
    hidden = not_at_hand()
    assert {"pyspark", "pydantic", "safetensors", "simplejpeg", "skimage"} <= set(hidden)
    arguments = [
        str(SCRIPT), "--device=cpu", "--precision=float32", "--images=4", "--rounds=1",
        "--batch-size=2", "--decode-threads=2", f"--out={tmp_path}",
    ]  # fmt: skip
    program = (
        "import runpy, sys\n"
        f"sys.modules.update(dict.fromkeys({hidden}))\n"
        f"sys.argv = {arguments}\n"
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=200, check=False
    )

    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "gpu.json").read_text())
    measured = ("images_per_s", "ms_a_batch")
    assert {name: list(result[name]) for name in measured} == {
        "images_per_s": ["decoding alone", "forward alone", "embedstream's pipeline"],
        "ms_a_batch": [
            "stacking", "copy to the device", "normalization and forward", "copy back",
        ],
    }  # fmt: skip
    assert all(value > 0 for name in measured for value in result[name].values())
    assert "of the slower of the two" in done.stdout
