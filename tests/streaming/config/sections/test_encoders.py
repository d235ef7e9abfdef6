"""One encoder or several: `encoder`, `encoders`, and how both are overridden."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from config_files import load, problems
from embedstream.config.errors import ConfigError

TWO = [{"name": "resnet18"}, {"name": "resnet50", "normalize": "l2"}]


def test_without_either_section_the_stream_has_the_default_encoder(tmp_path: Path) -> None:
    assert [one.name for one in load(tmp_path).all_encoders] == ["resnet50"]


def test_one_encoder_is_a_list_of_one(tmp_path: Path) -> None:
    config = load(tmp_path, {"encoder": {"name": "resnet18"}})
    assert config.all_encoders == (config.encoder,)
    assert config.encoder.normalize == "none"


def test_several_encoders_keep_their_order(tmp_path: Path) -> None:
    config = load(tmp_path, {"encoders": TWO})
    assert [(one.name, one.normalize) for one in config.all_encoders] == [
        ("resnet18", "none"),
        ("resnet50", "l2"),
    ]


def test_other_encoders_replace_all(tmp_path: Path) -> None:
    several = load(tmp_path, {"encoders": TWO}).all_encoders
    one = load(tmp_path, {"encoder": {"name": "resnet34"}})
    assert one.with_encoders(several).all_encoders == several


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"encoder": {"name": "resnet18"}, "encoders": TWO},
            "  give encoder or encoders, not both",
        ),
        ({"encoders": []}, "  encoders is empty; leave it out for the default encoder"),
        (
            {"encoders": [*TWO, {"name": "resnet18", "weights": "default"}]},
            "  encoders.2 has the settings of encoders.0; a message has one row of each model",
        ),
        (
            {"encoders": [TWO[0], {"nam": "resnet50"}]},
            "  encoders.1.nam: unknown key; did you mean 'name'? known: name, weights, ",
        ),
        (
            {"encoders": [{"precision": "int8"}]},
            "  encoders.0.precision: should be 'auto', 'float32' or 'bfloat16', not 'int8'",
        ),
        ({"encoders": {"name": "resnet18"}}, "  encoders: should be a list, as [one, other]"),
        ({"encoders": ["resnet18"]}, "  encoders.0: should be a section with keys of its own"),
        (
            {"encoder": {"normalize": "l1"}},
            "  encoder.normalize: should be 'none' or 'l2', not 'l1'",
        ),
    ],
)
def test_wrong_encoders_are_reported_with_their_number(
    tmp_path: Path, changes: dict[str, Any], line: str
) -> None:
    (_, text) = problems(tmp_path, changes)
    assert text.startswith(line)


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        (["encoders.0.name=resnet34"], ["resnet34", "resnet50"]),
        (["encoders.2.name=resnet34"], ["resnet18", "resnet50", "resnet34"]),
        (["encoders.1={name: resnet34}"], ["resnet18", "resnet34"]),
        (["encoders=[{name: resnet34}]"], ["resnet34"]),
        (["encoders=null", "encoder.name=resnet34"], ["resnet34"]),
        # A text is taken literally, as elsewhere.
        (["encoders.0.name=on"], ["on", "resnet50"]),
    ],
)
def test_an_override_reaches_one_encoder_by_its_number(
    tmp_path: Path, overrides: list[str], names: list[str]
) -> None:
    config = load(tmp_path, {"encoders": TWO}, *overrides)
    assert [one.name for one in config.all_encoders] == names
    if len(names) == 2:
        assert config.all_encoders[1].normalize == "l2"


def test_overrides_alone_give_several_encoders(tmp_path: Path) -> None:
    overrides = ["encoders.0.name=resnet18", "encoders.1.name=resnet34"]
    config = load(
        tmp_path,
        {},
        *overrides,
        "encoders.1.preprocessing.resize_px=40",
        "encoders.1.preprocessing.crop_px=32",
        "encoders.1.preprocessing.mean=[0,0,0]",
        "encoders.1.preprocessing.std=[1,1,1]",
    )
    assert [one.name for one in config.all_encoders] == ["resnet18", "resnet34"]
    assert config.all_encoders[1].preprocessing is not None


def test_the_environment_reaches_one_encoder_by_its_number(tmp_path: Path) -> None:
    environment = {"EMBEDSTREAM_ENCODERS__1__NAME": "resnet34"}
    config = load(tmp_path, {"encoders": TWO}, environment=environment)
    assert [one.name for one in config.all_encoders] == ["resnet18", "resnet34"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("encoders.3.name=resnet34", r"encoders\.3: encoders has 2 entries, counted from 0"),
        ("encoders.0.nmae=resnet34", r"encoders\.0\.nmae: unknown key; did you mean 'name'\?"),
        ("encoder.name=resnet34", "give encoder or encoders, not both"),
    ],
)
def test_a_wrong_override_of_an_encoder_is_reported(
    tmp_path: Path, override: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, {"encoders": TWO}, override)


def test_a_variable_that_nearly_names_an_encoders_key_is_reported(tmp_path: Path) -> None:
    environment = {"EMBEDSTREAM_ENCODERS__0__NAMES": "resnet34"}
    with pytest.raises(ConfigError, match="did you mean EMBEDSTREAM_ENCODERS__0__NAME\\?"):
        load(tmp_path, environment=environment)


def test_all_limits_of_decoding_reach_the_core(tmp_path: Path) -> None:
    given = {
        "max_text_bytes": 1,
        "max_text_characters": 2,
        "max_audio_bytes": 3,
        "max_audio_s": 4.5,
        "max_audio_channels": 5,
        "max_audio_rate_hz": 6,
        "audio_formats": ["FLAC"],
        "fidelity": "fast",
        "color": "srgb",
        "formats": ["AVIF", "TIFF", "HEIC", "JP2"],
    }
    limits = load(tmp_path, {"decode": {**given, "max_image_bytes": 7}}).decode.settings
    expected = {**given, "audio_formats": ("FLAC",), "max_bytes": 7}
    expected["formats"] = ("AVIF", "TIFF", "HEIC", "JP2")
    assert {name: getattr(limits, name) for name in expected} == expected
