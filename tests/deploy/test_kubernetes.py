"""deploy/kubernetes keeps to the schemas of its kinds, and its parts fit together.

`custom-resources.json` names where its schemas are from.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from kubeflow_spark_api.models.spark_v1beta2_spark_application import SparkV1beta2SparkApplication

from embedstream.config.load import load_config
from embedstream.config.options import check_spark_options
from embedstream.config.sections import StreamConfig
from manifests import KUBEFLOW, KUBERNETES, Manifest, built, find, get_templates, read_manifests

BUILT = ("kubeflow", "apache", "example")
SCHEMAS = json.loads(Path(__file__).with_name("custom-resources.json").read_text())["schemas"]
RELEASE = "1.37"
README = (KUBERNETES / "README.md").read_text(encoding="utf-8")


@pytest.fixture(params=BUILT)
def application(request: pytest.FixtureRequest) -> Manifest:
    return find(built(request.param), "SparkApplication")


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StreamConfig:
    """The ConfigMap's stream, with the driver's environment."""
    driver = find(
        read_manifests(KUBERNETES / "base" / "driver.yaml"), "PodTemplate", "embedstream-driver"
    )
    (container,) = driver["template"]["spec"]["containers"]
    for variable in container["env"]:
        monkeypatch.setenv(variable["name"], "s" * 32)
    text = find(built("kubeflow"), "ConfigMap")["data"]["stream.yaml"]
    path = tmp_path / "stream.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config(path)


def close(schema: Any) -> Any:
    """The schema, in which an object has no fields but those that it names."""
    if isinstance(schema, list):
        return [close(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: close(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and "type" in schema:
        closed.setdefault("additionalProperties", False)
    return closed


def validate(manifest: Manifest) -> None:
    version = manifest["apiVersion"]
    if version == KUBEFLOW:
        read = SparkV1beta2SparkApplication.from_dict(manifest)
        assert read is not None
        # The model drops what it does not know.
        assert read.to_dict() == manifest
    elif version in SCHEMAS:
        jsonschema.Draft202012Validator(close(SCHEMAS[version])).validate(manifest["spec"])
    else:
        kubernetes_validate.validate(manifest, RELEASE, strict=True)
    if manifest["kind"] == "SparkApplication":
        for template in get_templates(manifest):
            pod = {"apiVersion": "v1", "kind": "PodTemplate", "template": template}
            kubernetes_validate.validate(pod, RELEASE, strict=True)


@pytest.mark.parametrize("name", BUILT)
def test_every_object_keeps_to_its_schema(name: str) -> None:
    kinds = {one["kind"] for one in built(name)}
    assert {"SparkApplication", "PodMonitor", "NetworkPolicy", "ConfigMap"} <= kinds
    for manifest in built(name):
        validate(manifest)


@pytest.mark.parametrize(
    ("name", "kind", "path", "value"),
    [
        ("kubeflow", "SparkApplication", ["spec", "mainAplicationFile"], "x"),
        ("kubeflow", "SparkApplication", ["spec", "sparkConf", "spark.executor.cores"], 4),
        ("kubeflow", "SparkApplication", ["spec", "driver", "template", "spec", "probe"], {}),
        ("apache", "SparkApplication", ["spec", "driverArg"], []),
        ("apache", "SparkApplication", ["spec", "applicationTolerations", "restart"], "Always"),
        ("apache", "PodMonitor", ["spec", "podMetricsEndpoint"], []),
        ("apache", "PodMonitor", ["spec", "podMetricsEndpoints"], {}),
        ("apache", "Service", ["spec", "selectors"], {}),
    ],
)
def test_the_schemas_find_mistakes(name: str, kind: str, path: list[str], value: object) -> None:
    manifest = json.loads(json.dumps(find(built(name), kind)))
    place = manifest
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value

    with pytest.raises((AssertionError, ValueError, jsonschema.ValidationError)):
        validate(manifest)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not on this machine")
@pytest.mark.parametrize("name", BUILT)
def test_kubectl_builds_the_same(name: str) -> None:
    output = subprocess.run(
        ["kubectl", "kustomize", KUBERNETES / name], check=True, capture_output=True, text=True
    ).stdout

    def order(objects: Iterator[Manifest] | list[Manifest]) -> list[Manifest]:
        return sorted(objects, key=lambda one: (one["kind"], one["metadata"]["name"]))

    assert order(yaml.safe_load_all(output)) == order(built(name))


def test_the_configuration_loads_and_fits_the_driver(config: StreamConfig) -> None:
    driver, _ = get_templates(find(built("kubeflow"), "SparkApplication"))
    (container,) = driver["spec"]["containers"]
    (port,) = container["ports"]
    monitor = config.monitor

    assert monitor.address == ("0.0.0.0", port["containerPort"])
    assert monitor.token is not None
    assert config.spark.jars == "provided"
    assert config.spark.master is None
    # Spark stops after the micro-batch in flight.
    grace = driver["spec"]["terminationGracePeriodSeconds"]
    assert grace == config.trigger.stop_timeout_s + 30


def test_each_secret_of_the_configuration_is_in_the_environment() -> None:
    text = (KUBERNETES / "base" / "stream.yaml").read_text(encoding="utf-8")
    named = set(re.findall(r"env:([A-Z_]+)", text))
    driver, executor = get_templates(find(built("kubeflow"), "SparkApplication"))
    given = {one["name"] for one in driver["spec"]["containers"][0]["env"]}

    assert named == given
    assert {one["name"] for one in executor["spec"]["containers"][0]["env"]} < given


def test_the_readme_creates_each_secret_that_is_used(application: Manifest) -> None:
    commands = README.replace("\\\n", " ")
    created = {
        (secret, key)
        for secret, keys in re.findall(r"create secret generic (\S+) (.*)", commands)
        for key in re.findall(r"--from-literal=([\w-]+)=", keys)
    }
    references = [
        variable["valueFrom"]["secretKeyRef"]
        for template in get_templates(application)
        for variable in template["spec"]["containers"][0]["env"]
    ]
    endpoint = find(built("kubeflow"), "PodMonitor")["spec"]["podMetricsEndpoints"][0]
    references.append(endpoint["authorization"]["credentials"])

    assert {(one["name"], one["key"]) for one in references} == created


def test_ports_and_labels_fit_together(application: Manifest) -> None:
    objects = built("kubeflow")
    driver, executor = get_templates(application)
    container = driver["spec"]["containers"][0]
    (port,) = container["ports"]
    labels, others = driver["metadata"]["labels"], executor["metadata"]["labels"]
    service, monitor = find(objects, "Service"), find(objects, "PodMonitor")
    inside = find(objects, "NetworkPolicy")["spec"]
    watched = find(objects, "NetworkPolicy", "embedstream-monitor")["spec"]

    selectors = [
        service["spec"]["selector"],
        monitor["spec"]["selector"]["matchLabels"],
        watched["podSelector"]["matchLabels"],
    ]
    for selector in selectors:
        assert selector.items() <= labels.items()
        assert not selector.items() <= others.items()
    assert inside["podSelector"]["matchLabels"].items() <= labels.items() & others.items()
    assert service["spec"]["ports"][0]["targetPort"] == port["name"]
    assert monitor["spec"]["podMetricsEndpoints"][0]["port"] == port["name"]
    assert watched["ingress"][0]["ports"] == [{"protocol": "TCP", "port": port["name"]}]
    assert labels[monitor["spec"]["jobLabel"]] == "embedstream"
    probes = [container[kind]["httpGet"] for kind in ("startupProbe", "livenessProbe")]
    assert probes == [{"path": "/livez", "port": port["name"]}] * 2
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": port["name"]}


def test_the_network_policy_opens_what_spark_is_told_to_use(application: Manifest) -> None:
    conf = application["spec"]["sparkConf"]
    policy = find(built("kubeflow"), "NetworkPolicy")["spec"]
    used = {int(value) for name, value in conf.items() if name.endswith((".port", "Manager.port"))}

    assert used == {7078, 7079}
    for rule in (policy["ingress"][0], policy["egress"][0]):
        assert {one["port"] for one in rule["ports"]} == used


def test_the_network_policy_opens_the_brokers_ports(config: StreamConfig) -> None:
    opened = {
        port["port"]
        for rule in find(built("kubeflow"), "NetworkPolicy")["spec"]["egress"]
        if "to" not in rule
        for port in rule["ports"]
    }
    brokers = config.kafka.bootstrap_servers.split(",")

    assert {int(one.rpartition(":")[2]) for one in brokers} | {443} <= opened


def test_spark_is_given_nothing_that_the_stream_needs_otherwise(application: Manifest) -> None:
    check_spark_options(application["spec"]["sparkConf"], jars="provided")


def test_variables_for_the_driver_are_configuration(config: StreamConfig, tmp_path: Path) -> None:
    prefix = "spark.kubernetes.driverEnv."
    conf = find(built("example"), "SparkApplication")["spec"]["sparkConf"]
    environment = {
        name.removeprefix(prefix): value for name, value in conf.items() if name.startswith(prefix)
    }

    changed = load_config(tmp_path / "stream.yaml", environment=environment)

    mounts = {value for name, value in conf.items() if name.endswith("mount.path")}
    assert len(environment) == 3
    assert changed.encoder.device == "cuda"
    assert {str(Path(changed.table.path).parent)} == mounts
    assert {str(Path(changed.checkpoint).parent)} == mounts


def test_a_task_has_a_gpu_and_all_cores_of_its_executor() -> None:
    conf = find(built("example"), "SparkApplication")["spec"]["sparkConf"]
    assert conf["spark.task.cpus"] == conf["spark.executor.cores"]
    for who in ("executor", "task"):
        assert conf[f"spark.{who}.resource.gpu.amount"] == "1"


def test_both_operators_start_the_same() -> None:
    kubeflow, apache = (find(built(name), "SparkApplication") for name in ("kubeflow", "apache"))
    theirs, ours = kubeflow["spec"], apache["spec"]

    assert (theirs["mainApplicationFile"], theirs["arguments"]) == (
        ours["pyFiles"],
        ours["driverArgs"],
    )
    assert theirs["sparkConf"] == ours["sparkConf"]
    assert get_templates(kubeflow) == get_templates(apache)
    assert theirs["sparkVersion"] == ours["runtimeVersions"]["sparkVersion"]
    # The schema of the first has no list of them.
    assert theirs["restartPolicy"]["type"] in {"Never", "Always", "OnFailure"}


def test_the_operators_wait_as_long_as_a_driver_may_take() -> None:
    spec = find(built("apache"), "SparkApplication")["spec"]
    driver, _ = get_templates(find(built("apache"), "SparkApplication"))
    limits = spec["applicationTolerations"]["applicationTimeoutConfig"]
    startup = driver["spec"]["containers"][0]["startupProbe"]

    grace = driver["spec"]["terminationGracePeriodSeconds"]
    assert limits["forceTerminationGracePeriodMillis"] > grace * 1000
    assert limits["driverReadyTimeoutMillis"] >= 1000 * (
        startup["periodSeconds"] * startup["failureThreshold"]
    )
