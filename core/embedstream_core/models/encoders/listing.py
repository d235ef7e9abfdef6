"""What can be named as an encoder: modality, floats, license, and where the weights are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from embedstream_core.errors import MissingExtra
from embedstream_core.models.encoders.architecture import Encoder, find_head
from embedstream_core.models.encoders.catalog import find_encoder, list_encoders
from embedstream_core.models.files.file_formats import PROGRAMS
from embedstream_core.settings import ModalityName

__all__ = ["Listing", "describe_encoders"]


@dataclass(frozen=True, slots=True)
class Listing:
    """An encoder's line in a list.

    `dimension` is None where it depends on the model that is named. `weights` says where the
    default weights are: `here`, or how they get here.
    """

    name: str
    modalities: tuple[ModalityName, ...]
    dimension: int | None
    license: str
    weights: str


def describe_encoders() -> Iterator[Listing]:
    """Yield every encoder, those of one name first, then the families; takes some seconds."""
    for name in list_encoders():
        try:
            encoder = find_encoder(name)
        except MissingExtra as error:
            yield Listing(name, ("image",), None, "unknown", str(error).partition(": ")[2])
            continue
        published = encoder.default_weights
        where = "here" if published.is_here() else "downloaded at the first use"
        dimension = encoder.dimension or _read_dimension(encoder)
        yield Listing(name, ("image",), dimension, published.license, where)
    for name, program in PROGRAMS.items():
        if program.default is None:
            extra = program.extra or name
            where = f"a file or folder of yours (extra {extra})"
            yield Listing(name, program.modalities, None, "the model's own", where)
            continue
        try:
            program.default()
            where = "here"
        except MissingExtra as error:
            where = str(error).partition(": ")[2]
        yield Listing(name, program.modalities, program.dimension, program.license, where)
    timm = "downloaded at the first use" if find_spec("timm") else "pip install 'embedstream[timm]'"
    yield Listing("timm/<model>", ("image",), None, "the model's own", timm)
    yield Listing("<module>:<function>", ("image",), None, "yours", "made by a function of yours")
    yield Listing("mlflow", ("image", "text", "audio"), None, "the model's own", "in MLflow")


def _read_dimension(encoder: Encoder) -> int:
    """Return the inputs of the layer that is cut, of a network without memory for its weights."""
    with torch.device("meta"):
        network = encoder.build()
    head: Any = network.get_submodule(find_head(network))
    return int(head.in_features if isinstance(head, nn.Linear) else head.in_channels)
