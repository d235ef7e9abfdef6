"""EMR Serverless accepts the request of a job run, as far as the SDK's model of it says."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import botocore.session
import pytest
from botocore.validate import ParamValidator
from packaging.specifiers import SpecifierSet

from embedstream.config.load import load_config
from manifests import ROOT

FOLDER = ROOT / "deploy" / "emr"


@pytest.fixture
def request_() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / "start-job-run.json").read_text(encoding="utf-8"))
    return found


def find_mistakes(request_: dict[str, Any]) -> str:
    model = botocore.session.get_session().get_service_model("emr-serverless")
    shape = model.operation_model("StartJobRun").input_shape
    # The SDK adds the token itself.
    report = ParamValidator().validate({**request_, "clientToken": "x"}, shape)
    return str(report.generate_report())


def test_the_request_keeps_to_the_model(request_: dict[str, Any]) -> None:
    assert find_mistakes(request_) == ""
    assert request_["mode"] == "STREAMING"


@pytest.mark.parametrize("change", [{"mod": "STREAMING"}, {"retryPolicy": {"maxAttempts": "5"}}])
def test_a_mistake_is_found(request_: dict[str, Any], change: dict[str, Any]) -> None:
    assert find_mistakes({**request_, **change}) != ""


def test_the_configuration_loads_with_the_drivers_variables(
    request_: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (defaults,) = request_["configurationOverrides"]["applicationConfiguration"]
    for name in defaults["properties"]:
        if name.startswith("spark.emr-serverless.driverEnv."):
            monkeypatch.setenv(name.rpartition(".")[2], "secret")

    assert load_config(FOLDER / "stream.yaml").spark.jars == "provided"


def test_the_connector_is_of_the_releases_spark(request_: dict[str, Any]) -> None:
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    (defaults,) = request_["configurationOverrides"]["applicationConfiguration"]
    version = defaults["properties"]["spark.jars.packages"].rpartition(":")[2]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (pyspark,) = (one for one in project["dependencies"] if one.startswith("pyspark"))

    assert f"which has Spark {version}" in readme
    assert f"`{pyspark}`" in readme
    assert SpecifierSet(pyspark.removeprefix("pyspark")).contains(version)


def test_the_job_runs_what_the_script_sends(request_: dict[str, Any]) -> None:
    script = (FOLDER / "run.sh").read_text(encoding="utf-8")
    submit = request_["jobDriver"]["sparkSubmit"]
    (defaults,) = request_["configurationOverrides"]["applicationConfiguration"]

    assert submit["entryPoint"].endswith("/deploy/main.py")
    assert 'aws s3 cp deploy/main.py "$BUCKET/deploy/"' in script
    archive, _, folder = defaults["properties"]["spark.archives"].partition("#")
    assert archive.endswith("/deploy/environment.tar.gz")
    assert 'aws s3 cp build/environment.tar.gz "$BUCKET/deploy/"' in script
    assert submit["entryPointArguments"] == ["run", f"./{folder}/stream.yaml"]
    assert "cp deploy/emr/stream.yaml build/environment/" in script
