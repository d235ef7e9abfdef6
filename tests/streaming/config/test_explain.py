"""Each problem of a configuration is one sentence, and no sentence contains a secret."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from config_files import JAAS, MINIMAL, SECRET, load, problems
from embedstream.config.errors import ConfigError
from embedstream.config.load import load_config, load_files_config


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
def test_an_unknown_key_is_reported_with_the_nearest_and_all_choices(
    tmp_path: Path, changes: dict[str, Any], key: str, nearest: str, choices: list[str]
) -> None:
    header, line = problems(tmp_path, changes)
    assert header == f"the configuration {tmp_path / 'stream.yaml'} is wrong:"
    assert line.startswith(f"  {key}: unknown key; did you mean '{nearest}'? known: ")
    assert set(line.partition("known: ")[2].split(", ")) >= {nearest, *choices}


def test_a_section_that_a_batch_lacks_gets_the_choices_that_it_has() -> None:
    with pytest.raises(ConfigError, match=r"kafka: unknown key; known: .*encoder") as caught:
        load_files_config({"table": {"path": "t"}}, ["kafka.subscribe=images"])
    assert "checkpoint" not in str(caught.value)


def test_an_unknown_key_like_no_other_gets_the_choices_only(tmp_path: Path) -> None:
    (_, line) = problems(tmp_path, {"message": {"zzz": 1}})
    known = "format, fields, key, id_header, registry, tombstones"
    assert line == f"  message.zzz: unknown key; known: {known}"


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
            "  references.schemes.1: should be 'file', 'http', 'https', 's3', 's3a', 's3n', 'gs', "
            "'abfss', 'abfs' or 'az', not 'ftp'",
        ),
        (
            {"references": {"folders": "/pictures"}},
            "  references.folders: should be a list, as [one, other], not '/pictures'",
        ),
        ({"checkpoint": [7]}, "  checkpoint: should be a text"),
        ({"trigger": {"interval_s": "inf"}}, "  trigger.interval_s: should be a finite number"),
        ({"trigger": {"interval_s": -1}}, "  trigger.interval_s: should be greater than or equal"),
        ({"kafka": {"assign": {"images": "0"}}}, "  kafka.assign.images: should be a list, as ["),
        (
            {"references": {"timeout_s": 1e10}},
            "  references.timeout_s: should be 1000000000 seconds or less, not 1e+10",
        ),
        ({"index": {"url": "postgresql://h/d"}}, "  index: kind lancedb has no url: give path"),
        ({"kafka": {"assign": {"images": []}}}, "  kafka.assign.images: should not be empty"),
        (
            {"kafka": {"assign": {"images": [-1]}}},
            "  kafka.assign.images.0: should be 0 or more, not -1",
        ),
        ({"decode": {"formats": []}}, "  decode.formats: should not be empty"),
        ({"decode": {"formats": ["jpg"]}}, "  decode.formats.0: should be 'JPEG', 'PNG', "),
        (
            {"kafka": {"max_offsets_per_trigger": 2**63}},
            f"  kafka.max_offsets_per_trigger: {2**63} is too large for an integer of 64 bits",
        ),
    ],
)
def test_a_wrong_value_is_reported_with_its_key(
    tmp_path: Path, changes: dict[str, Any], line: str
) -> None:
    (_, text) = problems(tmp_path, changes)
    assert text.startswith(line)


@pytest.mark.parametrize("offset", [-3, 2**63])
def test_an_offset_that_kafka_does_not_know_is_reported(tmp_path: Path, offset: int) -> None:
    lines = problems(tmp_path, {"kafka": {"starting_offsets": {"images": {0: offset}}}})
    assert lines[-1].startswith("  kafka.starting_offsets.images.0: ")


@pytest.mark.parametrize("name", ["table", "checkpoint", "kafka"])
def test_a_missing_key_is_reported(tmp_path: Path, name: str) -> None:
    path = tmp_path / "stream.yaml"
    path.write_text(yaml.safe_dump({key: MINIMAL[key] for key in MINIMAL if key != name}))
    with pytest.raises(ConfigError, match=f"\n  {name}: required, but not given$"):
        load_config(path, environment={})


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
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
        "table",
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("kafka.subscribe", "--set takes key=value, .* not 'kafka.subscribe'"),
        ("kafka.subscribe=[", r"kafka: '\[' is not a topic name"),
        ("kafka.min_partitions=[", r"the value of kafka\.min_partitions is not YAML"),
        ("spark.options={spark.a: 1, spark.a: 2}", "is not YAML: .* found a key twice in line 1"),
        ("kafka.subscrib=cats", r"kafka\.subscrib: unknown key; did you mean 'subscribe'"),
        ("=cats", "unknown key"),
    ],
)
def test_a_wrong_override_is_reported(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, {}, override)


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
def test_a_mistyped_variable_is_reported(tmp_path: Path, name: str, nearest: str | None) -> None:
    with pytest.raises(ConfigError) as error:
        load(tmp_path, environment={name: "cats"})
    assert str(error.value).startswith(f"the environment variable {name} names no key")
    assert (f"did you mean {nearest}?" in str(error.value)) == (nearest is not None)


@pytest.mark.parametrize(
    "name",
    [
        "embedstream_kafka__subscribe",
        "Embedstream_Kafka__Subscribe",
        "EMBEDSTREAM.KAFKA.SUBSCRIBE",
        "EMBEDSTREAM-KAFKA__SUBSCRIBE",
    ],
)
def test_a_variable_whose_prefix_is_nearly_right_is_reported(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{re.escape(name)} .*EMBEDSTREAM_KAFKA__SUBSCRIBE\?"):
        load(tmp_path, environment={name: "cats"})


def test_a_list_is_called_a_list(tmp_path: Path) -> None:
    (line,) = problems(tmp_path, {}, "references.hosts=images.example.com")[1:]
    assert line == (
        "  references.hosts: should be a list, as [one, other], not 'images.example.com'"
    )


def test_a_file_that_is_not_yaml_is_reported_without_its_secrets(tmp_path: Path) -> None:
    path = tmp_path / "stream.yaml"
    path.write_text(
        f"kafka:\n  options:\n    ssl.password: [{SECRET}\ntable: x\n", encoding="utf-8"
    )
    with pytest.raises(ConfigError, match="is not YAML") as error:
        load_config(path)
    assert "line 3" in str(error.value)
    assert SECRET not in str(error.value)


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
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
def test_a_file_without_keys_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "stream.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert str(error.value).startswith(f"the configuration {path} {message}")


@pytest.mark.parametrize("separator", [":", " ", ": "])
def test_an_override_without_an_equals_sign_is_not_repeated_with_its_value(
    tmp_path: Path, separator: str
) -> None:
    override = f"kafka.options.kafka.ssl.key.password{separator}{SECRET}"
    (line,) = problems(tmp_path, {}, override)
    assert line.endswith("not 'kafka.options.kafka.ssl.key.password'")


def test_an_option_without_a_value_says_how_to_write_an_empty_one(tmp_path: Path) -> None:
    name = "kafka.options.kafka.ssl.endpoint.identification.algorithm"
    (line,) = problems(tmp_path, {}, f"{name}=")[1:]
    assert line == f"  {name}: it has no value; write '' for an empty text, or leave it out"
    assert load(tmp_path, {}, f"{name}=''").kafka.options == {name[14:]: ""}


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


@pytest.mark.parametrize(
    "changes",
    [
        {"kafka": {"options": {"kafka.ssl.key.password": SECRET}, "subscirbe": "x"}},
        {"kafka": {"options": [{"kafka.ssl.key.password": SECRET}]}},
        {"kafka": {"options": JAAS.format(SECRET)}},
        {"kafka": [{"options": {"kafka.ssl.key.password": SECRET}}]},
        {"spark": {"options": ["spark.hadoop.fs.s3a.secret.key", SECRET]}},
    ],
    ids=["next_to", "list", "text", "section", "pairs"],
)
def test_no_error_message_holds_a_secret(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert SECRET not in "\n".join(problems(tmp_path, changes))


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
