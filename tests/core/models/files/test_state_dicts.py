"""Checkpoints as training scripts write them are read as the tensors of one network."""

from __future__ import annotations

import argparse
import logging
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from embedstream_core.errors import SetupError
from embedstream_core.models.files.state_dicts import (
    State,
    load_state,
    pack_state,
    read_checkpoint,
    select_state,
)


class Network(nn.Module):
    """A network with a part that is named like the one of DataParallel."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width))
        self.module = nn.ModuleDict({"block": nn.Linear(width, width)})


def state_of(seed: int = 0, width: int = 4) -> State:
    torch.manual_seed(seed)
    return Network(width).state_dict()


def prefixed(state: State, prefix: str) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def selected(checkpoint: Any) -> State:
    return select_state(checkpoint, state_of(), rename=str, path=Path("mine.pth"))


def assert_equal(one: State, other: State) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=0, atol=0)


def with_parts_wrapped(state: State) -> State:
    return {name.replace("stem.", "stem.module._orig_mod."): state[name] for name in state}


WRAPPINGS: dict[str, Callable[[State], Any]] = {
    "as it is": lambda state: state,
    "an OrderedDict": OrderedDict,
    "parallel": lambda state: prefixed(state, "module."),
    "compiled": lambda state: prefixed(state, "_orig_mod."),
    "compiled parallel": lambda state: prefixed(state, "module._orig_mod."),
    "in an attribute": lambda state: prefixed(state, "encoder."),
    "in several": lambda state: prefixed(state, "_orig_mod.net.module.backbone."),
    "wrapped in parts": with_parts_wrapped,
    "wrapped in parts of an attribute": lambda state: prefixed(with_parts_wrapped(state), "model."),
    "Lightning": lambda state: {
        "state_dict": {**prefixed(state, "model."), "criterion.weight": torch.ones(10)},
        "pytorch-lightning_version": "2.5.0",
    },
    "under net": lambda state: {"net": state, "acc": 0.9},
    "deep": lambda state: {"run": {"params": {"weights": prefixed(state, "module.")}}, "epoch": 3},
    "with its optimizer": lambda state: {
        "model": state,
        "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1}]},
    },
    "in a tuple": lambda state: (prefixed(state, "module."), {"state": {}}, 3),
    "in a list": lambda state: {"epoch": 3, "networks": [state]},
    "twice the same": lambda state: {"model": state, "best": prefixed(state, "module.")},
    "with a head": lambda state: {
        "state_dict": prefixed({**state, "head.weight": torch.ones(2, 4)}, "net.")
    },
}


@pytest.mark.parametrize("wrap", WRAPPINGS.values(), ids=WRAPPINGS.keys())
def test_a_state_dict_is_found_wherever_it_is(wrap: Callable[[State], Any]) -> None:
    state = state_of(seed=1)
    found = selected(wrap(state))
    found.pop("head.weight", None)
    assert_equal(found, state)


def test_tensors_outside_the_network_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    selected(WRAPPINGS["Lightning"](state_of()))
    assert "1 tensors of 'mine.pth' do not belong to the network" in caplog.text


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(kind: torch.dtype) -> None:
    state = state_of(seed=1)
    found = selected({n: t.to(kind) if t.is_floating_point() else t for n, t in state.items()})
    assert {tensor.dtype for tensor in found.values()} == {torch.float32, torch.int64}
    torch.testing.assert_close(found["stem.0.weight"], state["stem.0.weight"], rtol=1e-2, atol=1e-3)


def test_shapes_distinguish_networks_with_the_same_names() -> None:
    student = state_of(seed=1)
    assert_equal(selected({"teacher": state_of(width=8), "student": student}), student)


@pytest.mark.parametrize(
    ("checkpoint", "choices"),
    [
        ({"model": state_of(1), "model_ema": state_of(2)}, ["['model']", "['model_ema']"]),
        ([state_of(1), state_of(2)], ["[0]", "[1]"]),
        (
            {**prefixed(state_of(1), "student."), **prefixed(state_of(2), "teacher.")},
            ["'student.'", "'teacher.'"],
        ),
    ],
)
def test_two_networks_that_fit_are_named(checkpoint: Any, choices: list[str]) -> None:
    with pytest.raises(SetupError, match="several networks that fit") as caught:
        selected(checkpoint)
    assert all(choice in str(caught.value) for choice in choices)


@pytest.mark.parametrize("checkpoint", [[torch.ones(1)], {"epoch": 3}, {}, torch.ones(1)])
def test_a_checkpoint_without_tensors_is_refused(checkpoint: Any) -> None:
    with pytest.raises(SetupError, match=r"holds no state dict: save model.state_dict\(\)"):
        selected(checkpoint)


def test_another_network_is_refused() -> None:
    with pytest.raises(SetupError, match=r"like 'conv1\.bias', and the encoder like 'stem\.0\."):
        selected({"conv1.bias": torch.ones(1)})


def test_names_may_be_changed_or_left_out() -> None:
    state = {f"old.{name}": tensor for name, tensor in state_of(1).items()}
    state["auxiliary.weight"] = torch.ones(1)

    def rename(name: str) -> str | None:
        return None if "auxiliary" in name else name.replace("old.", "")

    found = select_state(
        prefixed(state, "module."), state_of(), rename=rename, path=Path("mine.pth")
    )
    assert_equal(found, state_of(1))


# Files.


class Settings(dict[str, int]):
    """A dict like the one that Lightning stores its settings in."""


class Callback:
    def __init__(self) -> None:
        self.best = np.float64(0.5)


def test_settings_in_a_checkpoint_are_not_read(tmp_path: Path) -> None:
    settings = {
        "args": argparse.Namespace(lr=0.1, out=Path("runs")),
        "metric": np.float64(0.9),
        "hyper_parameters": Settings(width=4),
        "callback": Callback(),
    }
    torch.save({**settings, "state_dict": state_of(1)}, tmp_path / "mine.pth")
    assert_equal(selected(read_checkpoint(tmp_path / "mine.pth")), state_of(1))


class Exploit:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return logging.FileHandler, (str(self.marker),)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    path, marker = tmp_path / "mine.pth", tmp_path / "marker"
    torch.save({"callback": Exploit(marker), "state_dict": state_of(1)}, path)
    assert_equal(selected(read_checkpoint(path)), state_of(1))
    assert not marker.exists()
    torch.load(path, weights_only=False)["callback"].close()
    assert marker.exists()


def test_a_whole_network_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Sequential(nn.Linear(2, 2)), tmp_path / "mine.pth")
    with pytest.raises(SetupError, match=r"whole pickled object \(torch.nn.modules"):
        read_checkpoint(tmp_path / "mine.pth")


def test_safetensors_are_identified_by_their_content(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    safetensors.torch.save_file(state_of(1), path)
    assert_equal(read_checkpoint(path), state_of(1))


# Tensors that are sent to the workers.


class Tied(nn.Module):
    """One module under two names, one parameter under two, and a view of another tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3, 3)
        self.again = nn.Sequential(self.body)
        self.other = nn.Linear(3, 3)
        self.other.weight = self.body.weight
        self.register_buffer("row", self.body.weight.detach()[0])


