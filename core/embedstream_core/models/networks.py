"""An encoder's network with its weights: published ones, a file's, or random ones."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from embedstream_core.errors import SetupError
from embedstream_core.models.encoders.architecture import Encoder, PublishedWeights, build_body
from embedstream_core.models.failures import convert_errors
from embedstream_core.models.files.state_dicts import (
    State,
    load_state,
    pack_state,
    read_checkpoint,
    select_state,
)
from embedstream_core.models.files.weights_path import find_weights_path

__all__ = ["RANDOM_NAME", "assemble", "check_digest", "check_sha256", "load_trained"]

_RANDOM_SEED = 0

RANDOM_NAME = f"random-seed-{_RANDOM_SEED}"
"""The name of untrained weights in a `model_id`."""

# A name with one of these suffixes is a file, even if it is missing.
_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar")

# Other libraries' names for classifiers: heads, unless the network has a module of that name.
_OTHER_HEADS = {"classifier", "fc", "head", "heads", "last_linear"}


def load_trained(
    encoder: Encoder, *, weights: str, pinned: str
) -> tuple[PublishedWeights, nn.Module]:
    """Build the network, its head cut, with `random` weights, published ones or a file's.

    Returns:
        The publisher's description of the weights, with the name and the sha256 of those that were
        loaded, and the network.

    Raises:
        SetupError: the weights are unknown, cannot be downloaded or read, do not fit, or have a
            hash that does not begin with `pinned`.
    """
    if weights == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_RANDOM_SEED)
            network, _ = build_body(encoder)
        seed_sha256 = hashlib.sha256(RANDOM_NAME.encode()).hexdigest()
        sha256 = check_digest(seed_sha256, pinned, "the seed of the random weights")
        return replace(encoder.default_weights, name=RANDOM_NAME, sha256=sha256), network
    path = find_weights_path(weights)
    # A published name is not a file, even if the working directory has one of that name.
    is_published = weights == "default" or weights in encoder.weights
    if not is_published and ("/" in weights or path.suffix in _SUFFIXES or path.exists()):
        sha256 = check_sha256(path, pinned)
        network = _load_file(encoder, path)
        return replace(encoder.default_weights, name=path.stem, sha256=sha256), network
    published = encoder.find_weights(weights)
    if published.download is None:
        network, _ = build_body(encoder)
        actual = hashlib.sha256(pack_state(network)).hexdigest()
        sha256 = check_digest(actual, pinned, f"what '{encoder.name}' builds")
        return replace(published, sha256=sha256), network
    with convert_errors(
        f"the weights of '{encoder.name}' could not be downloaded",
        "download them on a machine with network access, and give the file's path as "
        "encoder.weights",
    ):
        path = published.download()
    sha256 = check_sha256(path, pinned or published.sha256)
    if published.load is None:
        network = _load_file(encoder, path)
    else:
        network, _ = build_body(replace(encoder, build=partial(published.load, path)))
    return replace(published, sha256=sha256), network


def _load_file(encoder: Encoder, path: Path) -> nn.Module:
    """Build the network with a file's tensors, without those of a head that is cut."""
    model, heads = build_body(encoder, empty=True)
    body = model.state_dict()
    # The file's head may have any shape: of its top-level module only the body's tensors are read.
    # Finetuning may have added a head to a network that has none.
    heads |= _OTHER_HEADS - {name.partition(".")[0] for name in body}
    state = select_state(read_checkpoint(path), body, rename=encoder.rename, path=path)
    needed = {
        name: tensor
        for name, tensor in state.items()
        if name in body or not any(name.startswith(f"{module}.") for module in heads)
    }
    _load_all(model, needed, what=f"the weights file '{path}'")
    return model


def assemble(encoder: Encoder, tensors: State) -> nn.Module:
    """Rebuild a network from its tensors without copying them; raise SetupError if they misfit."""
    model, _ = build_body(encoder, empty=True)
    _load_all(model, tensors, what=f"the prepared model of the encoder '{encoder.name}'")
    return model.eval()


def _load_all(model: nn.Module, state: State, *, what: str) -> None:
    try:
        missing, unknown = load_state(model, state)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        # After its first line, torch names one tensor a line.
        tensors = " ".join(lines[1:4] or lines)
        raise SetupError(f"{what} does not fit the encoder: {tensors}") from error
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


def check_sha256(path: Path, expected: str) -> str:
    """Return the hash of a weights file; raise SetupError if it does not begin with `expected`."""
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
    """Return the hash `actual`; raise SetupError if it does not begin with `expected`."""
    if not actual.startswith(expected.lower()):
        raise SetupError(
            f"{what} has sha256 {actual}, not {expected}; it was changed or cut "
            "short: fetch it again, or correct encoder.sha256"
        )
    return actual
