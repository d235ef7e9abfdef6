"""Encoders are found by name, and their heads are cut."""

from __future__ import annotations

import re
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from timm.models import PretrainedCfg
from torch import nn

from embedstream_core.errors import SetupError
from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.models.encoders.architecture import Encoder, PublishedWeights, cut_head
from embedstream_core.models.encoders.catalog import (
    ENCODERS,
    find_encoder,
    find_library,
    list_encoders,
)
from embedstream_core.models.files.file_formats import PROGRAMS
from embedstream_core.models.prepare import ModelSpec, prepare_model
from small_models import DECLARED, forward, load_network, small_network


@pytest.fixture(autouse=True)
def _mine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `mine:function` name the functions of this module."""
    monkeypatch.setitem(sys.modules, "mine", sys.modules[__name__])


TORCHVISION = torchvision.models.list_models(module=torchvision.models)


def test_torchvision_has_its_classification_networks() -> None:
    assert len(TORCHVISION) >= 80
    assert set(list_encoders()) == {*TORCHVISION, "efficientnet_lite0"}


@pytest.mark.parametrize("name", TORCHVISION)
def test_every_torchvision_network_has_default_weights(name: str) -> None:
    encoder = find_encoder(name)
    default = encoder.default_weights
    transforms = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    preprocessing = default.preprocessing
    assert preprocessing is not None
    assert encoder.name == name
    assert encoder.find_weights("default") is default
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
    assert encoder.find_weights("IMAGENET1K_V1").license == "BSD-3-Clause"
    assert encoder.find_weights("IMAGENET1K_SWAG_E2E_V1").license == "CC-BY-NC-4.0"


def test_resnet50_defaults_to_its_second_weights() -> None:
    encoder = find_encoder("resnet50")
    assert encoder.default_weights.name == "IMAGENET1K_V2"
    assert list(encoder.weights) == ["IMAGENET1K_V2", "IMAGENET1K_V1"]
    first = encoder.find_weights("IMAGENET1K_V1").preprocessing
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
        ("mnasnet0_5", 1280),
        ("densenet121", 1024),
        ("mobilenet_v2", 1280),
        ("regnet_y_400mf", 440),
        ("swin_t", 768),
        ("convnext_tiny", 768),
        ("timm/deit_tiny_distilled_patch16_224", 192),
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
        find_encoder("resnet50").find_weights("V9")


def test_timm_gives_its_own_features() -> None:
    encoder = find_encoder("timm/resnet18")
    card = prepare_model(ModelSpec("timm/resnet18", weights="random")).card
    assert card.dimension == timm.create_model("resnet18", num_classes=0).num_features == 512
    config = timm.get_pretrained_cfg("resnet18")
    assert encoder.default_weights.name == config.tag
    assert list(card.image.mean) == list(config.mean)
    assert card.image.crop_px == config.input_size[-1]


def test_a_timm_tag_chooses_the_weights() -> None:
    assert find_encoder("timm/resnet18.tv_in1k").default_weights.name == "tv_in1k"


# The only kind of network with this crop mode, and a recent one.
BORDER = "deepseek_vit_412m.deepseek_v4_1_flash"


def test_an_unknown_timm_model_names_the_nearest() -> None:
    with pytest.raises(SetupError, match=r"unknown timm model 'resnet19'; nearest: .*resnet18"):
        find_encoder("timm/resnet19")


@pytest.mark.parametrize(
    ("name", "resize_px", "crop_mode"),
    [
        ("convnextv2_nano.fcmae_ft_in22k_in1k_384", 384, "squash"),
        ("resnet18.a1_in1k", 235, "center"),
        pytest.param(
            BORDER,
            546,
            "border",
            marks=pytest.mark.skipif(
                BORDER not in timm.list_pretrained(), reason="a later timm has it"
            ),
        ),
    ],
)
def test_timm_says_how_an_image_is_made_square(name: str, resize_px: int, crop_mode: str) -> None:
    preprocessing = find_encoder(f"timm/{name}").default_weights.preprocessing
    assert preprocessing is not None
    assert (preprocessing.resize_px, preprocessing.crop_mode) == (resize_px, crop_mode)


def test_every_timm_preprocessing_is_timms_own_or_refused_by_name() -> None:
    for name in timm.list_pretrained():
        weights = find_encoder(f"timm/{name}").default_weights
        config = timm.get_pretrained_cfg(name)
        data = timm.data.resolve_data_config(pretrained_cfg=config.to_dict())
        found = weights.preprocessing
        if found is None:
            assert data["input_size"][1] != data["input_size"][2], name
            assert weights.unsupported == f"input_size {data['input_size']}"
            continue
        transforms = timm.data.create_transform(**data).transforms
        resized = transforms[0].size
        assert found.resize_px == (resized if isinstance(resized, int) else resized[0]), name
        assert found.crop_mode == data["crop_mode"], name
        assert found.interpolation == data["interpolation"], name


def test_what_timm_may_ask_of_images_is_known() -> None:
    """A key of a later timm fails here: it is to be done, refused, or said to change no pixel."""
    done = {"input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode"}
    # Larger evaluations, and limits of the network.
    unused = {"test_input_size", "test_crop_pct", "min_input_size", "fixed_input_size"}
    data = timm.data.resolve_data_config(pretrained_cfg={"test_crop_pct": 1.0})
    assert data.keys() == done
    named = {one.name for one in fields(PretrainedCfg)}
    others = {name for name in named if re.search("size|interp|mean|std|crop|chan|pad", name)}
    assert others == done | unused | {"pool_size", "test_pool_size"}


def test_a_key_that_timm_adds_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(**_: object) -> dict[str, object]:
        return {"input_size": (3, 224, 224), "channel_order": "bgr"}

    monkeypatch.setattr("timm.data.resolve_data_config", resolve)
    weights = find_encoder("timm/resnet18").default_weights
    assert (weights.preprocessing, weights.unsupported) == (None, "channel_order bgr")


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Cut off the network and the caches; return the hub's cache."""
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    # urllib keeps the opener, and with it the proxies, that it made at the first use.
    monkeypatch.setattr("urllib.request._opener", None)
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return cache


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("resnet18", "URLError"),
        ("timm/resnet18.a1_in1k", "LocalEntryNotFoundError"),
        ("timm/gcvit_xxtiny.in1k", "URLError"),
        ("timm/coatnet_0_224", "timm publishes no weights for 'coatnet_0_224'"),
    ],
)
def test_a_failed_download_says_what_to_do(name: str, reason: str, offline: Path) -> None:
    with pytest.raises(SetupError, match=rf"{reason}.*as encoder\.weights"):
        prepare_model(ModelSpec(name))