def test_a_tensor_with_several_names_is_packed_once() -> None:
    torch.manual_seed(3)
    network = Tied()
    packed = safetensors.torch.load(pack_state(network))
    torch.manual_seed(4)
    loaded = Tied()

    assert load_state(loaded, packed) == ([], [])

    assert packed.keys() == {"row", "body.weight", "body.bias", "other.bias"}
    assert_equal(loaded.state_dict(), network.state_dict())


class Extra(nn.Module):
    def get_extra_state(self) -> dict[str, int]:
        return {"step": 3}

    def set_extra_state(self, state: dict[str, int]) -> None:
        pass


@pytest.mark.parametrize("network", [Extra(), nn.Linear(2, 2, device="meta")])
def test_a_tensor_without_values_is_refused(network: nn.Module) -> None:
    with pytest.raises(SetupError, match="not a tensor with values"):
        pack_state(network)


def test_a_file_that_names_a_tied_tensor_once_is_whole(tmp_path: Path) -> None:
    torch.manual_seed(3)
    network = Tied()
    del network.row
    safetensors.torch.save_model(network, str(tmp_path / "mine.safetensors"))
    torch.manual_seed(4)
    loaded = Tied()
    del loaded.row
    state = select_state(
        read_checkpoint(tmp_path / "mine.safetensors"),
        loaded.state_dict(),
        rename=str,
        path=tmp_path,
    )
    assert load_state(loaded, state) == ([], [])
    assert_equal(loaded.state_dict(), network.state_dict())


def test_a_tensor_of_the_file_without_values_is_refused() -> None:
    name, *_ = state = state_of()
    with pytest.raises(SetupError, match=rf"holds '{name}' without its values .*'meta'"):
        selected({**state, name: state[name].to("meta")})
