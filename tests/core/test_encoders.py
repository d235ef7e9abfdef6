"""Encoders by name, and where their heads are cut."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from torch import nn

from embedstream_core.decode import Preprocessing
from embedstream_core.encoders import (
    Encoder,
    PublishedWeights,
    cut_head,
    find_encoder,
    known_encoders,
)
from embedstream_core.errors import SetupError
from embedstream_core.weights import ModelSpec, load_prepared, prepare_model
from small_models import DECLARED, forward, small_network

TORCHVISION = torchvision.models.list_models(module=torchvision.models)


def test_torchvision_has_its_classification_networks() -> None:
    assert len(TORCHVISION) >= 80
    assert set(known_encoders()) == {*TORCHVISION, "efficientnet_lite0"}


@pytest.mark.parametrize("name", TORCHVISION)
def test_every_torchvision_network_has_default_weights(name: str) -> None:
    encoder = find_encoder(name)
    default = encoder.default_weights
    transforms = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    preprocessing = default.preprocessing
    assert preprocessing is not None
    assert encoder.name == name
    assert encoder.published("default") is default
    assert default.name == torchvision.models.get_model_weights(name).DEFAULT.name
    assert [preprocessing.resize_px] == transforms.resize_size
    assert [preprocessing.crop_px] == transforms.crop_size
    assert preprocessing.interpolation == transforms.interpolation.value
    assert list(preprocessing.mean) == transforms.mean
    assert list(preprocessing.std) == transforms.std
    assert len(default.sha256) in (8, 10)
    assert int(default.sha256, 16) >= 0


def test_the_license_follows_the_weights() -> None:
    encoder = find_encoder("vit_b_16")
    assert encoder.published("IMAGENET1K_V1").license == "BSD-3-Clause"
    assert encoder.published("IMAGENET1K_SWAG_E2E_V1").license == "CC-BY-NC-4.0"


def test_resnet50_defaults_to_its_second_weights() -> None:
    encoder = find_encoder("resnet50")
    assert encoder.default_weights.name == "IMAGENET1K_V2"
    assert list(encoder.weights) == ["IMAGENET1K_V2", "IMAGENET1K_V1"]
    first = encoder.published("IMAGENET1K_V1").preprocessing
    assert first is not None
    assert first.resize_px == 256


@pytest.mark.parametrize(
    ("name", "dimension"),
    [
        ("resnet18", 512),
        ("resnet50", 2048),
        ("mobilenet_v3_small", 1024),
        ("efficientnet_b0", 1280),
        ("squeezenet1_1", 512),
        ("shufflenet_v2_x0_5", 1024),
        ("googlenet", 1024),
        ("efficientnet_lite0", 1280),
    ],
)
def test_the_head_is_cut(name: str, dimension: int) -> None:
    assert prepare_model(ModelSpec(name, weights="random")).card.dimension == dimension


def test_a_network_without_a_head_cannot_be_cut() -> None:
    with pytest.raises(SetupError, match="ReLU has no classification head"):
        cut_head(torch.nn.ReLU())


def test_an_unknown_encoder_names_the_nearest() -> None:
    with pytest.raises(SetupError, match=r"unknown encoder 'resnet5'.*resnet50.*timm/<model>"):
        find_encoder("resnet5")


def test_unknown_weights_list_the_known() -> None:
    with pytest.raises(
        SetupError, match=r"unknown weights 'V9' for encoder 'resnet50'.*random, IMAGENET1K_V2"
    ):
        find_encoder("resnet50").published("V9")


def test_timm_gives_its_own_features() -> None:
    encoder = find_encoder("timm/resnet18")
    card = prepare_model(ModelSpec("timm/resnet18", weights="random")).card
    assert card.dimension == timm.create_model("resnet18", num_classes=0).num_features == 512
    config = timm.get_pretrained_cfg("resnet18")
    assert encoder.default_weights.name == config.tag
    assert list(card.preprocessing.mean) == list(config.mean)
    assert card.preprocessing.crop_px == config.input_size[-1]


def test_a_timm_tag_chooses_the_weights() -> None:
    assert find_encoder("timm/resnet18.tv_in1k").default_weights.name == "tv_in1k"


def test_an_unknown_timm_model_names_the_nearest() -> None:
    with pytest.raises(SetupError, match=r"unknown timm model 'resnet19'; nearest: .*resnet18"):
        find_encoder("timm/resnet19")


def small_encoder() -> Encoder:
    """What `module:function` names."""
    preprocessing = Preprocessing(8, 8, "bilinear", (0, 0, 0), (1, 1, 1))
    none = PublishedWeights("none", preprocessing, "CC0-1.0", "", lambda: Path("nowhere"))
    return Encoder("small", lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), {"none": none})


def network() -> nn.Module:
    return small_network()


def test_a_module_of_ones_own_keeps_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mine", sys.modules[__name__])
    own = prepare_model(ModelSpec("mine:network", preprocessing=DECLARED))
    path = tmp_path / "mine.safetensors"
    safetensors.torch.save_file(small_network().state_dict(), path)
    from_file = prepare_model(ModelSpec("mine:network", str(path), preprocessing=DECLARED))
    random = prepare_model(ModelSpec("mine:network", "random", preprocessing=DECLARED))

    assert own.card.model_id.startswith("mine:network/own/")
    assert own.card.dimension == 8
    np.testing.assert_array_equal(forward(load_prepared(own)), forward(small_network()))
    assert own.tensors == from_file.tensors == random.tensors


def test_a_module_of_ones_own_needs_its_preprocessing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mine", sys.modules[__name__])
    with pytest.raises(SetupError, match=r"declare encoder\.preprocessing, such as \{resize_px"):
        prepare_model(ModelSpec("mine:network"))


def no_encoder() -> int:
    return 5


def test_an_encoder_of_ones_own_is_named_by_its_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mine", sys.modules[__name__])

    card = prepare_model(ModelSpec("mine:small_encoder", weights="random")).card

    assert card.encoder == "mine:small_encoder"
    assert card.dimension == 192


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no.such.module:encoder", "No module named 'no'"),
        ("mine:missing", "has no attribute 'missing'"),
        ("mine:no_encoder", "returns int, not a module"),
    ],
)
def test_what_is_no_encoder_of_ones_own_is_told(
    name: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mine", sys.modules[__name__])

    with pytest.raises(SetupError, match=message):
        find_encoder(name)
