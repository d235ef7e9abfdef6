"""Encoders made by a user's function: `module:function`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from typing import Any

from torch import nn

from embedstream_core.errors import SetupError
from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.models.encoders.architecture import Encoder, PublishedWeights, cut_nothing
from embedstream_core.models.failures import convert_errors

__all__ = ["find_own_encoder"]


def find_own_encoder(name: str) -> Encoder:
    """Call the function and describe its result as an encoder.

    A module that gives vectors becomes an encoder without a head, whose default weights are those
    that the module is built with.

    Raises:
        SetupError: there is no such function, it raises, or it returns something else.
    """
    module, _, function = name.partition(":")
    with convert_errors(
        f"the encoder '{name}' cannot be imported",
        "name a function that returns a module, in a module that the driver and the workers can "
        "import",
    ):
        build: Callable[[], Any] = getattr(import_module(module), function)
    with convert_errors(
        f"the encoder '{name}' failed when it was called without arguments",
        "correct the function; the workers call it too",
    ):
        built = build()
    weights = PublishedWeights("own", None, "unknown", sha256="", download=None)
    match built:
        case Encoder() if built.weights:
            # Workers find the encoder by this name.
            return replace(built, name=name)
        case Encoder():
            raise SetupError(f"'{name}' returns an Encoder without weights; name at least one")
        case nn.Module():
            return Encoder(name, build, {weights.name: weights}, cut=cut_nothing)
        case (nn.Module(), ImagePreprocessing()):
            weights = replace(weights, preprocessing=built[1])
            return Encoder(name, lambda: build()[0], {weights.name: weights}, cut=cut_nothing)
    given = type(built).__name__
    if isinstance(built, tuple):
        given = f"a tuple of {', '.join(type(part).__name__ for part in built)}"
    raise SetupError(
        f"'{name}' returns {given}, not a module, a module and its ImagePreprocessing, or an "
        "Encoder"
    )
