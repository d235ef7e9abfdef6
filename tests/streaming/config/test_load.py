"""The environment wins over the file, and `--set` over both; a text is taken literally."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from config_files import load, write
from embedstream.config.load import load_config


@pytest.mark.parametrize(
    ("override", "section", "name", "value"),
    [
        ("kafka.subscribe=cats", "kafka", "subscribe", "cats"),
        ("kafka.subscribe = cats ", "kafka", "subscribe", "cats"),
        ("kafka.max_offsets_per_trigger=50", "kafka", "max_offsets_per_trigger", 50),
        ("references.folders=[/a, /b]", "references", "folders", ("/a", "/b")),
        ("encoder={name: resnet18}", "encoder", "name", "resnet18"),
        ("spark.master=local[*,4]", "spark", "master", "local[*,4]"),
        ("table.path=s3a://bucket/a=b", "table", "path", "s3a://bucket/a=b"),
        (
            "kafka.starting_offsets={images: {0: 5}}",
            "kafka",
            "starting_offsets",
            {"images": {0: 5}},
        ),
    ],
)
def test_an_override_sets_one_key(
    tmp_path: Path, override: str, section: str, name: str, value: object
) -> None:
    config = load(tmp_path, {}, override)
    assert getattr(getattr(config, section), name) == value
    assert config.kafka.bootstrap_servers == "localhost:9092"


@pytest.mark.parametrize(
    ("override", "section", "option", "value"),
    [
        ("kafka.options.kafka.security.protocol=SSL", "kafka", "kafka.security.protocol", "SSL"),
        ("spark.options.spark.x.y=1", "spark", "spark.x.y", "1"),
        ("spark.options.spark.ui.enabled=false", "spark", "spark.ui.enabled", "false"),
        ("kafka.options={kafka.client.id: me}", "kafka", "kafka.client.id", "me"),
    ],
)
def test_an_options_name_keeps_its_dots(
    tmp_path: Path, override: str, section: str, option: str, value: str
) -> None:
    changes = {"kafka": {"options": {"kafka.a.b": 1}}, "spark": {"options": {"spark.a.b": 1}}}
    config = load(tmp_path, changes, override)
    assert getattr(config, section).options == {f"{section}.a.b": "1", option: value}


def test_a_table_propertys_name_keeps_its_dots(tmp_path: Path) -> None:
    config = load(tmp_path, {}, "table.properties.delta.logRetentionDuration=interval 7 days")
    assert config.table.properties == {"delta.logRetentionDuration": "interval 7 days"}


def test_a_topics_name_keeps_its_dots(tmp_path: Path) -> None:
    changes = {"kafka": {"subscribe": None, "starting_offsets": "latest"}}
    overrides = ["kafka.assign.shop.images=[0, 1]", "kafka.starting_offsets.shop.images={0: 5}"]
    config = load(tmp_path, changes, *overrides)
    assert config.kafka.assign == {"shop.images": [0, 1]}
    assert config.kafka.starting_offsets == {"shop.images": {0: 5}}


@pytest.mark.parametrize(
    ("environment", "overrides", "subscribe"),
    [
        ({}, (), "file"),
        ({"EMBEDSTREAM_KAFKA__SUBSCRIBE": "environment"}, (), "environment"),
        ({}, ("kafka.subscribe=set",), "set"),
        ({"EMBEDSTREAM_KAFKA__SUBSCRIBE": "environment"}, ("kafka.subscribe=set",), "set"),
        ({}, ("kafka.subscribe=first", "kafka.subscribe=last"), "last"),
        ({"KAFKA__SUBSCRIBE": "other", "EMBEDSTREAM_JARS": "/jars"}, (), "file"),
    ],
)
def test_the_environment_wins_over_the_file_and_set_over_both(
    tmp_path: Path, environment: dict[str, str], overrides: Sequence[str], subscribe: str
) -> None:
    changes = {"kafka": {"subscribe": "file"}}
    config = load(tmp_path, changes, *overrides, environment=environment)
    assert config.kafka.subscribe == subscribe


def test_the_environment_reaches_every_depth(tmp_path: Path) -> None:
    environment = {
        "EMBEDSTREAM_CHECKPOINT": "/other",
        "EMBEDSTREAM_ENCODER__BATCH_SIZE": "4",
        "EMBEDSTREAM_KAFKA__OPTIONS": "{kafka.security.protocol: SSL}",
        "EMBEDSTREAM_SPARK__JAR_SETS": "[spark, s3]",
    }
    changes = {"kafka": {"options": {"kafka.client.id": "me"}}}

    config = load(tmp_path, changes, environment=environment)

    assert config.checkpoint == "/other"
    assert config.encoder.batch_size == 4
    assert config.kafka.options == {"kafka.client.id": "me", "kafka.security.protocol": "SSL"}
    assert config.spark.jar_sets == ("spark", "s3")


def test_the_processes_environment_is_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDSTREAM_KAFKA__SUBSCRIBE", "cats")
    assert load_config(write(tmp_path, {})).kafka.subscribe == "cats"


@pytest.mark.parametrize(
    "name",
    [
        "EMBEDSTREAM_JARS",
        "EMBEDSTREAM_SEED",
        # What Kubernetes sets for services called embedstream and embedstream-pages.
        "EMBEDSTREAM_SERVICE_HOST",
        "EMBEDSTREAM_SERVICE_PORT_HTTP",
        "EMBEDSTREAM_PORT",
        "EMBEDSTREAM_PORT_8080_TCP_ADDR",
        "EMBEDSTREAM_PAGES_SERVICE_HOST",
        "EMBEDSTREAM_PAGES_PORT_443_TCP",
    ],
)
def test_a_variable_for_something_else_is_left_alone(tmp_path: Path, name: str) -> None:
    assert load(tmp_path, environment={name: "cats"}) == load(tmp_path)


def test_every_variable_of_the_project_is_known(tmp_path: Path) -> None:
    root = Path(__file__).parents[3]
    places = [root / "Dockerfile", root / "docker-compose.yml", root / "Makefile"]
    for folder in ("core", "streaming", "tests/faults", "benchmarks", "scripts"):
        places += (root / folder).rglob("*.py")
    texts = [place.read_text(encoding="utf-8") for place in places]
    named = {name for text in texts for name in re.findall(r"\bEMBEDSTREAM_[A-Z_]+\b", text)}

    assert named > {"EMBEDSTREAM_JARS", "EMBEDSTREAM_SEED", "EMBEDSTREAM_TABLE__PATH"}
    environment = {name: "table" if name.endswith("PATH") else "images" for name in named}
    assert load(tmp_path, environment=environment).table.path.endswith("/table")


def test_an_empty_section_can_be_filled(tmp_path: Path) -> None:
    config = load(tmp_path, {"encoder": None}, "encoder.name=resnet18")
    assert config.encoder.name == "resnet18"


@pytest.mark.parametrize("text", ["2024", "1e3", "1.50", "on", "0x10", "0123", "2026-01-31", "1_0"])
def test_a_text_is_taken_literally(tmp_path: Path, text: str) -> None:
    """Although YAML has numbers, dates and truth values that are written so."""
    keys = {"subscribe": f"kafka.subscribe={text}", "app_name": f"spark.app_name={text}"}
    path = tmp_path / "stream.yaml"
    path.write_text(
        f"{{kafka: {{bootstrap_servers: x, subscribe: {text}}}, table: {{path: t}}, checkpoint: c,"
        f" spark: {{app_name: {text}}}, references: {{hosts: [{text}]}}}}"
    )
    configs = [
        load_config(path, environment={}),
        load(tmp_path, {}, *keys.values(), f"references.hosts=[{text}]"),
        load(
            tmp_path,
            environment={
                "EMBEDSTREAM_KAFKA__SUBSCRIBE": text,
                "EMBEDSTREAM_SPARK__APP_NAME": text,
                "EMBEDSTREAM_REFERENCES__HOSTS": f"[{text}]",
            },
        ),
    ]
    for config in configs:
        assert (config.kafka.subscribe, config.spark.app_name) == (text, text)
        assert config.references.hosts == (text,)


@pytest.mark.parametrize(
    "override", ["kafka.subscribe=null", "kafka.subscribe=~", "kafka.subscribe="]
)
def test_null_removes_a_text(tmp_path: Path, override: str) -> None:
    config = load(tmp_path, {}, override, "kafka.subscribe_pattern=[a-z]+")
    assert config.kafka.subscribe is None
    assert config.kafka.subscribe_pattern == "[a-z]+"


@pytest.mark.parametrize(
    ("override", "name"),
    [
        ("spark.app_name='null'", "null"),
        ('spark.app_name="2024"', "2024"),
        ("spark.app_name=day: 7", "day: 7"),
        ("spark.app_name=[a", "[a"),
        ("spark.app_name=*", "*"),
        ("spark.app_name=@home", "@home"),
    ],
)
def test_yaml_reads_only_quotes_and_null_of_a_text(
    tmp_path: Path, override: str, name: str
) -> None:
    assert load(tmp_path, {}, override).spark.app_name == name


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a #b", "a #b"),
        ("[a, b]", "[a, b]"),
        ("a: b", "a: b"),
        ("*a", "*a"),
        ("|", "|"),
        ("one\ntwo", "one\ntwo"),
        ('" a "', " a "),
        ("no", "false"),
        ("0.10", "0.10"),
    ],
)
def test_the_value_of_an_option_is_taken_literally(tmp_path: Path, value: str, text: str) -> None:
    options = {"spark": {"options": {"spark.x": "old"}}}
    by_set = load(tmp_path, options, f"spark.options.spark.x={value}")
    variable = {"EMBEDSTREAM_SPARK__OPTIONS__spark.x": value}
    for config in (by_set, load(tmp_path, options, environment=variable)):
        assert config.spark.options == {"spark.x": text}


def test_a_variable_keeps_the_case_of_an_options_name(tmp_path: Path) -> None:
    environment = {
        "EMBEDSTREAM_SPARK__OPTIONS__spark.ui.showConsoleProgress": "true",
        "EMBEDSTREAM_SPARK__OPTIONS__SPARK.UI.PORT": "4050",
    }
    options = load(tmp_path, environment=environment).spark.options
    assert options == {"spark.ui.showConsoleProgress": "true", "spark.ui.port": "4050"}


def test_a_topic_that_is_a_number_has_partitions(tmp_path: Path) -> None:
    config = load(tmp_path, {"kafka": {"subscribe": None}}, "kafka.assign={2024: [0, 1]}")
    assert config.kafka.assign == {"2024": [0, 1]}
