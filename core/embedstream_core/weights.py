"""From a name, a seed or a file to a checked model: prepared once, loaded wherever it runs."""

from __future__ import annotations

import hashlib
import pickle
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import safetensors
import safetensors.torch
import torch
from torch import nn

from embedstream_core.decode import Preprocessing
from embedstream_core.encoders import Encoder, PublishedWeights, find_encoder
from embedstream_core.errors import EmbedstreamError, SetupError
from embedstream_core.model_id import ModelId
from embedstream_core.prepared import ModelCard, PreparedModel
from embedstream_core.probe import flaw, probe_pictures
from embedstream_core.programs import PROGRAMS, open_program
from embedstream_core.registered import REGISTRY, is_registered, read_registered

__all__ = [
    "RANDOM_NAME",
    "Head",
    "ModelCard",
    "ModelSpec",
    "PreparedModel",
    "load_model",
    "load_prepared",
    "prepare_model",
]

Head = Literal["cut", "kept"]

RANDOM_SEED = 0

RANDOM_NAME = f"random-seed-{RANDOM_SEED}"
"""What a `model_id` calls untrained weights."""

_EXAMPLE = (
    "{resize_px: 256, crop_px: 224, interpolation: bilinear, mean: [0.485, 0.456, 0.406], "
    "std: [0.229, 0.224, 0.225]}"
)

