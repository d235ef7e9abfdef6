"""The contract of every family of encoders: prepared once, the same wherever it runs."""

from __future__ import annotations

import pickle
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from torch import nn

import small_models
from embedstream_core.engine.engine import Engine
from embedstream_core.errors import MissingExtra, SetupError
from embedstream_core.model_id import Precision
from embedstream_core.models.card import PreparedModel
from embedstream_core.models.files.file_formats import is_fixed
from embedstream_core.models.prepare import ModelSpec, load_model, prepare_model
from embedstream_core.settings import Backend
from engines import embed_pixels, start_engine
from small_models import (
    DECLARED,
    Vectors,
    forward,
    huggingface_model,
    keras_model,
    load_network,
    onnx_model,
    own_model,
    pictures,
    timm_model,
    torchvision_model,
)

# Keras saves models with a conversion that numpy has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


FAMILIES: Mapping[str, Callable[[Path], ModelSpec]] = {
    "torchvision": torchvision_model,
    "timm": timm_model,
    "own": own_model,
    "onnx": onnx_model,
    "keras": keras_model,
    "huggingface": huggingface_model,
}

# The package that the family needs, and the extra that installs it.
PACKAGES = {
    "timm": ("timm", "timm"),
    "onnx": ("onnxruntime", "onnx"),
    "keras": ("keras", "keras"),
    "huggingface": ("transformers", "huggingface"),
}


@pytest.fixture(scope="module", autouse=True)
def _mine() -> Iterator[None]:
    sys.modules["mine"] = small_models
    yield
    del sys.modules["mine"]


@pytest.fixture(scope="module", params=FAMILIES)
def spec(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    return FAMILIES[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def prepared(spec: ModelSpec) -> PreparedModel:
    return prepare_model(spec)


@pytest.fixture
def loaded(prepared: PreparedModel, tmp_path: Path) -> nn.Module:
    """The model as a worker has it: from a file, under a name that does not show its kind."""
    path = tmp_path / "0123.safetensors"
    path.write_bytes(prepared.tensors)
    return load_model(prepared.card, path).network


def start(
    model: nn.Module,
    prepared: PreparedModel,
    *,
    precision: Precision = "float32",
    backend: Backend = "torch",
) -> Engine:
    return start_engine(model, prepared.card.image, precision=precision, backend=backend)


def cosines(one: Vectors, other: Vectors) -> npt.NDArray[np.float64]:
    a, b = one.astype(np.float64), other.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray((a * b).sum(axis=1) / lengths)


def test_the_card_describes_the_model(spec: ModelSpec, prepared: PreparedModel) -> None:
    card = prepared.card
    encoder, weights, digest = card.model_id.rsplit("/", 2)
    assert card.encoder == encoder == spec.encoder
    assert weights in ("random-seed-0", "own", "mine")
    assert re.fullmatch("[0-9a-f]{12}(-[0-9a-f]{6})?", digest)
    assert card.inputs == (DECLARED,)
    assert prepare_model(spec) == prepared


def test_it_travels_as_a_pickle(prepared: PreparedModel) -> None:
    assert pickle.loads(pickle.dumps(prepared)) == prepared


def test_it_loads_as_it_was_prepared(prepared: PreparedModel, loaded: nn.Module) -> None:
    there, here = forward(loaded), forward(load_network(prepared))
    assert there.dtype == np.float32
    assert there.shape == (16, prepared.card.dimension)
    assert cosines(there, here).min() >= 0.9999
    np.testing.assert_allclose(there, here, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [1, 3, 16])
def test_the_engine_gives_the_same_vectors_in_any_batch(
    count: int, prepared: PreparedModel, loaded: nn.Module
) -> None:
    expected = forward(load_network(prepared))
    engine = start(loaded, prepared)

    parts = [
        embed_pixels(engine, pictures(16)[first : first + count]) for first in range(0, 16, count)
    ]

    assert all(part.dtype == np.float32 for part in parts)
    vectors = np.concatenate(parts)
    assert vectors.shape == expected.shape
    assert cosines(vectors, expected).min() >= 0.9999
    np.testing.assert_allclose(vectors, expected, rtol=1e-3, atol=1e-4)


def test_different_images_have_different_vectors(
    prepared: PreparedModel, loaded: nn.Module
) -> None:
    vectors = embed_pixels(start(loaded, prepared), pictures(16))
    distances = np.abs(vectors[:, None] - vectors[None]).max(axis=2)
    assert distances[~np.eye(16, dtype=bool)].min() > 1e-4


def test_bfloat16_keeps_the_vectors(prepared: PreparedModel, loaded: nn.Module) -> None:
    exact = forward(load_network(prepared))
    vectors = embed_pixels(start(loaded, prepared, precision="bfloat16"), pictures(16))
    assert vectors.dtype == np.float32
    assert cosines(vectors, exact).min() >= (0.999999 if is_fixed(prepared.card.encoder) else 0.99)


def test_a_program_runs_as_it_is(
    prepared: PreparedModel, loaded: nn.Module, caplog: pytest.LogCaptureFixture
) -> None:
    if not is_fixed(prepared.card.encoder):
        pytest.skip("its layers may be compiled: test_backends.py")
    vectors = embed_pixels(start(loaded, prepared, backend="openvino"), pictures(2))
    np.testing.assert_array_equal(vectors, embed_pixels(start(loaded, prepared), pictures(2)))
    assert "torch replaces the backend openvino: the encoder is a program" in caplog.text


def test_another_file_is_refused(prepared: PreparedModel, tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(prepared.tensors[:-1] + bytes([prepared.tensors[-1] ^ 1]))
    with pytest.raises(SetupError, match=prepared.card.tensors_sha256):
        load_model(prepared.card, path)


def test_another_sha256_is_refused(spec: ModelSpec) -> None:
    with pytest.raises(SetupError, match=r"has sha256 [0-9a-f]{64}, not abababab"):
        prepare_model(replace(spec, sha256="abababab"))


def test_the_sha256_in_the_model_id_is_accepted(spec: ModelSpec, prepared: PreparedModel) -> None:
    pinned = replace(spec, sha256=prepared.card.model_id.rpartition("/")[2][:12])
    assert prepare_model(pinned) == prepared


def test_a_declared_preprocessing_wins(spec: ModelSpec) -> None:
    other = replace(DECLARED, mean=(0.1, 0.1, 0.1))
    assert prepare_model(replace(spec, preprocessing=other)).card.inputs == (other,)


@pytest.mark.parametrize("family", PACKAGES)
def test_a_missing_package_is_named(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = FAMILIES[family](tmp_path)
    package, extra = PACKAGES[family]
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=rf"'embedstream\[{extra}\]'"):
        prepare_model(spec)


def test_every_program_has_a_contract() -> None:
    from embedstream_core.models.files.file_formats import PROGRAMS

    assert PROGRAMS.keys() <= FAMILIES.keys()
