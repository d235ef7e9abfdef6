"""The shipped configurations load, and the sections refuse what makes no sense."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from config_files import SECRET, load, problems, shown, write
from embedstream.config.errors import ConfigError
from embedstream.config.load import load_config
from embedstream.config.secrets import reveal
from embedstream.config.sections import StreamConfig
from embedstream.config.sections.publishing import PublishConfig
from embedstream.worker.model import prepare
from embedstream_core.media.image.preprocessing import ImagePreprocessing

CONFIGURATIONS = sorted((Path(__file__).parents[4] / "conf").glob("*.yaml"))

PREPROCESSING = {"resize_px": 40, "crop_px": 32, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.3]}


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.stem)
def test_every_configuration_that_is_shipped_loads(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["KAFKA_PASSWORD", "KAFKA_TRUSTSTORE_PASSWORD"]
    for name in [*names, "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]:
        monkeypatch.setenv(name, SECRET)

    config = load_config(path, environment={})

    assert config.kafka.subscribe in ("images", "docstrings")
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

    kafka, spark = reveal(config.kafka.options), reveal(config.spark.options)
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


@pytest.mark.parametrize("table", ["/data/t", "/data/t/", "file:/data/t", "s3a://bucket/t"])
@pytest.mark.parametrize(
    "inside",
    [
        "",
        "/",
        "/checkpoint",
        "/../t/checkpoint",
        "/_delta_log/checkpoint",
        "/_change_data",
        "/_delta_index",
    ],
)
def test_a_checkpoint_is_not_among_the_files_of_the_table(
    tmp_path: Path, table: str, inside: str
) -> None:
    """VACUUM deletes all of them that Delta does not list."""
    folder = table.removeprefix("file:").rstrip("/")
    changes = {"table": {"path": table}, "checkpoint": f"{folder}{inside}"}
    (_, line) = problems(tmp_path, changes)
    assert "is in the table's folder, where VACUUM would delete its files" in line
    for other in ("/_checkpoint", "/.checkpoint", "-checkpoint", "/../checkpoint"):
        assert load(tmp_path, {**changes, "checkpoint": f"{folder}{other}"})


def test_a_declared_preprocessing_reaches_the_model(tmp_path: Path) -> None:
    encoder = {"name": "resnet18", "weights": "random", "preprocessing": PREPROCESSING}
    config = load_config(write(tmp_path, {"encoder": encoder}))

    card = prepare(config.encoder).card

    assert card.image == ImagePreprocessing(40, 32, "bilinear", (0.5, 0.4, 0.3), (0.2, 0.2, 0.3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop_px": 64}, "crop_px 64 is larger than resize_px 40"),
        ({"std": [0.2, 0, 0.3]}, "encoder.preprocessing.std.1"),
        ({"mean": [0.5]}, "encoder.preprocessing.mean"),
        ({"interpolation": "box"}, "'bilinear', 'bicubic', 'lanczos' or 'nearest'"),
    ],
)
def test_a_wrong_preprocessing_is_reported(
    changes: Mapping[str, Any], message: str, tmp_path: Path
) -> None:
    wrong = {"encoder": {"preprocessing": {**PREPROCESSING, **changes}}}
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config(write(tmp_path, wrong))


def test_a_spark_option_begins_with_spark(tmp_path: Path) -> None:
    (_, line) = problems(tmp_path, {"spark": {"options": {"executor.cores": 2}}})
    assert line == "  spark: 'executor.cores' is not a setting of Spark: all begin with 'spark.'"


def sections(config: BaseModel) -> list[BaseModel]:
    inner = [value for _, value in config if isinstance(value, BaseModel)]
    return [config, *(section for one in inner for section in sections(one))]


def test_nothing_can_be_changed(tmp_path: Path) -> None:
    found = sections(load(tmp_path))
    assert len(found) == 16
    for section in found:
        (name, *_) = type(section).model_fields
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, name, None)


@pytest.mark.parametrize(
    ("kafka", "publish"),
    [
        ({"subscribe": "images, texts"}, {"topic": "texts"}),
        ({"subscribe_pattern": "im.*"}, {"topic": "images"}),
        ({"assign": {"images": [0]}}, {"topic": "images"}),
        ({"subscribe": "images"}, {"topic": "images", "bootstrap_servers": "localhost:9092"}),
    ],
)
def test_a_topic_that_is_read_is_not_published_to(
    kafka: dict[str, Any], publish: dict[str, Any]
) -> None:
    tree = {
        "kafka": {"bootstrap_servers": "localhost:9092", **kafka},
        "table": {"path": "table"},
        "checkpoint": "checkpoint",
    }
    with pytest.raises(ValidationError, match="is a topic that the stream reads"):
        StreamConfig.model_validate({**tree, "publish": publish})
    other = {**publish, "bootstrap_servers": "other:9092"}
    assert StreamConfig.model_validate({**tree, "publish": other}).publish.topic
    assert StreamConfig.model_validate({**tree, "publish": {"topic": "outcomes"}}).publish.follow


def test_a_topic_is_a_name_that_kafka_takes() -> None:
    with pytest.raises(ValidationError, match="'a b' is not a topic name"):
        PublishConfig(topic="a b")
