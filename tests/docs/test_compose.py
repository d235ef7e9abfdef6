"""docker-compose.yml keeps to the published Compose schema, and every image has its version.

`compose-spec.json` is schema/compose-spec.json of https://github.com/compose-spec/compose-spec at
commit 170098ba07d9f53c383a41bfd4c5166b0a4529a6, under the Apache License 2.0.
"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from embedstream.config.load import load_config

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads(Path(__file__).with_name("compose-spec.json").read_text(encoding="utf-8"))
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def is_pinned(image: str) -> bool:
    """A digest, or a tag with a full version: `4.2.0`, not `4` or `latest`."""
    _, _, tag = image.rpartition("/")[2].partition(":")
    return "@sha256:" in image or re.match(r"\d+\.\d+\.\d+", tag) is not None


def test_it_keeps_to_the_schema() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    jsonschema.Draft7Validator(SCHEMA).validate(COMPOSE)


@pytest.mark.parametrize("change", [{"imagge": "x"}, {"ports": 8080}, {"healthcheck": {"tset": 1}}])
def test_the_schema_finds_mistakes(change: dict[str, Any]) -> None:
    broken = {**COMPOSE, "services": {"kafka": {**SERVICES["kafka"], **change}}}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft7Validator(SCHEMA).validate(broken)


@pytest.mark.parametrize(
    ("image", "pinned"),
    [
        ("apache/kafka:4.2.0", True),
        ("python:3.11.14-slim-bookworm", True),
        ("localhost:5000/kafka", False),
        ("apache/kafka", False),
        ("apache/kafka:latest", False),
        ("python:3.11-slim-bookworm", False),
    ],
)
def test_what_is_pinned(image: str, *, pinned: bool) -> None:
    assert is_pinned(image) == pinned


@pytest.mark.parametrize("name", SERVICES)
def test_every_image_is_pinned(name: str) -> None:
    assert is_pinned(SERVICES[name]["image"])


def test_the_dockerfile_starts_from_a_pinned_image() -> None:
    images = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert images
    assert all(is_pinned(image) for image in images)


def test_the_image_has_the_version_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    built = {service["image"] for service in SERVICES.values() if "build" in service}
    assert built == {f"embedstream:{project['version']}"}


def test_the_image_does_not_run_as_root() -> None:
    assert re.findall(r"^USER (\S+)", DOCKERFILE, re.MULTILINE)[-1:] == ["embedstream"]


def test_what_the_dockerfile_copies_exists_and_is_not_ignored() -> None:
    kept = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    copied = re.findall(r"^COPY --chown=\w+ (.+) \S+$", DOCKERFILE, re.MULTILINE)
    sources = [source for line in copied for source in line.split()]
    assert "core" in sources
    for source in sources:
        assert (ROOT / source).exists()
        assert f"!{source}" in kept


def test_what_a_service_waits_for_can_happen() -> None:
    for service in SERVICES.values():
        for name, wait in service.get("depends_on", {}).items():
            healthy = wait["condition"] == "service_healthy"
            assert not healthy or "healthcheck" in SERVICES[name]


def test_the_environment_of_the_job_is_configuration(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("{}")
    config = load_config(path, environment=SERVICES["job"]["environment"])
    assert config.kafka.bootstrap_servers == "kafka:9092"
    assert config.spark.master == "spark://spark-master:7077"
    assert f"--topic={config.kafka.subscribe}" in SERVICES["topic"]["command"]
    assert Path(config.table.path).is_relative_to("/data")
    assert Path(config.checkpoint).is_relative_to("/data")


def test_the_gpu_is_reserved_for_one_worker_only() -> None:
    reserved = [name for name, service in SERVICES.items() if "deploy" in service]
    assert reserved == ["spark-worker-gpu"]
    assert SERVICES["spark-worker-gpu"]["profiles"] == ["gpu"]
