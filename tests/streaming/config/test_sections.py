"""A configuration is read from three places, is wrong with a sentence, and tells no secret."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from embedstream.cli.options import parse_time
from embedstream.config.load import load_config
from embedstream.config.sections import (
    ConfigError,
    KafkaConfig,
    StreamConfig,
    resolved_options,
    revealed,
)
from embedstream.worker.model import prepare
from embedstream_core.media.image.decode import Preprocessing

CONFIGURATIONS = sorted((Path(__file__).parents[3] / "conf").glob("*.yaml"))

MINIMAL: dict[str, Any] = {
    "kafka": {"bootstrap_servers": "localhost:9092", "subscribe": "images"},
    "table": {"path": "/data/table"},
    "checkpoint": "/data/checkpoint",
}

SECRET = "hunter2-und-möwe"

JAAS = 'ScramLoginModule required username="me" password="{}";'


def write(folder: Path, changes: Mapping[str, Any]) -> Path:
    """The minimal configuration, with these keys set in its sections."""
    tree = {name: value for name, value in MINIMAL.items() if name not in changes}
    for name, value in changes.items():
        old = MINIMAL.get(name)
        both = isinstance(old, dict) and isinstance(value, dict)
        tree[name] = {**old, **value} if both else value  # type: ignore[dict-item]
    path = folder / "stream.yaml"
    path.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
    return path


def load(
    folder: Path,
    changes: Mapping[str, Any] | None = None,
    *overrides: str,
    environment: Mapping[str, str] | None = None,
) -> StreamConfig:
    return load_config(write(folder, changes or {}), overrides, environment=environment or {})


def problems(folder: Path, changes: Mapping[str, Any], *overrides: str) -> list[str]:
    """What is told of a wrong configuration, a line each."""
    with pytest.raises(ConfigError) as error:
        load(folder, changes, *overrides)
    return str(error.value).splitlines()


def shown(config: StreamConfig) -> str:
    """All that a careless print or a log line could show of a configuration."""
    return "\n".join(
        [repr(config), str(config), str(config.model_dump()), config.model_dump_json()]
    )


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.stem)
def test_every_configuration_that_is_shipped_loads(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["KAFKA_PASSWORD", "KAFKA_TRUSTSTORE_PASSWORD"]
    for name in [*names, "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]:
        monkeypatch.setenv(name, SECRET)

    config = load_config(path, environment={})

    assert config.kafka.subscribe == "images"
    assert SECRET not in shown(config)


def test_there_are_configurations_to_load() -> None:
    assert {path.stem for path in CONFIGURATIONS} >= {"cluster", "compose", "demo", "local"}


def test_the_clusters_options_get_their_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_PASSWORD", "one")
    monkeypatch.setenv("KAFKA_TRUSTSTORE_PASSWORD", "two")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "three")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "four")
    (path,) = (path for path in CONFIGURATIONS if path.stem == "cluster")

    config = load_config(path, environment={})

    kafka, spark = revealed(config.kafka.options), revealed(config.spark.options)
    assert kafka["kafka.sasl.jaas.config"].endswith('username="embedstream" password="one";')
    assert kafka["kafka.ssl.truststore.password"] == "two"
    assert spark["spark.hadoop.fs.s3a.access.key"] == "three"
    assert spark["spark.hadoop.fs.s3a.secret.key"] == "four"
    assert spark["spark.executor.cores"] == "8"


def test_the_cluster_says_which_variable_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KAFKA_PASSWORD", raising=False)
    (path,) = (path for path in CONFIGURATIONS if path.stem == "cluster")
    with pytest.raises(ConfigError, match="the environment variable KAFKA_PASSWORD is not set"):
        load_config(path, environment={})


def test_three_keys_are_enough(tmp_path: Path) -> None:
    config = load(tmp_path)
    assert config.kafka.starting_offsets == "earliest"
    assert config.encoder.name == "resnet50"
    assert config.references.folders == ()
    assert config.spark.master is None


@pytest.mark.parametrize(
    ("changes", "key", "nearest", "choices"),
    [
        ({"kafak": {}}, "kafak", "kafka", ["kafka", "encoder", "table", "checkpoint"]),
        (
            {"kafka": {"subscirbe": "cats"}},
            "kafka.subscirbe",
            "subscribe",
            ["bootstrap_servers", "subscribe_pattern", "assign"],
        ),
        ({"encoder": {"weigths": "x"}}, "encoder.weigths", "weights", ["name", "precision"]),
        ({"spark": {"jars_sets": []}}, "spark.jars_sets", "jar_sets", ["master", "options"]),
    ],
)
def test_an_unknown_key_is_told_with_the_nearest_and_all_choices(
    tmp_path: Path, changes: dict[str, Any], key: str, nearest: str, choices: list[str]
) -> None:
    header, line = problems(tmp_path, changes)
    assert header == f"the configuration {tmp_path / 'stream.yaml'} is wrong:"
    assert line.startswith(f"  {key}: unknown key; did you mean '{nearest}'? known: ")
    assert set(line.partition("known: ")[2].split(", ")) >= {nearest, *choices}


def test_an_unknown_key_like_no_other_gets_the_choices_only(tmp_path: Path) -> None:
    (_, line) = problems(tmp_path, {"message": {"zzz": 1}})
    assert line == "  message.zzz: unknown key; known: format, id_header"


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"kafka": {"max_offsets_per_trigger": "many"}},
            "  kafka.max_offsets_per_trigger: should be a valid integer, unable to parse string as "
            "an integer, not 'many'",
        ),
        (
            {"kafka": {"min_partitions": 0}},
            "  kafka.min_partitions: should be greater than 0, not '0'",
        ),
        (
            {"encoder": {"device": "tpu"}},
            "  encoder.device: should be 'auto', 'cpu' or 'cuda', not 'tpu'",
        ),
        (
            {"references": {"schemes": ["file", "ftp"]}},
            "  references.schemes.1: should be 'file', 'http', 'https', 's3', 's3a' or 's3n', not "
            "'ftp'",
        ),
        (
            {"references": {"folders": "/pictures"}},
            "  references.folders: should be a list, as [one, other], not '/pictures'",
        ),
        ({"checkpoint": [7]}, "  checkpoint: should be a text"),
        ({"trigger": {"interval_s": "inf"}}, "  trigger.interval_s: should be a finite number"),
        ({"trigger": {"interval_s": -1}}, "  trigger.interval_s: should be greater than or equal"),
        ({"kafka": {"assign": {"images": "0"}}}, "  kafka.assign.images: should be a list, as ["),
    ],
)
def test_a_wrong_value_is_told_with_its_key(
    tmp_path: Path, changes: dict[str, Any], line: str
) -> None:
    (_, told) = problems(tmp_path, changes)
    assert told.startswith(line)


@pytest.mark.parametrize("name", ["table", "checkpoint", "kafka"])
def test_a_missing_key_is_told(tmp_path: Path, name: str) -> None:
    path = tmp_path / "stream.yaml"
    path.write_text(yaml.safe_dump({key: MINIMAL[key] for key in MINIMAL if key != name}))
    with pytest.raises(ConfigError, match=f"\n  {name}: required, but not given$"):
        load_config(path, environment={})


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "stream.yaml"
    tree = {
        "kafka": {"bootstrap_servers": "x", "subscribe": "a", "assign": {"a": [0]}},
        "table": {},
        "encodr": {"name": "resnet18"},
        "decode": {"max_image_bytes": "big"},
        "spark": {"options": {"executor.cores": 1}},
    }
    path.write_text(yaml.safe_dump(tree))

    with pytest.raises(ConfigError) as error:
        load_config(path, environment={})

    keys = [line.split(":")[0].strip() for line in str(error.value).splitlines()[1:]]
    assert sorted(keys) == [
        "checkpoint",
        "decode.max_image_bytes",
        "encodr",
        "kafka",
        "spark",
        "table.path",
    ]


@pytest.mark.parametrize(
    "kafka",
    [
        {"assign": {"images": [0]}},
        {"subscribe_pattern": "images.*"},
        {"subscribe": None},
        {"subscribe": None, "subscribe_pattern": "a", "assign": {"images": [0]}},
    ],
)
def test_topics_are_chosen_in_one_way(tmp_path: Path, kafka: dict[str, Any]) -> None:
    (_, line) = problems(tmp_path, {"kafka": kafka})
    assert line == "  kafka: give exactly one of subscribe, subscribe_pattern and assign"


def test_the_first_start_is_given_once(tmp_path: Path) -> None:
    both = {"starting_offsets": "earliest", "starting_timestamp": "2026-01-01T00:00:00Z"}
    (_, line) = problems(tmp_path, {"kafka": both})
    assert line == "  kafka: give starting_offsets or starting_timestamp, not both"
    assert load(tmp_path, {"kafka": {"starting_timestamp": "2026-01-01T00:00:00Z"}})


PREPROCESSING = {"resize_px": 40, "crop_px": 32, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.3]}


def test_a_declared_preprocessing_reaches_the_model(tmp_path: Path) -> None:
    encoder = {"name": "resnet18", "weights": "random", "preprocessing": PREPROCESSING}
    config = load_config(write(tmp_path, {"encoder": encoder}))

    card = prepare(config.encoder).card

    assert card.preprocessing == Preprocessing(40, 32, "bilinear", (0.5, 0.4, 0.3), (0.2, 0.2, 0.3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop_px": 64}, "crop_px 64 is larger than resize_px 40"),
        ({"std": [0.2, 0, 0.3]}, "encoder.preprocessing.std.1"),
        ({"mean": [0.5]}, "encoder.preprocessing.mean"),
        ({"interpolation": "box"}, "'bilinear', 'bicubic', 'lanczos' or 'nearest'"),
    ],
)
def test_a_wrong_preprocessing_is_told(
    changes: Mapping[str, Any], message: str, tmp_path: Path
) -> None:
    wrong = {"encoder": {"preprocessing": {**PREPROCESSING, **changes}}}
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config(write(tmp_path, wrong))


def test_a_spark_option_begins_with_spark(tmp_path: Path) -> None:
    (_, line) = problems(tmp_path, {"spark": {"options": {"executor.cores": 2}}})
    assert line == "  spark: 'executor.cores' is no setting of Spark: all begin with 'spark.'"


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


@pytest.mark.parametrize(
    ("given", "text"), [("true", "true"), ("7", "7"), ("1.5", "1.5"), ("interval 7 days",) * 2]
)
def test_a_table_property_is_written_as_delta_writes_it(
    tmp_path: Path, given: str, text: str
) -> None:
    config = load(tmp_path, {}, f"table.properties.delta.x={given}")
    assert config.table.properties == {"delta.x": text}


def test_a_topics_name_keeps_its_dots(tmp_path: Path) -> None:
    changes = {"kafka": {"subscribe": None, "starting_offsets": "latest"}}
    overrides = ["kafka.assign.shop.images=[0, 1]", "kafka.starting_offsets.shop.images={0: 5}"]
    config = load(tmp_path, changes, *overrides)
    assert config.kafka.assign == {"shop.images": [0, 1]}
    assert config.kafka.starting_offsets == {"shop.images": {0: 5}}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("kafka.subscribe", "--set takes key=value, .* not 'kafka.subscribe'"),
        ("kafka.subscribe=[", r"kafka: '\[' is no name of a topic"),
        ("kafka.min_partitions=[", r"the value of kafka\.min_partitions is not YAML"),
        ("spark.options={spark.a: 1, spark.a: 2}", "is not YAML: .* found a key twice in line 1"),
        ("kafka.subscrib=cats", r"kafka\.subscrib: unknown key; did you mean 'subscribe'"),
        ("=cats", "unknown key"),
    ],
)
def test_a_wrong_override_is_told(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, {}, override)


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
    ("name", "nearest"),
    [
        ("EMBEDSTREAM_KAFKA_SUBSCRIBE", "EMBEDSTREAM_KAFKA__SUBSCRIBE"),
        ("EMBEDSTREAM_KAFKA__SUBSCRIB", "EMBEDSTREAM_KAFKA__SUBSCRIBE"),
        ("EMBEDSTREAM_KAFAK__SUBSCRIBE", "EMBEDSTREAM_KAFKA__SUBSCRIBE"),
        ("EMBEDSTREAM_CHECKPOINTS", "EMBEDSTREAM_CHECKPOINT"),
        ("EMBEDSTREAM_CHECKPOINT__PATH", "EMBEDSTREAM_CHECKPOINT"),
        ("EMBEDSTREAM_TABLE_PATH", "EMBEDSTREAM_TABLE__PATH"),
        (
            "EMBEDSTREAM_ENCODER__PREPROCESSING__CROP",
            "EMBEDSTREAM_ENCODER__PREPROCESSING__CROP_PX",
        ),
        ("EMBEDSTREAM_JAR", "EMBEDSTREAM_JARS"),
        ("EMBEDSTREAM_", None),
    ],
)
def test_a_mistyped_variable_is_told(tmp_path: Path, name: str, nearest: str | None) -> None:
    with pytest.raises(ConfigError) as error:
        load(tmp_path, environment={name: "cats"})
    assert str(error.value).startswith(f"the environment variable {name} names no key")
    assert (f"did you mean {nearest}?" in str(error.value)) == (nearest is not None)


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
    assert load(tmp_path, environment=dict.fromkeys(named, "images")).table.path.endswith("images")


def test_an_empty_section_can_be_filled(tmp_path: Path) -> None:
    config = load(tmp_path, {"encoder": None}, "encoder.name=resnet18")
    assert config.encoder.name == "resnet18"


@pytest.mark.parametrize(
    ("given", "resolved"),
    [
        ("env:TEST_SECRET", SECRET),
        ("file:{folder}/secret", SECRET),
        (JAAS.format("${env:TEST_SECRET}"), JAAS.format(SECRET)),
        ("${env:TEST_USER}:${file:{folder}/secret}", f"me:{SECRET}"),
    ],
)
@pytest.mark.parametrize("section", ["kafka", "spark"])
def test_a_secret_is_resolved_and_never_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, section: str, given: str, resolved: str
) -> None:
    monkeypatch.setenv("TEST_SECRET", SECRET)
    monkeypatch.setenv("TEST_USER", "me")
    (tmp_path / "secret").write_text(f"{SECRET}\n", encoding="utf-8")
    name = f"{section}.some.password"
    option = given.replace("{folder}", str(tmp_path))

    config = load(tmp_path, {section: {"options": {name: option}}})

    assert revealed(getattr(config, section).options) == {name: resolved}
    assert SECRET not in shown(config)


def test_an_option_that_is_no_reference_stays_readable(tmp_path: Path) -> None:
    options = {"kafka.a": "file", "kafka.b": "environment:x", "kafka.c": True, "kafka.d": 1.5}
    config = load(tmp_path, {"kafka": {"options": options}})
    assert config.kafka.options == {
        "kafka.a": "file",
        "kafka.b": "environment:x",
        "kafka.c": "true",
        "kafka.d": "1.5",
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("env:TEST_ABSENT", "the environment variable TEST_ABSENT is not set"),
        ("a ${env:TEST_ABSENT} b", "the environment variable TEST_ABSENT is not set"),
        ("file:/no/such", "the file /no/such cannot be read: No such file or directory"),
        ("${file:/}", "the file / cannot be read: Is a directory"),
    ],
)
def test_a_reference_that_leads_nowhere_is_told(tmp_path: Path, given: str, message: str) -> None:
    assert "TEST_ABSENT" not in os.environ
    changes = {"kafka": {"options": {"kafka.ssl.key.password": given}}}
    (_, line) = problems(tmp_path, changes)
    assert line == f"  kafka.options.kafka.ssl.key.password: {message}"


def test_a_secret_file_that_is_no_text_is_told(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"\xff\xfe\x00")
    changes = {"kafka": {"options": {"kafka.ssl.key.password": f"file:{tmp_path / 'secret'}"}}}
    (_, line) = problems(tmp_path, changes)
    assert f"the file {tmp_path / 'secret'} cannot be read" in line


@pytest.mark.parametrize(
    ("section", "options"),
    [
        ("kafka", {"kafka.ssl.key.password": SECRET}),
        ("kafka", {"kafka.ssl.key.PASSWORD": 12345678}),
        ("kafka", {"kafka.sasl.jaas.config": JAAS.format(SECRET)}),
        ("kafka", {"kafka.sasl.jaas.config": f"x password = {SECRET};"}),
        ("spark", {"spark.hadoop.fs.s3a.secret.key": SECRET}),
        ("spark", {"spark.hadoop.fs.s3a.session.token": SECRET}),
        ("kafka", {"kafka": {"ssl": {"key": {"password": SECRET}}}}),
    ],
)
def test_a_secret_in_plain_text_is_refused_and_not_repeated(
    tmp_path: Path, section: str, options: dict[str, Any]
) -> None:
    text = "\n".join(problems(tmp_path, {section: {"options": options}}))
    assert f"  {section}.options" in text
    assert SECRET not in text
    assert "12345678" not in text


@pytest.mark.parametrize(
    ("section", "name"), [("kafka", "options"), ("spark", "options"), ("table", "properties")]
)
@pytest.mark.parametrize(("value", "kind"), [([SECRET], "list"), ({"y": SECRET}, "dict")])
def test_an_option_that_is_no_single_value_is_refused(
    tmp_path: Path, section: str, name: str, value: object, kind: str
) -> None:
    (_, line) = problems(tmp_path, {section: {name: {f"{section}.x": value}}})
    assert line == (
        f"  {section}.{name}.{section}.x: its value is a text, a number, true or false, not a "
        f"{kind}; write a name with dots as one key, as in `kafka.security.protocol: SSL`"
    )


def test_a_plain_secret_is_refused_with_the_way_out(tmp_path: Path) -> None:
    changes = {"kafka": {"options": {"kafka.ssl.key.password": SECRET}}}
    (_, line) = problems(tmp_path, changes)
    assert line == (
        "  kafka.options: 'kafka.ssl.key.password' holds a secret in plain text; give it as "
        "env:NAME or file:PATH, or as ${env:NAME} within a longer value"
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"kafka": {"options": {"kafka.ssl.key.password": SECRET}, "subscirbe": "x"}},
        {"kafka": {"options": [{"kafka.ssl.key.password": SECRET}]}},
        {"kafka": {"options": JAAS.format(SECRET)}},
        {"kafka": [{"options": {"kafka.ssl.key.password": SECRET}}]},
        {"spark": {"options": ["spark.hadoop.fs.s3a.secret.key", SECRET]}},
    ],
    ids=["beside", "list", "text", "section", "pairs"],
)
def test_no_error_message_holds_a_secret(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert SECRET not in "\n".join(problems(tmp_path, changes))


@pytest.mark.parametrize(
    "value",
    [
        f"{{{SECRET}",
        f"[{SECRET}",
        f'"{SECRET}',
        "*hunter2",
        "!hunter2",
        "!hunter2!x",
        "!hunter'2",
        "!!int hunter2",
        "\x00hunter2",
    ],
    ids=["mapping", "list", "text", "alias", "tag", "handle", "quote", "number", "character"],
)
def test_a_secret_that_is_not_yaml_is_not_repeated(tmp_path: Path, value: str) -> None:
    override = f"kafka.options={value}"
    text = "\n".join(problems(tmp_path, {}, override))
    assert text.startswith("the value of kafka.options is not YAML: ")
    assert "hunter" not in text


def test_a_file_that_is_not_yaml_is_told_without_its_secrets(tmp_path: Path) -> None:
    path = tmp_path / "stream.yaml"
    path.write_text(
        f"kafka:\n  options:\n    ssl.password: [{SECRET}\ntable: x\n", encoding="utf-8"
    )
    with pytest.raises(ConfigError, match="is not YAML") as error:
        load_config(path)
    assert "line 3" in str(error.value)
    assert SECRET not in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"kafka": {"options": {"kafka.ssl.key.password": "env:TEST_SECRET"}, "assign": 5}},
        {"spark": {"options": {"x.secret": "env:TEST_SECRET"}}},
    ],
)
def test_no_error_message_holds_a_resolved_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    monkeypatch.setenv("TEST_SECRET", SECRET)
    assert SECRET not in "\n".join(problems(tmp_path, changes))


def test_options_from_elsewhere_keep_the_same_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_SECRET", SECRET)
    options = resolved_options({"security_protocol": "SSL", "ssl_password": "env:TEST_SECRET"})
    assert SECRET not in repr(options)
    assert revealed(options) == {"security_protocol": "SSL", "ssl_password": SECRET}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"ssl_password": "env:TEST_ABSENT", "ssl_cafile": "file:/no/such"},
            "ssl_password: the environment variable TEST_ABSENT is not set\n"
            "ssl_cafile: the file /no/such cannot be read: No such file or directory",
        ),
        ({"ssl_password": SECRET}, "'ssl_password' holds a secret in plain text; give it as env:"),
    ],
)
def test_wrong_options_from_elsewhere_are_told_in_plain_words(
    options: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        resolved_options(options)
    assert str(error.value).startswith(message)
    assert SECRET not in str(error.value)


def sections(config: BaseModel) -> list[BaseModel]:
    inner = [value for _, value in config if isinstance(value, BaseModel)]
    return [config, *(section for one in inner for section in sections(one))]


def test_nothing_can_be_changed(tmp_path: Path) -> None:
    found = sections(load(tmp_path))
    assert len(found) == 10
    for section in found:
        (name, *_) = type(section).model_fields
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, name, None)


def test_places_do_not_depend_on_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    config = load(
        tmp_path,
        {
            "table": {"path": "table"},
            "checkpoint": "s3a://bucket/checkpoint",
            "references": {"folders": ["~/pictures"]},
        },
    )
    assert config.table.path == str(tmp_path / "table")
    assert config.checkpoint == "s3a://bucket/checkpoint"
    assert config.references.folders == ("/home/me/pictures",)


@pytest.mark.parametrize("text", ["2024", "1e3", "1.50", "on", "0x10", "0123", "2026-01-31", "1_0"])
def test_a_text_is_the_text_that_was_written(tmp_path: Path, text: str) -> None:
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


def test_a_topic_that_is_a_number_has_partitions(tmp_path: Path) -> None:
    config = load(tmp_path, {"kafka": {"subscribe": None}}, "kafka.assign={2024: [0, 1]}")
    assert config.kafka.assign == {"2024": [0, 1]}


@pytest.mark.parametrize(
    "override", ["kafka.subscribe=null", "kafka.subscribe=~", "kafka.subscribe="]
)
def test_null_takes_a_text_away(tmp_path: Path, override: str) -> None:
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
def test_of_a_text_only_quotes_and_null_are_yaml(tmp_path: Path, override: str, name: str) -> None:
    assert load(tmp_path, {}, override).spark.app_name == name


@pytest.mark.parametrize(
    ("given", "value"),
    [("true", "true"), ("Yes", "true"), ("off", "false"), ("'yes'", "yes"), ("0123", "0123")],
)
def test_an_option_is_a_truth_value_as_spark_writes_it(
    tmp_path: Path, given: str, value: str
) -> None:
    config = load(tmp_path, {}, f"spark.options.spark.x={given}")
    assert config.spark.options == {"spark.x": value}


@pytest.mark.parametrize(("given", "value"), [("on", "on"), ("true", "on"), ("no", "off")])
def test_a_switch_is_a_truth_value(tmp_path: Path, given: str, value: str) -> None:
    assert load(tmp_path, {}, f"pipeline.dedupe={given}").pipeline.dedupe == value


@pytest.mark.parametrize(
    ("given", "utc"),
    [
        ("2026-01-31T12:00:00", "2026-01-31T12:00:00+00:00"),
        ("2026-01-31 12:00:00", "2026-01-31T12:00:00+00:00"),
        ("2026-01-31T12:00", "2026-01-31T12:00:00+00:00"),
        ("2026-01-31", "2026-01-31T00:00:00+00:00"),
        ("2026-01-31T12:00:00Z", "2026-01-31T12:00:00+00:00"),
        ("2026-01-31T12:00:00+01:00", "2026-01-31T11:00:00+00:00"),
    ],
)
def test_a_time_without_a_zone_is_in_utc(
    tmp_path: Path, new_york: None, given: str, utc: str
) -> None:
    wanted = datetime.fromisoformat(utc)
    start = load(tmp_path, {}, f"kafka.starting_timestamp={given}").kafka.starting_timestamp
    assert start == wanted
    assert parse_time(given) == wanted


def test_times_and_dates_of_python_are_in_utc_too(new_york: None) -> None:
    kafka = MINIMAL["kafka"]
    for given in (datetime(2026, 1, 31), date(2026, 1, 31)):
        config = KafkaConfig.model_validate({**kafka, "starting_timestamp": given})
        assert config.starting_timestamp == datetime(2026, 1, 31, tzinfo=UTC)


@pytest.fixture
def new_york(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine that is not in UTC."""
    with monkeypatch.context() as patched:
        patched.setenv("TZ", "America/New_York")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.parametrize("topics", ["", ",", "cats,", "a b", "möwe", "x" * 250])
