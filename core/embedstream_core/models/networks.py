"""An encoder's network with its weights: published ones, a file's, or random ones."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from embedstream_core.errors import EmbedstreamError, SetupError, explain
from embedstream_core.media.image.decode import Preprocessing
from embedstream_core.models.encoders.architecture import (
    Encoder,
    PublishedWeights,
    build_body,
    build_network,
    cut_network,
)
from embedstream_core.models.files.state_dicts import (
    State,
    load_state,
    pack_state,
    read_checkpoint,
    select_state,
)

__all__ = ["RANDOM_NAME", "Origin", "assemble", "check_digest", "check_sha256", "load_trained"]

_RANDOM_SEED = 0

RANDOM_NAME = f"random-seed-{_RANDOM_SEED}"
"""What a `model_id` calls untrained weights."""

# A missing file of these names is a missing file, not an unknown name.
_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar")


# What classifiers are called elsewhere; in a file of a network that has no such part, each is one.
_OTHER_HEADS = {"classifier", "fc", "head", "heads", "last_linear"}


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a model's weights come from, and what its publisher says of them."""

    name: str
    sha256: str
    preprocessing: Preprocessing | None
    license: str
    labels: Callable[[], Sequence[str]] = tuple
    unsupported: str = ""


def load_trained(encoder: Encoder, *, weights: str, pinned: str) -> tuple[Origin, nn.Module]:
    """Build the network, its head cut, with `random` weights, published ones or a file's.

    Raises:
        SetupError: the weights are unknown, cannot be downloaded or read, do not fit, or do not
            hash to what begins with `pinned`.
    """
    if weights == "random":
        return _random(encoder)
    if _is_file(encoder, weights):
        path = Path(weights).expanduser()
        sha256 = check_sha256(path, pinned)
        model = _load_file(encoder, path)
        return _origin(encoder.default_weights, path.stem, sha256), model
    published = encoder.published(weights)
    if published.download is None:
        return _built(encoder, published, pinned)
    path = _download(published.download, encoder.name)
    sha256 = check_sha256(path, pinned or published.sha256)
    model = _load_published(encoder, published.load, path)
    return _origin(published, published.name, sha256), model


def _load_published(
    encoder: Encoder, load: Callable[[Path], nn.Module] | None, path: Path
) -> nn.Module:
    if load is None:
        return _load_file(encoder, path)
    return build_body(replace(encoder, build=lambda: load(path)))


def _load_file(encoder: Encoder, path: Path) -> nn.Module:
    """Build the network with a file's tensors, whose head is left out where it is cut."""
    model = build_network(encoder, empty=True)
    whole = model.state_dict().keys()
    head = cut_network(encoder, model)
    body = model.state_dict()
    # A head of any shape is left out: of its top-level module only what the body has is read. A
    # network without a head may have been given one by finetuning.
    heads = {head, *(name.partition(".")[0] for name in whole - body.keys())}
    heads |= _OTHER_HEADS - {name.partition(".")[0] for name in body}
    state = select_state(read_checkpoint(path), body, rename=encoder.rename, path=path)
    needed = {
        name: tensor
        for name, tensor in state.items()
        if name in body or not any(name.startswith(f"{module}.") for module in heads)
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
        raise SetupError(
            f"{what} does not fit the encoder: it {' and '.join(problems)}; correct encoder.name, "
            "or save the state dict of the network that it names"
        )


def _shorten(error: RuntimeError) -> str:
    """The first tensors that torch complains of."""
    lines = [line.strip() for line in str(error).splitlines()]
    return " ".join(lines[1:4] or lines)


def _built(encoder: Encoder, published: PublishedWeights, pinned: str) -> tuple[Origin, nn.Module]:
    model = build_body(encoder)
    actual = hashlib.sha256(pack_state(model)).hexdigest()
    sha256 = check_digest(actual, pinned, f"what '{encoder.name}' builds")
    return _origin(published, published.name, sha256), model


def _random(encoder: Encoder) -> tuple[Origin, nn.Module]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_RANDOM_SEED)
        model = build_body(encoder)
    sha256 = hashlib.sha256(RANDOM_NAME.encode()).hexdigest()
    return _origin(encoder.default_weights, RANDOM_NAME, sha256), model


def _origin(published: PublishedWeights, name: str, sha256: str) -> Origin:
    return Origin(
        name,
        sha256,
        published.preprocessing,
        published.license,
        published.labels,
        published.unsupported,
    )


def _is_file(encoder: Encoder, weights: str) -> bool:
    """Whether weights are a file's path; a published name is not, whatever lies in the folder."""
    if "://" in weights:
        raise SetupError(
            f"encoder.weights '{weights}' is an address: download the file, and give its path"
        )
    path = Path(weights).expanduser()
    if weights == "default" or weights in encoder.weights:
        return False
    return "/" in weights or path.suffix in _SUFFIXES or path.exists()


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


def assemble(encoder: Encoder, tensors: State) -> nn.Module:
    """Rebuild a network, its head cut, from its tensors, which it keeps where they are.

    Raises:
        SetupError: they do not fit.
    """
    model = build_body(encoder, empty=True)
    _load_all(model, tensors, what=f"what was prepared of the encoder '{encoder.name}'")
    return model.eval()


def check_sha256(path: Path, expected: str) -> str:
    """Hash a weights file; return the hash.

    Raises:
        SetupError: it cannot be read, or its hash does not begin with `expected`.
    """
    try:
        with path.open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
    except IsADirectoryError as error:
        raise SetupError(
            f"the weights '{path}' are a folder: give the path of a file, or, of a folder that "
            "save_pretrained wrote, set encoder.name to huggingface"
        ) from error
    except OSError as error:
        raise SetupError(
            f"the weights file '{path}' cannot be read: {error.strerror}; give the path of a file "
            "as encoder.weights"
        ) from error
    return check_digest(actual, expected, f"the weights file '{path}'")


def check_digest(actual: str, expected: str, what: str) -> str:
    """Return a hash that begins with what is expected.

    Raises:
        SetupError: it does not.
    """
    if not actual.startswith(expected.lower()):
        raise SetupError(
            f"{what} has sha256 {actual}, not {expected}; it was changed or cut "
            "short: fetch it again, or correct encoder.sha256"
        )
    return actual
