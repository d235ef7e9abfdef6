"""The measured times alone decide on the precision of `auto`."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from embedstream_core.engine.precision import Timing, apply_precision, time_precisions
from embedstream_core.errors import SystemicError
from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.model_id import ModelId, Precision
from embedstream_core.models.card import PreparedModel
from embedstream_core.models.prepare import ModelSpec, prepare_model
from embedstream_core.settings import EngineSettings

PREPROCESSING = ImagePreprocessing(32, 32, "bilinear", mean=(0, 0, 0), std=(1, 1, 1))


class OnlyFloat32(nn.Module):
    """Fails in bfloat16, like networks with an operator that has no bfloat16 kernel."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if images.dtype != torch.float32:
            raise RuntimeError("\"this operator\" not implemented for 'BFloat16'\nand a trace")
        return images.mean((2, 3))


def only_float32() -> tuple[nn.Module, ImagePreprocessing]:
    return OnlyFloat32(), PREPROCESSING


class Slow(nn.Module):
    """Is slower in one precision by more than noise."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if images.dtype == self.dtype:
            for _ in range(20):
                torch.ones(500, 500) @ torch.ones(500, 500)
        return images.mean((2, 3)) * self.weight


def slow_in_float32() -> tuple[nn.Module, ImagePreprocessing]:
    return Slow(torch.float32), PREPROCESSING


def slow_in_bfloat16() -> tuple[nn.Module, ImagePreprocessing]:
    return Slow(torch.bfloat16), PREPROCESSING


def prepare(name: str) -> PreparedModel:
    return prepare_model(ModelSpec(f"{__name__}:{name}"))


def time_model(model: PreparedModel, folder: Path) -> Timing:
    path = folder / "tensors"
    path.write_bytes(model.tensors)
    return time_precisions(model.card, path, EngineSettings(device="cpu"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "better"), [("slow_in_float32", "bfloat16"), ("slow_in_bfloat16", "float32")]
)
def test_the_faster_precision_is_chosen(name: str, better: Precision, tmp_path: Path) -> None:
    timing = time_model(prepare(name), tmp_path)

    assert timing.better == better, timing
    assert timing.bfloat16_ms is not None
    assert 0 < timing.float32_ms < float("inf")


@pytest.mark.parametrize(
    ("bfloat16_ms", "better"), [(20.0, "float32"), (9.0, "float32"), (8.0, "bfloat16")]
)
def test_a_small_gain_is_not_worth_the_rounding(bfloat16_ms: float, better: Precision) -> None:
    assert Timing(10.0, bfloat16_ms).better == better


def test_a_model_that_fails_in_bfloat16_uses_float32(tmp_path: Path) -> None:
    timing = time_model(prepare("only_float32"), tmp_path)

    assert timing.better == "float32"
    assert timing.bfloat16_ms is None
    assert str(timing).endswith("bfloat16 fails (\"this operator\" not implemented for 'BFloat16')")


def test_a_model_that_is_broken_in_float32_is_a_systemic_error(tmp_path: Path) -> None:
    model = prepare("slow_in_bfloat16")
    damaged = safetensors.torch.save({"weight": torch.zeros(1)})
    card = replace(model.card, tensors_sha256=hashlib.sha256(damaged).hexdigest())

    with pytest.raises(SystemicError, match="same vector"):
        time_model(PreparedModel(card, damaged), tmp_path)


def test_the_card_names_the_precision_of_its_model() -> None:
    model = prepare("slow_in_float32")

    rounded = apply_precision(model, "bfloat16")

    assert rounded.card.precision == "bfloat16"
    assert rounded.card.model_id == f"{model.card.model_id}@bfloat16"
    assert apply_precision(rounded, "float32") == model
    assert ModelId.parse(model.card.model_id).precision == "float32"