def test_published_timm_weights_are_read_by_timm(offline: Path) -> None:
    """Their tensors have other names, which timm's own loader changes."""
    name = "convnext_atto"
    torch.manual_seed(5)
    model = timm.create_model(name).eval()
    repository = timm.get_pretrained_cfg(name).hf_hub_id.replace("/", "--")
    snapshot = offline / f"models--{repository}" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0123")
    # As facebookresearch publishes ConvNeXt.
    changes = (("stem.", "downsample_layers.0."), ("head.fc.", "head."), ("head.norm.", "norm."))
    state = model.state_dict()
    for new, old in changes:
        state = {key.replace(new, old): value for key, value in state.items()}
    safetensors.torch.save_file(state, snapshot / "model.safetensors")

    prepared = prepare_model(ModelSpec(f"timm/{name}"))

    model.reset_classifier(0)
    pictures = torch.rand(2, 3, 224, 224)
    with torch.inference_mode():
        torch.testing.assert_close(
            load_network(prepared)(pictures), model(pictures), rtol=1e-3, atol=1e-4
        )
    assert prepared.card.model_id.startswith(f"timm/{name}/")


@pytest.mark.parametrize(
    ("name", "nearest"), [("resnet18.nope", r"resnet18\."), ("", timm.list_models()[0])]
)
def test_unknown_timm_names_list_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(SetupError, match=f"unknown timm model '{name}'; nearest: .*{nearest}"):
        find_encoder(f"timm/{name}")


def small_encoder() -> Encoder:
    """Return an encoder, as a `module:function` may."""
    preprocessing = ImagePreprocessing(8, 8, "bilinear", (0, 0, 0), (1, 1, 1))
    none = PublishedWeights("none", preprocessing, "CC0-1.0", "", lambda: Path("nowhere"))
    return Encoder("small", lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), {"none": none})


def not_square() -> Encoder:
    """Like timm's vit_base_patch16_sapiens2, which is large."""
    weights = PublishedWeights("none", None, "none", "", None, unsupported="input_size (3, 8, 6)")
    return Encoder("small", small_network, {"none": weights}, cut=lambda model: "")


def test_an_unsupported_preprocessing_is_named_unless_one_is_declared() -> None:
    spec = ModelSpec("mine:not_square")
    with pytest.raises(SetupError, match=r"input_size \(3, 8, 6\); declare encoder\.preprocessing"):
        prepare_model(spec)
    assert prepare_model(replace(spec, preprocessing=DECLARED)).card.dimension == 8


def network() -> nn.Module:
    return small_network()


