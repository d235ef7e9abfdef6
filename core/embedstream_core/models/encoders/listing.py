"""What can be named as an encoder: modality, floats, license, and where the weights are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import nn

from embedstream_core.errors import MissingExtra
from embedstream_core.extras import is_installed
from embedstream_core.model_id import MLFLOW
from embedstream_core.models.encoders.architecture import Encoder, find_head
from embedstream_core.models.encoders.catalog import find_encoder, list_encoders
from embedstream_core.models.files.file_formats import PROGRAMS
from embedstream_core.settings import ModalityName

__all__ = ["Listing", "describe_encoders", "list_modalities"]


_OWN = "its own"
_DOWNLOADED = "downloaded at first use"


@dataclass(frozen=True, slots=True)
class Listing:
    """An encoder's line in a list.

    `dimension` is None where it depends on the model that is named. `weights` says where they come
    from: `here` if they are on this machine. `missing_extra` is the extra to install first, if any.
    """

    name: str
    modalities: tuple[ModalityName, ...]
    dimension: int | None
    license: str
    weights: str
    missing_extra: str = ""


def describe_encoders() -> Iterator[Listing]:
    """Yield every encoder, those of one name first, then the families; takes some seconds."""
    for name in list_encoders():
        try:
            encoder = find_encoder(name)
        except MissingExtra as error:
            yield Listing(name, ("image",), None, "", "here", error.extra)
            continue
        published = encoder.default_weights
        where = "here" if published.is_here() else _DOWNLOADED
        dimension = encoder.dimension or _read_dimension(encoder)
        yield Listing(name, ("image",), dimension, published.license, where)
    for name, program in PROGRAMS.items():
        is_here = program.default is not None
        license_, where = (program.license, "here") if is_here else (_OWN, "your file or folder")
        missing = _find_missing(program.extra or name)
        yield Listing(name, program.modalities, program.dimension, license_, where, missing)
    missing = _find_missing("timm")
    yield Listing("timm/<model>", ("image",), None, _OWN, _DOWNLOADED, missing)
    yield Listing("<module>:<function>", ("image",), None, _OWN, "your function")
    missing = _find_missing("mlflow")
    yield Listing(MLFLOW, list_modalities(MLFLOW), None, _OWN, "in MLflow", missing)


def list_modalities(encoder: str) -> tuple[ModalityName, ...]:
    """Return the modalities that an encoder of that name may accept; a model accepts some of them.

    Loads nothing, so a wrong pairing is found before weights are downloaded.
    """
    if encoder == MLFLOW:
        return get_args(ModalityName)
    return PROGRAMS[encoder].modalities if encoder in PROGRAMS else ("image",)


def _find_missing(extra: str) -> str:
    return "" if is_installed(extra) else extra


def _read_dimension(encoder: Encoder) -> int:
    """Return the inputs of the layer that is cut, of a network without memory for its weights."""
    with torch.device("meta"):
        network = encoder.build()
    head: Any = network.get_submodule(find_head(network))
    return int(head.in_features if isinstance(head, nn.Linear) else head.in_channels)
