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
        str(SCRIPT), "--device=cpu", "--precision=float32", "--images=4", "--turns=1",
        "--batch-size=2", "--decode-threads=2", "--split-passes=1", f"--out={tmp_path}",
        # Compiling takes most of a minute.
        "--switches", "off", "pinned", "in-flight", "graphs", "gpu-decode",
    ]  # fmt: skip
    program = (
        "import runpy, sys\n"
        f"sys.modules.update(dict.fromkeys({hidden}))\n"
        f"sys.argv, sys.path[0] = {arguments}, {str(SCRIPT.parent)!r}\n"
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=200, check=False
    )

    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert list(result["switches"]) == ["off", "pinned", "in-flight"]
    kinds = {"decoding alone", "forward alone", "pipeline"}
    for found in result["switches"].values():
        assert set(found["images_per_s"]) == set(found["cpu_ms_an_image"]) == kinds
        assert set(found["gpu_percent"].values()) == {None}
        steps = ["stacking", "copy to the device", "normalization and forward", "copy back"]
        assert list(found["ms_a_batch"]) == steps
        assert min(*found["images_per_s"].values(), *found["ms_a_batch"].values()) > 0
    assert set(result["skipped"]) == {"graphs", "gpu-decode"}
    assert "graphs: skipped: it needs an NVIDIA GPU" in done.stdout
    assert f"on no GPU, 2 decoding threads on {result['machine']['processor']}" in done.stdout
    assert "not read" in done.stdout
