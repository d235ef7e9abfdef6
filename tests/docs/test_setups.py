"""docs/setups.md: each set-up says whether it was run, and both Kafka clients take its options."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from kafka import KafkaConsumer
from kafka.net.sasl import get_sasl_mechanism
from pyspark.sql import SparkSession

from embedstream.config.load import load_config
from embedstream.config.sections import KafkaConfig
from embedstream.kafka.client_settings import convert_options
from embedstream.kafka.login import check_login
from embedstream.kafka.source import build_client_options
from embedstream.kafka.topics import open_admin
from embedstream_core.errors import SetupError

SETUPS = Path(__file__).parents[2] / "docs" / "setups.md"
_FLAGS = re.MULTILINE | re.DOTALL
SECTIONS = dict(re.findall(r"^### (.+?)\n(.*?)(?=^##|\Z)", SETUPS.read_text("utf-8"), _FLAGS))
KAFKA = {
    title: found[1]
    for title, text in SECTIONS.items()
    if (found := re.search(r"^```yaml\n(kafka:.*?)^```$", text, _FLAGS))
}
BASE = {"table": {"path": "data/table"}, "checkpoint": "data/checkpoint"}


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    names = re.findall(r"env:(\w+)", "".join(KAFKA.values()))
    for name in (*names, "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "a=secret;")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")


def load_kafka(block: str, folder: Path) -> KafkaConfig:
    path = folder / "stream.yaml"
    path.write_text(yaml.safe_dump({**BASE, **yaml.safe_load(block)}), encoding="utf-8")
    return load_config(path, environment={}).kafka


@pytest.mark.parametrize("title", SECTIONS)
def test_each_setup_says_whether_it_was_run_and_names_one_trap(title: str) -> None:
    text = SECTIONS[title]

    assert len(re.findall(r"\*\*(?:Run|Not run) here:\*\*", text)) == 1
    assert len(re.findall(r"^Trap: ", text, re.MULTILINE)) == 1
    tests = re.findall(r"`(tests/\S+\.py)`", text)
    assert all((SETUPS.parents[1] / test).is_file() for test in tests)
    assert tests or "**Run here" not in text


@pytest.mark.parametrize("title", KAFKA)
def test_kafka_python_accepts_the_options(title: str, tmp_path: Path) -> None:
    kafka = load_kafka(KAFKA[title], tmp_path)
    settings = convert_options(kafka.options)

    assert settings.keys() <= KafkaConsumer.DEFAULT_CONFIG.keys()
    check_login(settings)
    host = kafka.bootstrap_servers.partition(":")[0]
    login = get_sasl_mechanism(settings["sasl_mechanism"])(host=host, **settings)
    assert login.auth_bytes()
    if title == "Azure Event Hubs":
        assert login.auth_bytes() == b"$ConnectionString\0$ConnectionString\0a=secret;"


@pytest.mark.spark
def test_the_java_client_accepts_the_options(spark: SparkSession, tmp_path: Path) -> None:
    jvm: Any = spark.sparkContext._jvm
    clients = jvm.org.apache.kafka.clients
    known = set(clients.admin.AdminClientConfig.configNames())
    known &= set(clients.consumer.ConsumerConfig.configNames())

    for title, block in KAFKA.items():
        # The client looks up the name of the broker; it does not connect yet.
        servers = {"bootstrap_servers": "127.0.0.1:9092"}
        kafka = load_kafka(block, tmp_path).model_copy(update=servers)
        assert {one.removeprefix("kafka.") for one in build_client_options(kafka)} <= known, title
        if "spark.jars.packages" not in block:
            with open_admin(spark, kafka):
                pass
            continue
        # The sentence that a user sees without the jar.
        missing = kafka.options["kafka.sasl.client.callback.handler.class"]
        with (
            pytest.raises(SetupError, match=f"{missing} could not be found"),
            open_admin(spark, kafka),
        ):
            pass
