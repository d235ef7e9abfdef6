"""The encoders by name: architecture, published weights, preprocessing and license.

An encoder is a classification network whose head is cut off, or a user's network that already
gives vectors. Models that are a file have a name too, see `file_formats.py`.

| name | from |
| --- | --- |
| `resnet50`, `vit_b_16`, … | every classification network of torchvision |
| `timm/<model>`, `timm/<model>.<tag>` | every network of timm (extra `timm`) |
| `module:function` | a user's function that returns a module, or an `Encoder` |
| a row of `ENCODERS` | this table |
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping

from embedstream_core.errors import SetupError
from embedstream_core.models.encoders.architecture import Encoder
from embedstream_core.models.encoders.efficientnet_lite import find_efficientnet_lite0
from embedstream_core.models.encoders.own import find_own_encoder
from embedstream_core.models.encoders.timm import find_timm_encoder
from embedstream_core.models.encoders.torchvision import (
    find_torchvision_encoder,
    list_torchvision_names,
)
from embedstream_core.models.files.file_kinds import EXPORT_ADVICE

__all__ = ["ENCODERS", "find_encoder", "find_library", "list_encoders"]

ENCODERS: Mapping[str, Callable[[], Encoder]] = {"efficientnet_lite0": find_efficientnet_lite0}


def find_encoder(name: str) -> Encoder:
    """Return the encoder of that name.

    Raises:
        SetupError: no family knows the name; the message lists the nearest ones.
        MissingExtra: the package that provides the encoder is not installed.
    """
    if name in ENCODERS:
        return ENCODERS[name]()
    if name.startswith("timm/"):
        return find_timm_encoder(name)
    if ":" in name:
        return find_own_encoder(name)
    known = list_encoders()
    if name in known:
        return find_torchvision_encoder(name)
    if name in ("export", "torch.export"):
        raise SetupError(f"encoder '{name}' is not supported: {EXPORT_ADVICE}")
    # Only here, because a machine for benchmarks has few of the packages that programs need.
    from embedstream_core.models.files.file_formats import PROGRAMS

    named = [*known, *PROGRAMS]
    nearest = difflib.get_close_matches(name, named, n=5) or named[:5]
    raise SetupError(
        f"unknown encoder '{name}'; nearest of the {len(named)} known: {', '.join(nearest)}, "
        "or timm/<model>, or module:function; see `embedstream encoders`"
    )


def find_library(name: str) -> str | None:
    """Return the module that has an encoder's network, if importing it takes a second or more.

    A user's own module is none: what its import does is not known.
    """
    from embedstream_core.models.files.file_formats import PROGRAMS

    if name.startswith("timm/"):
        return "timm"
    is_elsewhere = name in ENCODERS or name in PROGRAMS or ":" in name
    return None if is_elsewhere else "torchvision.models"


def list_encoders() -> list[str]:
    """Return all names except those of timm, sorted."""
    return sorted([*ENCODERS, *list_torchvision_names()])
