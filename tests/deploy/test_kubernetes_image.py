"""The image for Kubernetes has what the manifests run, and its scripts do what Spark expects."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

from manifests import KUBERNETES, ROOT, built, find, get_templates


def test_the_image_has_what_the_pods_run() -> None:
    dockerfile = (KUBERNETES / "Dockerfile").read_text(encoding="utf-8")
    home = "/opt/embedstream"
    copied = dict(re.findall(r"^COPY --chown=embedstream (\S+) (\S+)$", dockerfile, re.MULTILINE))
    spec = find(built("example"), "SparkApplication")["spec"]
    driver, _ = get_templates(find(built("example"), "SparkApplication"))
    (command,) = driver["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    scripts = [command, spec["sparkConf"]["spark.executor.resource.gpu.discoveryScript"]]

    assert copied == {"deploy/main.py": "app/", "deploy/kubernetes/image": "bin"}
    assert spec["mainApplicationFile"] == f"local://{home}/app/main.py"
    kept = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {f"!{source}" for source in copied} <= set(kept)
    for script in scripts:
        assert os.access(KUBERNETES / "image" / Path(script).name, os.X_OK)
        assert Path(script).parent == Path(home) / "bin"
    (user,) = re.findall(r"^USER (\d+)$", dockerfile, re.MULTILINE)
    assert driver["spec"]["securityContext"]["runAsUser"] == int(user)
    base = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert f"--uid {user} embedstream" in base
    assert f"WORKDIR {home}" in base


@pytest.mark.parametrize(("count", "addresses"), [(1, ["0"]), (3, ["0", "1", "2"])])
def test_spark_reads_the_gpus_that_are_found(
    tmp_path: Path, count: int, addresses: list[str]
) -> None:
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\n" + "".join(f"echo {index}\n" for index in range(count)))
    fake.chmod(0o755)

    found = find_gpus(f"{tmp_path}:{os.environ['PATH']}")

    assert json.loads(found.stdout) == {"name": "gpu", "addresses": addresses}


def test_without_a_driver_for_gpus_none_is_found(tmp_path: Path) -> None:
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\nexit 9\n")
    fake.chmod(0o755)

    assert find_gpus(f"{tmp_path}:{os.environ['PATH']}").returncode == 9


def find_gpus(path: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [KUBERNETES / "image" / "find-gpus.sh"],
        env={"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_versions_are_those_of_the_project() -> None:
    dockerfile = (KUBERNETES / "Dockerfile").read_text(encoding="utf-8")
    spec = find(built("kubeflow"), "SparkApplication")["spec"]
    image = spec["sparkConf"]["spark.kubernetes.container.image"]
    project = version("embedstream")
    locked = tomllib.loads((ROOT / "uv.lock").read_text(encoding="utf-8"))["package"]
    (spark,) = (package["version"] for package in locked if package["name"] == "pyspark")

    assert image.endswith(f"/embedstream:{project}")
    assert re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE) == [
        f"apache/spark:{spark}-python3",
        f"embedstream:{project}",
    ]
    assert f"-t {image} -f deploy/kubernetes/Dockerfile ." in dockerfile
    assert spec["sparkVersion"] == spark
