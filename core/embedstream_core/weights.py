"""From a name, a seed or a file to a checked model: prepared once, loaded wherever it runs."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import safetensors.torch
import torch
from torch import nn

from embedstream_core.architectures import Encoder, PublishedWeights, build_network, explain
from embedstream_core.decode import Preprocessing
from embedstream_core.encoders import find_encoder
from embedstream_core.errors import EmbedstreamError, SetupError
from embedstream_core.prepared import ModelCard, PreparedModel
from embedstream_core.probe import flaw, probe_pictures
from embedstream_core.programs import PROGRAMS, open_program
from embedstream_core.registered import REGISTRY, is_registered, read_registered
from embedstream_core.state_dicts import (
    State,
    load_state,
    pack_state,
    read_checkpoint,
    select_state,
)

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

# A missing file of these names is a missing file, not an unknown name.
_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar")

_EXAMPLE = (
    "{resize_px: 256, crop_px: 224, interpolation: bilinear, mean: [0.485, 0.456, 0.406], "
    "std: [0.229, 0.224, 0.225]}"
)


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
        encoder = encoder.whole() if spec.head == "kept" else encoder
        origin, trained = _trained(encoder, spec)
        tensors = pack_state(trained)
        # What is checked is what a worker will have: 0.3 s for ResNet-50.
        model = _assembled(encoder, safetensors.torch.load(tensors))
    preprocessing = spec.preprocessing or origin.preprocessing
    if preprocessing is None:
        raise _unprepared(spec.encoder, origin.unsupported)
    dimension = _dimension(model, preprocessing)
    labels = () if spec.head == "cut" else _labels(spec.encoder, origin, dimension)
    card = ModelCard(
        encoder=spec.encoder,
        model_id=f"{spec.encoder}/{origin.name}/{_fingerprint(origin.sha256, spec)}",
        dimension=dimension,
        preprocessing=preprocessing,
        license=origin.license,
        tensors_sha256=hashlib.sha256(tensors).hexdigest(),
        labels=labels,
    )
    return PreparedModel(card, tensors)


def _unprepared(encoder: str, unsupported: str) -> SetupError:
    reason = (
        f"asks for a preprocessing that is not done here, {unsupported}"
        if unsupported
        else "does not say how its pictures are prepared"
    )
    return SetupError(
        f"the encoder '{encoder}' {reason}; declare encoder.preprocessing, such as {_EXAMPLE}"
    )


def _fingerprint(sha256: str, spec: ModelSpec) -> str:
    """The end of a `model_id`: vectors of one model differ with what is done to its pictures."""
    if spec.preprocessing is None:
        return sha256[:12]
    declared = hashlib.sha256(repr(spec.preprocessing).encode()).hexdigest()
    return f"{sha256[:12]}-{declared[:6]}"


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
    return _assembled(_encoder_of(card), safetensors.torch.load_file(path))


def load_prepared(model: PreparedModel) -> nn.Module:
    """Rebuild a prepared model in the process that prepared it."""
    if model.card.encoder in PROGRAMS:
        return _opened(model.card.encoder, model.tensors)
    return _assembled(_encoder_of(model.card), safetensors.torch.load(model.tensors))


def _opened(encoder: str, content: bytes) -> nn.Module:
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        return open_program(encoder, Path(file.name))


def _encoder_of(card: ModelCard) -> Encoder:
    encoder = find_encoder(card.encoder)
    return encoder.whole() if card.labels else encoder


def _assembled(encoder: Encoder, tensors: State) -> nn.Module:
    model = build_network(encoder, empty=True)
    encoder.cut(model)
    _load_all(model, tensors, what=f"what was prepared of the encoder '{encoder.name}'")
    return model.eval()


@dataclass(frozen=True, slots=True)
class _Origin:
    name: str
    sha256: str
    preprocessing: Preprocessing | None
    license: str
    labels: Callable[[], Sequence[str]] = tuple
    unsupported: str = ""


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
        model_id=f"{REGISTRY}/{source}/{_fingerprint(sha256, spec)}",
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
    if _is_file(encoder, spec.weights):
        path = Path(spec.weights).expanduser()
        sha256 = _check_sha256(path, spec.sha256 or "")
        model = _load_file(encoder, path)
        return _origin(encoder.default_weights, path.stem, sha256), model
    published = encoder.published(spec.weights)
    if published.download is None:
        return _built(encoder, published, spec.sha256 or "")
    path = _download(published.download, encoder.name)
    sha256 = _check_sha256(path, spec.sha256 or published.sha256)
    model = _load_published(encoder, published.load, path)
    return _origin(published, published.name, sha256), model


def _load_published(
    encoder: Encoder, load: Callable[[Path], nn.Module] | None, path: Path
) -> nn.Module:
    if load is None:
        return _load_file(encoder, path)
    model = build_network(replace(encoder, build=lambda: load(path)))
    encoder.cut(model)
    return model


def _load_file(encoder: Encoder, path: Path) -> nn.Module:
    """The network with the tensors of a file, whose head is not read where it is cut."""
    model = build_network(encoder, empty=True)
    whole = model.state_dict().keys()
    encoder.cut(model)
    body = model.state_dict()
    # A head of any shape is left out: of its top-level module only what the body has is read.
    heads = {name.partition(".")[0] for name in whole - body.keys()}
    state = select_state(read_checkpoint(path), body, rename=encoder.rename, path=path)
    needed = {
        name: tensor
        for name, tensor in state.items()
        if name in body or name.partition(".")[0] not in heads
    }
    _load_all(model, needed, what=f"the weights file '{path}'")
    return model


def _load_all(model: nn.Module, state: State, *, what: str) -> None:
    try:
        missing, unknown = load_state(model, state)
    except RuntimeError as error:
        raise SetupError(f"{what} does not fit the encoder: {_shorten(error)}") from error
    problems = [
        f"{verb} {', '.join(names[:3])}" + (f" and {len(names) - 3} more" * (len(names) > 3))
        for verb, names in (("lacks", missing), ("has also", unknown))
        if names
    ]
    if problems:
        raise SetupError(f"{what} does not fit the encoder: it {' and '.join(problems)}")


def _shorten(error: RuntimeError) -> str:
    """The first tensors that torch complains of."""
    lines = [line.strip() for line in str(error).splitlines()]
    return " ".join(lines[1:4] or lines)


def _built(encoder: Encoder, published: PublishedWeights, pinned: str) -> tuple[_Origin, nn.Module]:
    model = build_network(encoder)
    encoder.cut(model)
    actual = hashlib.sha256(pack_state(model)).hexdigest()
    sha256 = _check_digest(actual, pinned, f"what '{encoder.name}' builds")
    return _origin(published, published.name, sha256), model


def _random(encoder: Encoder) -> tuple[_Origin, nn.Module]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        model = build_network(encoder)
    encoder.cut(model)
    sha256 = hashlib.sha256(RANDOM_NAME.encode()).hexdigest()
    return _origin(encoder.default_weights, RANDOM_NAME, sha256), model


def _origin(published: PublishedWeights, name: str, sha256: str) -> _Origin:
    return _Origin(
        name,
        sha256,
        published.preprocessing,
        published.license,
        published.labels,
        published.unsupported,
    )


def _is_file(encoder: Encoder, weights: str) -> bool:
    """Whether weights are a file's path; a published name is not, whatever lies in the folder."""
    path = Path(weights).expanduser()
    if weights == "default" or weights in encoder.weights:
        return False
    return "/" in weights or path.suffix in _SUFFIXES or path.is_file()


def _download(download: Callable[[], Path], encoder: str) -> Path:
    try:
        return download()
    except EmbedstreamError:
        raise
    except Exception as error:
        # Each hub's client raises types of its own.
        raise SetupError(
            f"the weights of '{encoder}' could not be downloaded ({explain(error)}); fetch them "
            "where there is a network and give the file's path as encoder.weights"
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
