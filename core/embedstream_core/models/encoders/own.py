"""Encoders that are a function of the user's: `module:function`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from typing import Any

from torch import nn

from embedstream_core.errors import EmbedstreamError, SetupError, explain
from embedstream_core.media.image.decode import Preprocessing
from embedstream_core.models.encoders.architecture import (
    Encoder,
    PublishedWeights,
    cut_nothing,
)

__all__ = ["find_own_encoder"]


def find_own_encoder(name: str) -> Encoder:
    """Call the function and describe what it returns as an encoder.

    Raises:
        SetupError: there is no such function, it raises, or it returns something else.
    """
    make = _import(name)
    made = _call(name, make)
    match made:
        case Encoder() if made.weights:
            # Workers find it again by this name.
            return replace(made, name=name)
        case Encoder():
            raise SetupError(f"'{name}' returns an Encoder without weights; name at least one")
        case nn.Module():
            return _whole(name, make, None)
        case (nn.Module(), Preprocessing() as preprocessing):
            return _whole(name, lambda: make()[0], preprocessing)
    raise SetupError(
        f"'{name}' returns {_describe(made)}, not a module, a module and its Preprocessing, or "
        "an Encoder"
    )


def _import(name: str) -> Callable[[], Any]:
    module, _, function = name.partition(":")
    try:
        make: Callable[[], Any] = getattr(import_module(module), function)
    except (Exception, SystemExit) as error:
        # What runs at import is the user's, a script that parses its arguments included.
        raise SetupError(
            f"the encoder '{name}' cannot be imported ({explain(error)}): name a function that "
            "returns a module, in a module that the driver and the workers can import"
        ) from error
    return make


def _call(name: str, make: Callable[[], Any]) -> Any:
    try:
        return make()
    except EmbedstreamError:
        raise
    except (Exception, SystemExit) as error:
        raise SetupError(
            f"the encoder '{name}' failed when it was called without arguments ({explain(error)}): "
            "correct the function; the workers call it too"
        ) from error


def _describe(made: object) -> str:
    if isinstance(made, tuple):
        return f"a tuple of {', '.join(type(part).__name__ for part in made)}"
    return type(made).__name__


def _whole(
    name: str, build: Callable[[], nn.Module], preprocessing: Preprocessing | None
) -> Encoder:
    """A network that gives vectors as it is, with the weights that it is built with."""
    own = PublishedWeights("own", preprocessing, "unknown", sha256="", download=None)
    return Encoder(name, build, {own.name: own}, cut=cut_nothing)
