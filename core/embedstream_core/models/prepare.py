"""Prepare a checked model from a name, a seed or a file; load it wherever it runs."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import safetensors.torch

from embedstream_core.errors import SetupError
from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.media.modalities import Preprocessing
from embedstream_core.media.text.preprocessing import TextPreprocessing
from embedstream_core.model_id import MLFLOW, ModelId
from embedstream_core.models.card import ModelCard, PreparedModel
from embedstream_core.models.encoders.architecture import PublishedWeights
from embedstream_core.models.encoders.catalog import find_encoder
from embedstream_core.models.files.file_formats import PROGRAMS, name_extra, open_program
from embedstream_core.models.files.state_dicts import State, pack_state
from embedstream_core.models.files.weights_path import find_weights_path
from embedstream_core.models.loaded import LoadedModel
from embedstream_core.models.mlflow_store import is_registered, read_registered
from embedstream_core.models.networks import (
    assemble,
    check_digest,
    check_sha256,
    load_trained,
)
from embedstream_core.models.probe import embed_probes
from embedstream_core.records import Vectors
from embedstream_core.settings import Normalization

__all__ = [
    "Head",
    "LoadedModel",
    "ModelSpec",
    "load_model",
    "load_prepared",
    "prepare_and_load",
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
    `PROGRAMS` it is the path of the program; for `mlflow`, which means the encoder that was logged
    there, a URI of `mlflow_store.py`. The weights file must hash to `sha256`. `preprocessing`
    replaces the encoder's own, of images; most programs have none. A model whose `head` is kept
    gives the logits of its classes instead of an embedding. With `normalize` l2, embeddings are
    divided by their length.
    """

    encoder: str
    weights: str = "default"
    sha256: str | None = None
    preprocessing: ImagePreprocessing | None = None
    head: Head = "cut"
    normalize: Normalization = "none"

    def choose_inputs(
        self, published: tuple[Preprocessing, ...], unsupported: str = ""
    ) -> tuple[Preprocessing, ...]:
        """Return the declared preprocessing or the published ones.

        Raises:
            SetupError: there is none, it is wrong, or it is of images and the encoder takes none.
        """
        declared = self.preprocessing
        inputs = published
        if declared is not None:
            if published and "image" not in (one.modality for one in published):
                raise SetupError(
                    f"the encoder '{self.encoder}' embeds {published[0].modality}, and "
                    "encoder.preprocessing is of images; leave it out"
                )
            inputs = (declared, *(one for one in published if one.modality != "image"))
        if not inputs:
            reason = (
                f"needs a preprocessing that is not supported: {unsupported}"
                if unsupported
                else "does not say how its images are prepared"
            )
            raise SetupError(
                f"the encoder '{self.encoder}' {reason}; declare encoder.preprocessing, such as "
                f"{_EXAMPLE}"
            )
        for one in inputs:
            # A published one may come from a user's function, or from a folder's files.
            if not isinstance(one, TextPreprocessing) and (problem := one.find_problem()):
                raise SetupError(
                    f"the preprocessing of the encoder '{self.encoder}' is wrong: {problem}"
                )
        return inputs


def prepare_model(spec: ModelSpec) -> PreparedModel:
    """Find, check and cut a model.

    One forward pass of two images proves that the outputs are vectors, and that they differ.

    Raises:
        SetupError: the encoder or the weights are unknown; the file is missing, is not plain
            tensors, does not fit the architecture or has another sha256; no preprocessing is known;
            or the model gives no vectors, or the same vector for different images.
        MissingExtra: the package that the encoder needs is not installed.
    """
    return prepare_and_load(spec)[0]