def test_a_users_module_keeps_its_weights(tmp_path: Path) -> None:
    own = prepare_model(ModelSpec("mine:network", preprocessing=DECLARED))
    path = tmp_path / "mine.safetensors"
    safetensors.torch.save_file(small_network().state_dict(), path)
    from_file = prepare_model(ModelSpec("mine:network", str(path), preprocessing=DECLARED))
    random = prepare_model(ModelSpec("mine:network", "random", preprocessing=DECLARED))

    assert own.card.model_id.startswith("mine:network/own/")
    assert own.card.dimension == 8
    np.testing.assert_array_equal(forward(load_network(own)), forward(small_network()))
    assert own.tensors == from_file.tensors == random.tensors


def test_a_users_module_needs_its_preprocessing() -> None:
    with pytest.raises(SetupError, match=r"declare encoder\.preprocessing, such as \{resize_px"):
        prepare_model(ModelSpec("mine:network"))


def no_encoder() -> int:
    return 5


def test_a_users_encoder_is_named_by_its_function() -> None:
    card = prepare_model(ModelSpec("mine:small_encoder", weights="random")).card

    assert card.encoder == "mine:small_encoder"
    assert card.dimension == 192


class Twice(nn.Module):
    """A module whose backbone has two names, and with a buffer that no file stores."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = small_network()
        self.features = nn.Sequential(self.backbone)
        self.register_buffer("scale", torch.tensor(2.0), persistent=False)
        self.shift = torch.tensor(1.0)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        vectors: torch.Tensor = self.features(images) * self.scale + self.shift
        return vectors


def test_a_module_with_shared_parts_is_an_encoder() -> None:
    prepared = prepare_model(ModelSpec("mine:Twice", preprocessing=DECLARED))
    np.testing.assert_allclose(forward(load_network(prepared)), forward(Twice()), rtol=1e-5)


def half() -> nn.Module:
    return small_network().half()


def test_a_module_of_half_precision_runs_in_float32() -> None:
    prepared = prepare_model(ModelSpec("mine:half", preprocessing=DECLARED))
    np.testing.assert_allclose(
        forward(load_network(prepared)), forward(small_network()), rtol=1e-2, atol=1e-2
    )


def raises() -> nn.Module:
    raise FileNotFoundError("shoes.pth")


def takes(path: str) -> nn.Module:
    return small_network()


def two_numbers() -> tuple[int, int]:
    return 1, 2


INSTANCE = nn.Identity()


def without_weights() -> Encoder:
    return Encoder("small", small_network, {})


def raises_later() -> Encoder:
    weights = small_encoder().weights
    return Encoder("small", raises, weights)


def cut_raises() -> Encoder:
    def cut(model: nn.Module) -> str:
        raise KeyError("head")

    return Encoder("small", small_network, small_encoder().weights, cut=cut)


class Fails(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        raise ZeroDivisionError("no pictures")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no.such.module:encoder", "ModuleNotFoundError: No module named 'no'"),
        (":encoder", "ValueError: Empty module name"),
        ("mine:missing", "has no attribute 'missing'"),
        ("mine:no_encoder", "returns int, not a module"),
        ("mine:two_numbers", "returns a tuple of int, int, not a module"),
        ("mine:raises", "FileNotFoundError: shoes.pth"),
        ("mine:takes", "missing 1 required positional argument: 'path'"),
        ("mine:INSTANCE", "missing 1 required positional argument"),
        ("mine:DECLARED", "TypeError: 'ImagePreprocessing' object is not callable"),
        ("mine:without_weights", "an Encoder without weights"),
        ("mine:raises_later", "FileNotFoundError: shoes.pth"),
        ("mine:cut_raises", "KeyError: 'head'"),
        ("mine:Fails", "ZeroDivisionError: no pictures"),
    ],
)
def test_a_function_that_makes_no_encoder_is_refused(name: str, message: str) -> None:
    with pytest.raises(SetupError, match=re.escape(message)):
        prepare_model(ModelSpec(name, "random", preprocessing=DECLARED))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("raise ValueError('no GPU')", "ValueError: no GPU"),
        ("def make(:", "SyntaxError"),
        ("import argparse; argparse.ArgumentParser().parse_args(['--x'])", "SystemExit: 2"),
    ],
)
def test_a_module_that_fails_at_import_is_refused(
    source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "failing_module.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(SetupError, match=f"'failing_module:make' cannot be imported.*{message}"):
        find_encoder("failing_module:make")


def test_the_library_of_a_network_is_known_without_building_it() -> None:
    assert find_library("resnet50") == "torchvision.models"
    assert find_library("timm/resnet18.a1_in1k") == "timm"
    for name in (*ENCODERS, *PROGRAMS, "small_models:network_and_preprocessing"):
        assert find_library(name) is None