def test_what_is_no_name_of_a_topic_is_refused(tmp_path: Path, topics: str) -> None:
    (_, line) = problems(tmp_path, {"kafka": {"subscribe": topics}})
    assert "is no name of a topic" in line


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "absent.yaml"
    with pytest.raises(ConfigError, match="No such file or directory") as error:
        load_config(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"kafka: [", "is not YAML: "),
        (b"kafka:\n\t- tab", "is not YAML: "),
        (b"\xff\xfe\x00\xd8", "is not YAML: "),
        (b"- kafka\n- table\n", "holds no keys; see conf/local.yaml"),
        (b"kafka", "holds no keys"),
        (b"", "holds no keys"),
    ],
)
def test_what_is_no_mapping_is_told(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "stream.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert str(error.value).startswith(f"the configuration {path} {message}")


@pytest.mark.parametrize(
    ("given", "utc"),
    [
        ("20260131", "2026-01-31T00:00:00"),
        ("2026-01-31T12", "2026-01-31T12:00:00"),
        ("2026-01-31T12:00+02", "2026-01-31T10:00:00"),
        ("1769860800", "2026-01-31T12:00:00"),
        ("1769860800250", "2026-01-31T12:00:00.250000"),
    ],
)
def test_a_time_is_what_a_reader_takes_it_for(
    tmp_path: Path, new_york: None, given: str, utc: str
) -> None:
    start = load(tmp_path, {}, f"kafka.starting_timestamp={given}").kafka.starting_timestamp
    assert start == datetime.fromisoformat(f"{utc}+00:00")


@pytest.mark.parametrize("given", ["2026", "202601", "-1", "0", "1e9", "now", "true", "1969-12-31"])
def test_a_number_that_could_be_a_date_is_no_time(tmp_path: Path, given: str) -> None:
    """Read as seconds since 1970, the year 2026 would be the topic's beginning."""
    (line,) = problems(tmp_path, {}, f"kafka.starting_timestamp={given}")[1:]
    assert line.startswith(f"  kafka.starting_timestamp: {given!r} is no time") or "1970" in line


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
def test_the_value_of_an_option_is_a_text_as_written(tmp_path: Path, value: str, text: str) -> None:
    options = {"spark": {"options": {"spark.x": "old"}}}
    by_set = load(tmp_path, options, f"spark.options.spark.x={value}")
    variable = {"EMBEDSTREAM_SPARK__OPTIONS__spark.x": value}
    for config in (by_set, load(tmp_path, options, environment=variable)):
        assert config.spark.options == {"spark.x": text}


def test_an_option_without_a_value_says_how_to_write_an_empty_one(tmp_path: Path) -> None:
    name = "kafka.options.kafka.ssl.endpoint.identification.algorithm"
    (line,) = problems(tmp_path, {}, f"{name}=")[1:]
    assert line == f"  {name}: it has no value; write '' for an empty text, or leave it out"
    assert load(tmp_path, {}, f"{name}=''").kafka.options == {name[14:]: ""}


@pytest.mark.parametrize("separator", [":", " ", ": "])
def test_an_override_without_an_equals_sign_is_not_repeated_with_its_value(
    tmp_path: Path, separator: str
) -> None:
    override = f"kafka.options.kafka.ssl.key.password{separator}{SECRET}"
    (line,) = problems(tmp_path, {}, override)
    assert line.endswith("not 'kafka.options.kafka.ssl.key.password'")


@pytest.mark.parametrize(
    "name",
    [
        "embedstream_kafka__subscribe",
        "Embedstream_Kafka__Subscribe",
        "EMBEDSTREAM.KAFKA.SUBSCRIBE",
        "EMBEDSTREAM-KAFKA__SUBSCRIBE",
    ],
)
def test_a_variable_whose_prefix_is_nearly_right_is_told(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{re.escape(name)} .*EMBEDSTREAM_KAFKA__SUBSCRIBE\?"):
        load(tmp_path, environment={name: "cats"})


def test_a_variable_keeps_the_case_of_an_options_name(tmp_path: Path) -> None:
    environment = {
        "EMBEDSTREAM_SPARK__OPTIONS__spark.ui.showConsoleProgress": "true",
        "EMBEDSTREAM_SPARK__OPTIONS__SPARK.UI.PORT": "4050",
    }
    options = load(tmp_path, environment=environment).spark.options
    assert options == {"spark.ui.showConsoleProgress": "true", "spark.ui.port": "4050"}


def test_a_list_is_called_a_list(tmp_path: Path) -> None:
    (line,) = problems(tmp_path, {}, "references.hosts=images.example.com")[1:]
    assert line == (
        "  references.hosts: should be a list, as [one, other], not 'images.example.com'"
    )
