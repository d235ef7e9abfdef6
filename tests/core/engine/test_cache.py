"""A process starts the engine of a model once, and drops the one that nobody uses any more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from embedstream_core.engine.cache import get_engine
from embedstream_core.engine.engine import Engine
from embedstream_core.models.card import PreparedModel, get_tensors_path, save_prepared
from embedstream_core.models.prepare import ModelSpec, prepare_model
from embedstream_core.settings import EngineSettings


@pytest.fixture(scope="module")
def models() -> list[PreparedModel]:
    return [prepare_model(ModelSpec(name, "random")) for name in ("mnasnet0_5", "squeezenet1_1")]


@pytest.fixture
def get(models: list[PreparedModel], tmp_path: Path) -> Callable[..., Engine]:
    for number, model in enumerate(models):
        save_prepared(model, tmp_path / str(number))

    def get(number: int, *, now_s: float, loads: list[int]) -> Engine:
        def load() -> Path:
            loads.append(number)
            return get_tensors_path(tmp_path / str(number))

        settings = EngineSettings(device="cpu", batch_size=3)
        return get_engine(models[number].card, load, settings, clock=lambda: now_s)

    return get


def test_engines_that_are_used_stay(get: Callable[..., Engine]) -> None:
    loads: list[int] = []
    first = [get(number, now_s=0, loads=loads) for number in (0, 1)]

    for now_s in (500, 1000, 1500):
        assert [get(number, now_s=now_s, loads=loads) for number in (0, 1)] == first

    assert loads == [0, 1]


def test_an_engine_is_dropped_after_ten_minutes_without_use(get: Callable[..., Engine]) -> None:
    for number in (0, 1):
        get(number, now_s=10_000, loads=[])
    loads: list[int] = []

    get(1, now_s=10_601, loads=loads)
    get(0, now_s=10_602, loads=loads)

    assert loads == [0]