def prepare_and_load(spec: ModelSpec) -> tuple[PreparedModel, LoadedModel]:
    """Prepare a model; return it also as `load_prepared` would load it in this process.

    The checks of `prepare_model` need it loaded, so this takes no longer.
    """
    if spec.encoder == MLFLOW or is_registered(spec.weights):
        return _prepare_registered(spec)
    if spec.encoder in PROGRAMS:
        with name_extra(spec.encoder):
            weights, inputs, tensors = _read_program(spec)
            model = _open_program(spec.encoder, tensors, inputs)
            tensors_sha256 = weights.sha256
    else:
        encoder = find_encoder(spec.encoder)
        if spec.head == "kept":
            encoder = encoder.keep_head()
        weights, trained = load_trained(encoder, weights=spec.weights, pinned=spec.sha256 or "")
        tensors = pack_state(trained)
        del trained
        tensors_sha256 = hashlib.sha256(tensors).hexdigest()
        published = () if weights.preprocessing is None else (weights.preprocessing,)
        inputs = spec.choose_inputs(published, weights.unsupported)
        # The check runs on the model that a worker will load; for ResNet-50 this takes 0.1 s.
        model = LoadedModel(assemble(encoder, safetensors.torch.load(tensors)), inputs)
    vectors = _embed_all_probes(model, spec.normalize)
    dimension = vectors.shape[1]
    labels = () if spec.head == "cut" else tuple(weights.labels())
    if spec.head == "kept" and len(labels) != dimension:
        raise SetupError(
            f"the encoder '{spec.encoder}' names {len(labels)} classes for its {dimension} "
            "outputs; only an encoder whose classes are known can label images"
        )
    card = ModelCard(
        encoder=spec.encoder,
        model_id=_format_model_id(spec, spec.encoder, weights.name, weights.sha256),
        dimension=dimension,
        inputs=inputs,
        license=weights.license,
        tensors_sha256=tensors_sha256,
        labels=labels,
        normalize=spec.normalize,
    )
    prepared = PreparedModel(card, tensors)
    if ":" in spec.encoder:
        _check_rebuilt(prepared, vectors)
    return prepared, model


def load_model(card: ModelCard, path: Path) -> LoadedModel:
    """Rebuild a prepared model from the file that holds its tensors.

    Parameters in safetensors format stay mapped to the file, so that processes on one machine share
    their pages.

    Raises:
        SetupError: the file does not hash to the card's sha256.
        MissingExtra: the package that runs the program is not installed.
    """
    check_sha256(path, card.tensors_sha256)
    if card.encoder in PROGRAMS:
        return _bind(card.encoder, path, card.inputs)
    return _rebuild(card, safetensors.torch.load_file(path))


def load_prepared(model: PreparedModel) -> LoadedModel:
    """Rebuild a prepared model in the process that prepared it."""
    if model.card.encoder in PROGRAMS:
        return _open_program(model.card.encoder, model.tensors, model.card.inputs)
    return _rebuild(model.card, safetensors.torch.load(model.tensors))


def _rebuild(card: ModelCard, tensors: State) -> LoadedModel:
    encoder = find_encoder(card.encoder)
    network = assemble(encoder.keep_head() if card.labels else encoder, tensors)
    return LoadedModel(network, card.inputs)


def _open_program(encoder: str, content: bytes, inputs: tuple[Preprocessing, ...]) -> LoadedModel:
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        return _bind(encoder, Path(file.name), inputs)


def _bind(encoder: str, path: Path, inputs: tuple[Preprocessing, ...]) -> LoadedModel:
    bind = PROGRAMS[encoder].bind
    return LoadedModel(open_program(encoder, path), tuple(bind(one, path) for one in inputs))


def _read_program(
    spec: ModelSpec,
) -> tuple[PublishedWeights, tuple[Preprocessing, ...], bytes]:
    program = PROGRAMS[spec.encoder]
    default = program.default if spec.weights == "default" else None
    path = default() if default else find_weights_path(spec.weights)
    what = f"the {spec.encoder} file '{path}'"
    try:
        content = program.pack(path)
    except OSError as error:
        raise SetupError(
            f"{what} cannot be read ({error.strerror}); give its path as encoder.weights"
        ) from error
    sha256 = check_digest(hashlib.sha256(content).hexdigest(), spec.sha256 or "", what)
    published = program.read_inputs(path, spec.preprocessing)
    name = "default" if default else path.name if path.is_dir() else path.stem
    weights = PublishedWeights(name, None, program.license, sha256, download=None)
    return weights, spec.choose_inputs(published), content