# Keys under which training scripts wrap the state dict, in the order they are looked for.
_WRAPPERS = ("state_dict", "model", "model_state_dict")


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Which model to run.

    `weights` is `default`, the name of published weights, the path of a file (`.safetensors`, or a
    state dict saved by torch), or `random`: untrained and seeded, for tests. For a row of
    `PROGRAMS` it is the path of the program; for `mlflow`, which stands for whatever encoder was
    logged there, a URI of `registered.py`. `sha256` is what the weights file must hash to.
    `preprocessing` takes the place of the encoder's own; most programs come with none. With its
    `head` kept, a model gives the logits of its classes in place of an embedding.
    """

    encoder: str
    weights: str = "default"
    sha256: str | None = None
    preprocessing: Preprocessing | None = None
    head: Head = "cut"


def prepare_model(spec: ModelSpec) -> PreparedModel:
    """Find, check and cut a model.

    One forward pass of two pictures proves that the outputs are vectors, and not the same.

    Raises:
        SetupError: the encoder or the weights are unknown, the file is missing, is not plain
            tensors, does not fit the architecture or has another sha256; no preprocessing is known;
            or the model does not make a vector of a picture, or does not tell pictures apart.
        MissingExtra: the package that the encoder needs is not installed.
    """
    if spec.encoder == REGISTRY or is_registered(spec.weights):
        return _registered(spec)
    if spec.encoder in PROGRAMS:
        origin, model, tensors = _program(spec)
    else:
        encoder = find_encoder(spec.encoder)
        origin, model = _trained(encoder.whole() if spec.head == "kept" else encoder, spec)
        tensors = _saved(model)
    preprocessing = spec.preprocessing or origin.preprocessing
    if preprocessing is None:
        raise SetupError(
            f"the encoder '{spec.encoder}' does not tell how its pictures are prepared; declare "
            f"encoder.preprocessing, such as {_EXAMPLE}"
        )
    dimension = _dimension(model, preprocessing)
    labels = () if spec.head == "cut" else _labels(spec.encoder, origin, dimension)
    card = ModelCard(
        encoder=spec.encoder,
        model_id=_model_id(spec.encoder, origin.name, origin.sha256, spec),
        dimension=dimension,
        preprocessing=preprocessing,
        license=origin.license,
        tensors_sha256=hashlib.sha256(tensors).hexdigest(),
        labels=labels,
    )
    return PreparedModel(card, tensors)


def _model_id(encoder: str, weights: str, sha256: str, spec: ModelSpec) -> str:
    """Name what makes the vectors: these differ with what is done to the pictures, too."""
    declared = ""
    if spec.preprocessing is not None:
        declared = hashlib.sha256(repr(spec.preprocessing).encode()).hexdigest()[:6]
    return str(ModelId(encoder, weights, sha256[:12], declared))


def load_model(card: ModelCard, path: Path) -> nn.Module:
    """Rebuild a prepared model from the file its tensors were written to.

    Parameters in safetensors format stay mapped to the file, so that processes on one machine share
    their pages.

    Raises:
        SetupError: the file does not hash to the card's sha256.
        MissingExtra: the package that runs the program is not installed.
    """
    _check_sha256(path, card.tensors_sha256)
    if card.encoder in PROGRAMS:
        return open_program(card.encoder, path)
    return _assembled(card, safetensors.torch.load_file(path))


def load_prepared(model: PreparedModel) -> nn.Module:
    """Rebuild a prepared model in the process that prepared it."""
    if model.card.encoder in PROGRAMS:
        return _opened(model.card.encoder, model.tensors)
    return _assembled(model.card, safetensors.torch.load(model.tensors))


def _opened(encoder: str, content: bytes) -> nn.Module:
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        return open_program(encoder, Path(file.name))


def _saved(model: nn.Module) -> bytes:
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    return safetensors.torch.save(tensors)


def _assembled(card: ModelCard, tensors: dict[str, torch.Tensor]) -> nn.Module:
    encoder = find_encoder(card.encoder)
    if card.labels:
        encoder = encoder.whole()
    model = _skeleton(encoder.build)
    encoder.cut(model)
    model.load_state_dict(tensors, assign=True)
    return model.eval()


@dataclass(frozen=True, slots=True)
class _Origin:
    name: str
    sha256: str
    preprocessing: Preprocessing | None
    license: str
    labels: Callable[[], Sequence[str]] = tuple


def _labels(encoder: str, origin: _Origin, outputs: int) -> tuple[str, ...]:
    labels = tuple(origin.labels())
    if len(labels) != outputs:
        raise SetupError(
            f"the encoder '{encoder}' names {len(labels)} classes for its {outputs} outputs; only "
            "one whose classes are known can name what it sees"
        )
    return labels


def _registered(spec: ModelSpec) -> PreparedModel:
    """A model that was prepared before it went to MLflow: it is checked again."""
    source, model = read_registered(spec.weights)
    _check_family(spec, model.card)
    what = f"the tensors of '{spec.weights}'"
    actual = hashlib.sha256(model.tensors).hexdigest()
    _check_digest(actual, model.card.tensors_sha256, what)
    sha256 = _check_digest(actual, spec.sha256 or "", what)
    preprocessing = spec.preprocessing or model.card.preprocessing
    card = replace(
        model.card,
        model_id=_model_id(REGISTRY, source, sha256, spec),
        # Whoever loads it chooses its own.
        precision="float32",
        dimension=_dimension(load_prepared(model), preprocessing),
        preprocessing=preprocessing,
    )
    return PreparedModel(card, model.tensors)


def _check_family(spec: ModelSpec, card: ModelCard) -> None:
    if spec.encoder not in (REGISTRY, card.encoder):
        raise SetupError(
            f"'{spec.weights}' is of the encoder '{card.encoder}', and encoder.name is "
            f"'{spec.encoder}'; give the one or the other, or {REGISTRY}"
        )
    # Whoever may write to the registry is not to choose what is called here.
    if spec.encoder == REGISTRY and ":" in card.encoder:
        raise SetupError(
            f"'{spec.weights}' is made by the function '{card.encoder}'; to have it called, give "
            "that as encoder.name"
        )
    if spec.head == "kept" and not card.labels:
        raise SetupError(
            f"'{spec.weights}' was logged without its head, so it names no classes; name the "
            "encoder itself"
        )


def _program(spec: ModelSpec) -> tuple[_Origin, nn.Module, bytes]:
    program, path = PROGRAMS[spec.encoder], Path(spec.weights).expanduser()
    try:
        content = program.pack(path)
    except OSError as error:
        raise SetupError(
            f"the {spec.encoder} file '{path}' cannot be read ({error.strerror}); give its path as "
            "encoder.weights"
        ) from error
    actual = hashlib.sha256(content).hexdigest()
    sha256 = _check_digest(actual, spec.sha256 or "", f"the {spec.encoder} file '{path}'")
    preprocessing = spec.preprocessing or program.declared(path)
    name = path.name if path.is_dir() else path.stem
    origin = _Origin(name, sha256, preprocessing, "unknown")
    return origin, _opened(spec.encoder, content), content


def _trained(encoder: Encoder, spec: ModelSpec) -> tuple[_Origin, nn.Module]:
    if spec.weights == "random":
        return _random(encoder)
    path, name = Path(spec.weights).expanduser(), Path(spec.weights).stem
    published = encoder.default_weights
    pinned = spec.sha256 or ""
    if not _is_path(spec.weights):
        published = encoder.published(spec.weights)
        if published.download is None:
            return _built(encoder, published, spec.sha256 or "")
        path, name = _download(published.download, encoder.name), published.name
        pinned = pinned or published.sha256
    sha256 = _check_sha256(path, pinned)
    model = _skeleton(encoder.build)
    head = encoder.cut(model)
    _load_state(model, _read_state(path), head=head, path=path)
    return _origin(published, name, sha256), model.eval()


def _built(encoder: Encoder, published: PublishedWeights, pinned: str) -> tuple[_Origin, nn.Module]:
    model = encoder.build().eval()
    encoder.cut(model)
    actual = hashlib.sha256(_saved(model)).hexdigest()
    sha256 = _check_digest(actual, pinned, f"what '{encoder.name}' builds")
    return _origin(published, published.name, sha256), model


def _random(encoder: Encoder) -> tuple[_Origin, nn.Module]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        model = encoder.build()
    encoder.cut(model)
    sha256 = hashlib.sha256(RANDOM_NAME.encode()).hexdigest()
    return _origin(encoder.default_weights, RANDOM_NAME, sha256), model.eval()


def _origin(published: PublishedWeights, name: str, sha256: str) -> _Origin:
    return _Origin(name, sha256, published.preprocessing, published.license, published.labels)


def _is_path(weights: str) -> bool:
    return "/" in weights or Path(weights).suffix in (".safetensors", ".pt", ".pth", ".bin")


def _download(download: Callable[[], Path], encoder: str) -> Path:
    try:
        return download()
    except OSError as error:
        raise SetupError(
            f"the weights of '{encoder}' could not be downloaded ({error}); fetch them where there "
            "is a network and give the file's path as encoder.weights"
        ) from error


def _check_sha256(path: Path, expected: str) -> str:
    try:
        with path.open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SetupError(f"the weights file '{path}' cannot be read: {error.strerror}") from error
    return _check_digest(actual, expected, f"the weights file '{path}'")


def _check_digest(actual: str, expected: str, what: str) -> str:
    if not actual.startswith(expected.lower()):
        raise SetupError(
            f"{what} has sha256 {actual}, not {expected}; it was changed or cut "
            "short: fetch it anew, or correct encoder.sha256"
        )
    return actual


def _read_state(path: Path) -> dict[str, torch.Tensor]:
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise SetupError(
            f"the weights file '{path}' holds more than tensors and was not opened: save its "
            "state_dict(), or use safetensors"
        ) from error
    except (RuntimeError, OSError, EOFError, safetensors.SafetensorError) as error:
        raise SetupError(f"the weights file '{path}' is broken: {error}") from error
    return _unwrapped(state, path)


def _unwrapped(state: Any, path: Path) -> dict[str, torch.Tensor]:
    for wrapper in _WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(map(torch.is_tensor, state.values())):
        raise SetupError(f"the weights file '{path}' holds no state dict: save model.state_dict()")
    # DataParallel puts 'module.' before every name.
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def _load_state(model: nn.Module, state: dict[str, torch.Tensor], *, head: str, path: Path) -> None:
    body = {name: tensor for name, tensor in state.items() if not name.startswith(f"{head}.")}
    try:
        model.load_state_dict(body, assign=True)
    except RuntimeError as error:
        raise SetupError(f"the weights file '{path}' does not fit the encoder: {error}") from error


def _skeleton(build: Callable[[], nn.Module]) -> nn.Module:
    """The network without memory for its weights, where its constructor allows that.

    Filling ResNet-50 with random numbers that are thrown away costs a quarter of a second.
    """
    try:
        with torch.device("meta"):
            model = build()
    except (NotImplementedError, RuntimeError):
        return build()
    if any(module._non_persistent_buffers_set for module in model.modules()):
        return build()
    return model


def _dimension(model: nn.Module, preprocessing: Preprocessing) -> int:
    mean, std = (
        torch.tensor(values).view(3, 1, 1) for values in (preprocessing.mean, preprocessing.std)
    )
    pictures = torch.from_numpy(probe_pictures(preprocessing.crop_px)).permute(0, 3, 1, 2)
    try:
        with torch.inference_mode():
            output = model((pictures / 255 - mean) / std)
    except EmbedstreamError:
        raise
    except Exception as error:
        # A network raises whatever its own code does on a shape that it was not made for.
        raise SetupError(
            f"{_kind(model)} cannot embed two pictures of {preprocessing.crop_px} pixels squared: "
            "export it for any number of pictures, and make crop_px what it was made for "
            f"({error})"
        ) from error
    if not torch.is_tensor(output) or output.ndim != 2 or len(output) != 2:
        shape = tuple(output.shape) if torch.is_tensor(output) else type(output).__name__
        raise SetupError(f"{_kind(model)} gives {shape} for two images, not two vectors")
    if found := flaw(output.float().numpy()):
        raise SetupError(
            f"{_kind(model)} gives {found}: its weights are damaged, or were not saved "
            "with it; fetch or export them anew"
        )
    return int(output.shape[1])


def _kind(model: nn.Module) -> str:
    return type(model).__name__.removeprefix("_")
