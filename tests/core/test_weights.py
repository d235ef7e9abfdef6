"""Models prepared from a seed, a file or a package, and loaded again elsewhere."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn

from embedstream_core.errors import SetupError
from embedstream_core.weights import (
    ModelSpec,
    PreparedModel,
    load_model,
    load_prepared,
    prepare_model,
)

State = dict[str, torch.Tensor]


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@torch.inference_mode()
def vectors(model: nn.Module) -> torch.Tensor:
    pictures = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    output: torch.Tensor = model(pictures)
    return output


# Every family keeps the same contract.


@pytest.mark.parametrize("name", ["resnet18", "timm/mobilenetv3_small_050", "efficientnet_lite0"])
def test_a_model_loads_as_it_was_prepared(name: str, tmp_path: Path) -> None:
    spec = ModelSpec(name, weights="random")
    prepared = prepare_model(spec)
    card = prepared.card
    path = tmp_path / "model.safetensors"
    path.write_bytes(prepared.tensors)
    here, there = vectors(load_prepared(prepared)), vectors(load_model(card, path))
    # Not equal to the last bit: kernels are chosen by where a tensor lies in memory.
    torch.testing.assert_close(here, there)
    assert here.shape == (2, card.dimension)
    assert card.tensors_sha256 == sha256_of(path)
    encoder, weights, digest = card.model_id.rsplit("/", 2)
    assert (encoder, weights, len(digest)) == (name, "random-seed-0", 12)
    assert prepare_model(spec) == prepared


def test_random_weights_leave_the_callers_seed_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    prepare_model(ModelSpec("resnet18", weights="random"))
    assert torch.equal(torch.rand(3), expected)


def test_efficientnet_lite0_comes_with_its_weights() -> None:
    card = prepare_model(ModelSpec("efficientnet_lite0")).card
    assert card.model_id == "efficientnet_lite0/imagenet/579344248a93"
    assert (card.dimension, card.license) == (1280, "Apache-2.0")


def test_a_declared_preprocessing_makes_another_model() -> None:
    spec = ModelSpec("efficientnet_lite0")
    published = prepare_model(spec).card
    declared = [
        prepare_model(replace(spec, preprocessing=replace(published.preprocessing, crop_px=size)))
        for size in (128, 160, 128)
    ]

    names = [model.card.model_id for model in declared]

    assert names[0] == names[2]
    assert len({published.model_id, *names}) == 3
    assert all(name.startswith(f"{published.model_id}-") for name in names)


# Weights from files.


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(1)
    model: nn.Module = torchvision.models.resnet18(weights=None)
    return model.eval()


@pytest.fixture(scope="module")
def expected(network: nn.Module) -> torch.Tensor:
    body = nn.Sequential(*list(network.children())[:-1], nn.Flatten())
    return vectors(body.eval())


def save_safetensors(state: State, path: Path) -> Path:
    safetensors.torch.save_file(state, path.with_suffix(".safetensors"))
    return path.with_suffix(".safetensors")


def save_state(state: State, path: Path) -> Path:
    torch.save(state, path)
    return path


def save_wrapped(state: State, path: Path) -> Path:
    prefixed = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save({"epoch": 3, "state_dict": prefixed}, path)
    return path


def save_ten_classes(state: State, path: Path) -> Path:
    head = {"fc.weight": torch.zeros(10, 512), "fc.bias": torch.zeros(10)}
    torch.save({**state, **head}, path)
    return path


def save_headless(state: State, path: Path) -> Path:
    torch.save({name: state[name] for name in state if not name.startswith("fc.")}, path)
    return path


@pytest.mark.parametrize(
    "save", [save_safetensors, save_state, save_wrapped, save_ten_classes, save_headless]
)
def test_weights_come_from_a_file(
    save: Callable[[State, Path], Path],
    network: nn.Module,
    expected: torch.Tensor,
    tmp_path: Path,
) -> None:
    path = save(network.state_dict(), tmp_path / "mine.pth")
    sha256 = sha256_of(path)
    prepared = prepare_model(ModelSpec("resnet18", weights=str(path), sha256=sha256))
    assert prepared.card.model_id == f"resnet18/mine/{sha256[:12]}"
    torch.testing.assert_close(vectors(load_prepared(prepared)), expected, rtol=1e-4, atol=1e-5)


# Everything that is wrong is said before anything runs.


def refused(path: Path, *, encoder: str = "resnet18", sha256: str | None = None) -> str:
    with pytest.raises(SetupError) as caught:
        prepare_model(ModelSpec(encoder, weights=str(path), sha256=sha256))
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_another_sha256_is_refused(network: nn.Module, tmp_path: Path) -> None:
    path = save_safetensors(network.state_dict(), tmp_path / "mine")
    message = refused(path, sha256="ab" * 32)
    assert "ab" * 32 in message
    assert sha256_of(path) in message


@pytest.mark.parametrize("save", [save_safetensors, save_state])
@pytest.mark.parametrize("kept", [0.0, 0.5])
def test_a_truncated_file_is_refused(
    save: Callable[[State, Path], Path], kept: float, network: nn.Module, tmp_path: Path
) -> None:
    path = save(network.state_dict(), tmp_path / "mine.pth")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    assert "is broken" in refused(path)


class Exploit:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.marker),)


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    path, marker = tmp_path / "mine.pth", tmp_path / "marker"
    torch.save({"fc.weight": Exploit(marker)}, path)
    assert "holds more than tensors" in refused(path)
    assert not marker.exists()
    with pytest.raises(AttributeError):
        # The file would have run it: loading without the check makes the folder.
        torch.load(path, weights_only=False)["fc.weight"].shape  # noqa: B018
    assert marker.exists()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("mine.pth", "holds more than tensors"),
        ("mine.bin", "holds more than tensors"),
        ("mine.safetensors", "is broken"),
    ],
)
def test_a_plain_pickle_is_not_run(name: str, reason: str, tmp_path: Path) -> None:
    path, marker = tmp_path / name, tmp_path / "marker"
    # The protocol that torch.save takes, too: of any other torch warns.
    path.write_bytes(pickle.dumps({"fc.weight": Exploit(marker)}, protocol=2))
    assert reason in refused(path)
    assert not marker.exists()
    pickle.loads(path.read_bytes())
    assert marker.exists()


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in refused(tmp_path / "none.safetensors")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    assert "cannot be read: Is a directory" in refused(tmp_path)


def test_weights_of_another_network_are_refused(network: nn.Module, tmp_path: Path) -> None:
    path = save_safetensors(network.state_dict(), tmp_path / "mine")
    assert "does not fit the encoder" in refused(path, encoder="resnet34")


def test_a_file_without_a_state_dict_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.pth"
    torch.save([torch.zeros(3)], path)
    assert "holds no state dict" in refused(path)


def test_a_tampered_prepared_file_is_refused(tmp_path: Path) -> None:
    prepared: PreparedModel = prepare_model(ModelSpec("resnet18", weights="random"))
    path = tmp_path / "model.safetensors"
    path.write_bytes(prepared.tensors[:-1] + bytes([prepared.tensors[-1] ^ 1]))
    with pytest.raises(SetupError, match=prepared.card.tensors_sha256):
        load_model(prepared.card, path)