def _embed_all_probes(model: LoadedModel, normalize: Normalization) -> Vectors:
    """Embed the probes of each modality; return the vectors of the first one, not normalized.

    Raises:
        SetupError: a branch of the network fails, or does not distinguish its probes, normalized
            ones included; or the branches' dimensions differ.
    """
    vectors = [
        embed_probes(model.get_branch(one.modality), one, normalize=normalize)
        for one in model.inputs
    ]
    if len(sizes := {one.shape[1] for one in vectors}) > 1:
        raise SetupError(
            f"the model gives vectors of {' and '.join(map(str, sorted(sizes)))} floats for "
            f"{' and '.join(one.modality for one in model.inputs)}, which cannot be "
            "compared: choose a model that gives both the same size"
        )
    return vectors[0]


def _check_rebuilt(prepared: PreparedModel, vectors: Vectors) -> None:
    """Check that a worker, which calls the user's function again, gets the same vectors."""
    again = _embed_all_probes(load_prepared(prepared), prepared.card.normalize)
    if again.shape != vectors.shape or not np.allclose(again, vectors, rtol=1e-3, atol=1e-4):
        raise SetupError(
            f"the encoder '{prepared.card.encoder}' makes other vectors each time that its network "
            "is built: keep random and trained values in parameters or persistent buffers, which "
            "are sent to the workers"
        )


def _prepare_registered(spec: ModelSpec) -> tuple[PreparedModel, LoadedModel]:
    """Check a model again that was prepared before it was logged to MLflow."""
    source, model = read_registered(spec.weights)
    if spec.encoder not in (MLFLOW, model.card.encoder):
        raise SetupError(
            f"'{spec.weights}' is of the encoder '{model.card.encoder}', and encoder.name is "
            f"'{spec.encoder}'; give the one or the other, or {MLFLOW}"
        )
    # Write access to the registry must not decide which function is called here.
    if spec.encoder == MLFLOW and ":" in model.card.encoder:
        raise SetupError(
            f"'{spec.weights}' is made by the function '{model.card.encoder}'; to have it called, "
            "give that as encoder.name"
        )
    if spec.head == "kept" and not model.card.labels:
        raise SetupError(
            f"'{spec.weights}' was logged without its head, so it names no classes; name the "
            "encoder itself"
        )
    what = f"the tensors of '{spec.weights}'"
    actual = hashlib.sha256(model.tensors).hexdigest()
    check_digest(actual, model.card.tensors_sha256, what)
    check_digest(actual, spec.sha256 or "", what)
    inputs = spec.choose_inputs(model.card.inputs)
    card = replace(model.card, inputs=inputs)
    loaded = load_prepared(PreparedModel(card, model.tensors))
    dimension = _embed_all_probes(loaded, spec.normalize).shape[1]
    card = replace(
        card,
        model_id=_format_model_id(spec, MLFLOW, source, actual),
        # The process that loads the model chooses its own precision.
        precision="float32",
        dimension=dimension,
        normalize=spec.normalize,
    )
    return PreparedModel(card, model.tensors), loaded


def _format_model_id(spec: ModelSpec, encoder: str, weights: str, sha256: str) -> str:
    """Name everything that determines the vectors, a declared preprocessing included."""
    declared = ""
    if spec.preprocessing is not None:
        declared = hashlib.sha256(repr(spec.preprocessing).encode()).hexdigest()[:6]
    return str(ModelId(encoder, weights, sha256[:12], declared, spec.normalize))
