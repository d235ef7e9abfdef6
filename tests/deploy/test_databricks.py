"""The bundle's job is one that the Databricks SDK knows, and its configuration loads."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from databricks.sdk.service.jobs import JobSettings
from packaging.specifiers import SpecifierSet

from embedstream.config.load import load_config
from manifests import ROOT

FOLDER = ROOT / "deploy" / "databricks"
README = (FOLDER / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def job() -> dict[str, Any]:
    bundle = yaml.safe_load((FOLDER / "databricks.yml").read_text(encoding="utf-8"))
    (name,) = bundle["include"]
    resources = yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))["resources"]
    found: dict[str, Any] = resources["jobs"]["embedstream"]
    return found


def read(job: dict[str, Any]) -> dict[str, Any]:
    """The job as the SDK sends it, which drops what it does not know."""
    return JobSettings.from_dict(job).as_dict()


def test_the_job_has_known_fields_only(job: dict[str, Any]) -> None:
    assert read(job) == job


@pytest.mark.parametrize("place", ["continuous", "tasks", "job_clusters"])
def test_a_mistake_is_found(job: dict[str, Any], place: str) -> None:
    inner = job[place] if isinstance(job[place], dict) else job[place][0]
    inner["max_retrys"] = 3

    assert read(job) != job


def test_the_files_of_the_job_are_there(job: dict[str, Any]) -> None:
    (task,) = job["tasks"]
    program = task["spark_python_task"]
    cluster = job["job_clusters"][0]["new_cluster"]

    assert (FOLDER / "resources" / program["python_file"]).resolve() == ROOT / "deploy" / "main.py"
    assert (FOLDER / Path(program["parameters"][1]).name).exists()
    script = Path(cluster["init_scripts"][0]["volumes"]["destination"]).name
    assert f"deploy/databricks/{script}" in README
    assert task["job_cluster_key"] == job["job_clusters"][0]["job_cluster_key"]


def test_the_configuration_loads(job: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in job["job_clusters"][0]["new_cluster"]["spark_env_vars"]:
        monkeypatch.setenv(name, "secret")

    assert load_config(FOLDER / "stream.yaml").spark.jars == "provided"


def test_the_runtime_has_a_spark_that_the_project_takes(job: dict[str, Any]) -> None:
    versions = dict(re.findall(r"^\| \[?(\d+)[^|]*\| (\d[\d.]+) \|", README, re.MULTILINE))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (pyspark,) = (one for one in project["dependencies"] if one.startswith("pyspark"))
    accepted = SpecifierSet(pyspark.removeprefix("pyspark"))
    chosen = job["job_clusters"][0]["new_cluster"]["spark_version"].partition(".")[0]

    assert f"`{pyspark}`" in README
    assert chosen in versions
    assert all(accepted.contains(version) for version in versions.values())
