"""From a name, a seed or a file to a checked model: prepared once, loaded wherever it runs."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import safetensors.torch
import torch
from torch import nn

from embedstream_core.errors import EmbedstreamError, SetupError, explain
from embedstream_core.media.image.decode import Preprocessing
from embedstream_core.model_id import MLFLOW, ModelId
from embedstream_core.models.card import ModelCard, PreparedModel
from embedstream_core.models.encoders.architecture import Encoder
from embedstream_core.models.encoders.catalog import find_encoder
from embedstream_core.models.files.file_formats import PROGRAMS, FixedModule, open_program
from embedstream_core.models.files.state_dicts import pack_state
from embedstream_core.models.mlflow_store import is_registered, read_registered
from embedstream_core.models.networks import (
    RANDOM_NAME,
    Origin,
    assemble,
    check_digest,
    check_sha256,
    load_trained,
)
from embedstream_core.models.probe import flaw, probe_pictures
from embedstream_core.records import Vectors

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
    if spec.encoder == MLFLOW or is_registered(spec.weights):
        return _registered(spec)
    if spec.encoder in PROGRAMS:
        origin, model, tensors = _program(spec)
    else:
        origin, model, tensors = _network(spec)
    preprocessing = spec.preprocessing or origin.preprocessing
    if preprocessing is None:
        raise _unprepared(spec.encoder, origin.unsupported)
    if problem := preprocessing.problem():
        raise SetupError(f"the preprocessing of the encoder '{spec.encoder}' is wrong: {problem}")
    vectors = _embed_probes(model, preprocessing)
    dimension = vectors.shape[1]
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
    prepared = PreparedModel(card, tensors)
    if ":" in spec.encoder:
        _check_rebuilt(prepared, vectors)
    return prepared


def _check_rebuilt(prepared: PreparedModel, vectors: Vectors) -> None:
    """Check that each worker, which calls the user's function again, makes the same vectors."""
    again = _embed_probes(load_prepared(prepared), prepared.card.preprocessing)
    if again.shape != vectors.shape or not np.allclose(again, vectors, rtol=1e-3, atol=1e-4):
        raise SetupError(
            f"the encoder '{prepared.card.encoder}' makes other vectors each time that its network "
            "is built: keep what is random or trained in parameters or persistent buffers, which "
            "are sent to the workers"
        )


def _network(spec: ModelSpec) -> tuple[Origin, nn.Module, bytes]:
    encoder = find_encoder(spec.encoder)
    encoder = encoder.whole() if spec.head == "kept" else encoder
    origin, trained = load_trained(encoder, weights=spec.weights, pinned=spec.sha256 or "")
    tensors = pack_state(trained)
    del trained
    # What is checked is what a worker will have; of ResNet-50 this takes 0.1 s.
    return origin, assemble(encoder, safetensors.torch.load(tensors)), tensors


def _unprepared(encoder: str, unsupported: str) -> SetupError:
    reason = (
        f"asks for a preprocessing that is not done here, {unsupported}"
        if unsupported
        else "does not say how its pictures are prepared"
    )
    return SetupError(
        f"the encoder '{encoder}' {reason}; declare encoder.preprocessing, such as {_EXAMPLE}"
    )


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
    check_sha256(path, card.tensors_sha256)
    if card.encoder in PROGRAMS:
        return open_program(card.encoder, path)
    return assemble(_encoder_of(card), safetensors.torch.load_file(path))


def load_prepared(model: PreparedModel) -> nn.Module:
    """Rebuild a prepared model in the process that prepared it."""
    if model.card.encoder in PROGRAMS:
        return _opened(model.card.encoder, model.tensors)
    return assemble(_encoder_of(model.card), safetensors.torch.load(model.tensors))


def _opened(encoder: str, content: bytes) -> nn.Module:
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        return open_program(encoder, Path(file.name))


def _encoder_of(card: ModelCard) -> Encoder:
    encoder = find_encoder(card.encoder)
    return encoder.whole() if card.labels else encoder


def _labels(encoder: str, origin: Origin, outputs: int) -> tuple[str, ...]:
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
    check_digest(actual, model.card.tensors_sha256, what)
    sha256 = check_digest(actual, spec.sha256 or "", what)
    preprocessing = spec.preprocessing or model.card.preprocessing
    card = replace(
        model.card,
        model_id=_model_id(MLFLOW, source, sha256, spec),
        # Whoever loads it chooses its own.
        precision="float32",
        dimension=_embed_probes(load_prepared(model), preprocessing).shape[1],
        preprocessing=preprocessing,
    )
    return PreparedModel(card, model.tensors)


def _check_family(spec: ModelSpec, card: ModelCard) -> None:
    if spec.encoder not in (MLFLOW, card.encoder):
        raise SetupError(
            f"'{spec.weights}' is of the encoder '{card.encoder}', and encoder.name is "
            f"'{spec.encoder}'; give the one or the other, or {MLFLOW}"
        )
    # Whoever may write to the registry is not to choose what is called here.
    if spec.encoder == MLFLOW and ":" in card.encoder:
        raise SetupError(
            f"'{spec.weights}' is made by the function '{card.encoder}'; to have it called, give "
            "that as encoder.name"
        )
    if spec.head == "kept" and not card.labels:
        raise SetupError(
            f"'{spec.weights}' was logged without its head, so it names no classes; name the "
            "encoder itself"
        )


def _program(spec: ModelSpec) -> tuple[Origin, nn.Module, bytes]:
    program, path = PROGRAMS[spec.encoder], Path(spec.weights).expanduser()
    try:
        content = program.pack(path)
    except OSError as error:
        raise SetupError(
            f"the {spec.encoder} file '{path}' cannot be read ({error.strerror}); give its path as "
            "encoder.weights"
        ) from error
    actual = hashlib.sha256(content).hexdigest()
    sha256 = check_digest(actual, spec.sha256 or "", f"the {spec.encoder} file '{path}'")
    preprocessing = spec.preprocessing or program.declared(path)
    name = path.name if path.is_dir() else path.stem
    origin = Origin(name, sha256, preprocessing, "unknown")
    return origin, _opened(spec.encoder, content), content


def _embed_probes(model: nn.Module, preprocessing: Preprocessing) -> Vectors:
    """The vectors of the probe pictures, float32 of shape (2, dimension).

    Raises:
        SetupError: they are no vectors, or the same.
    """
    mean, std = (
        torch.tensor(values).view(3, 1, 1) for values in (preprocessing.mean, preprocessing.std)
    )
    pictures = torch.from_numpy(probe_pictures(preprocessing.crop_px)).permute(0, 3, 1, 2)
    try:
        with torch.inference_mode():
            pixels = (pictures / 255 - mean) / std
            output = model(pixels)
            if isinstance(model, FixedModule) and _are_two_vectors(output):
                # It may have been exported for two; of another number it then fails.
                model(torch.cat([pixels, pixels[:1]]))
    except EmbedstreamError:
        raise
    except Exception as error:
        # A network raises whatever its own code does on a shape that it was not made for.
        raise SetupError(
            f"{_kind(model)} cannot embed any number of pictures of {preprocessing.crop_px} pixels "
            "squared: export it for any number, and make crop_px what it was made for "
            f"({explain(error)})"
        ) from error
    if not _are_two_vectors(output):
        shape = tuple(output.shape) if torch.is_tensor(output) else type(output).__name__
        raise SetupError(
            f"{_kind(model)} gives {shape} for two images, not two vectors: give a network whose "
            "output is one, such as its features, pooled and flattened"
        )
    if output.is_complex() or output.shape[1] == 0:
        raise SetupError(
            f"{_kind(model)} gives {output.dtype} of shape {tuple(output.shape)}, not vectors of "
            "real numbers: give a network that does"
        )
    vectors: Vectors = output.float().numpy()
    if found := flaw(vectors):
        raise SetupError(
            f"{_kind(model)} gives {found}: its weights are damaged, or were not saved "
            "with it; fetch or export them again"
        )
    return vectors


def _are_two_vectors(output: object) -> bool:
    return isinstance(output, torch.Tensor) and output.ndim == 2 and len(output) == 2


def _kind(model: nn.Module) -> str:
    return type(model).__name__.removeprefix("_")
