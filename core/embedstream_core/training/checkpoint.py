"""The checkpoint of a training: the state of each part and the reports of the finished epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from embedstream_core.atomic_files import open_draft
from embedstream_core.models.card import ModelCard
from embedstream_core.models.encoders.catalog import find_encoder

__all__ = ["Epoch", "export_tensors", "load_checkpoint", "read_finished_epochs", "save_checkpoint"]


@dataclass(frozen=True, slots=True)
class Epoch:
    """The report of a finished epoch.

    `loss` is the mean over the steps, `accuracy` the fraction of the `judged` held-out images that
    were classified correctly. `rows` is the number of images that each process trained on, by rank;
    `skipped` counts the undecodable images of all processes, by error code.
    """

    number: int
    loss: float
    accuracy: float
    judged: int
    rows: tuple[int, ...]
    skipped: Mapping[str, int]
    seconds: float


def save_checkpoint(path: Path, parts: Mapping[str, Any], epochs: Sequence[Epoch]) -> None:
    """Replace the checkpoint by the state of each part, completely or not at all."""
    state = {name: part.state_dict() for name, part in parts.items()}
    with open_draft(path) as draft:
        torch.save(state | {"epochs": [asdict(epoch) for epoch in epochs]}, draft)
    Path(draft.name).replace(path)


def load_checkpoint(path: Path) -> tuple[dict[str, Any], list[Epoch]]:
    """Return the state of each part and the finished epochs; both are empty without a file."""
    if not path.exists():
        return {}, []
    states: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return states, [Epoch(**epoch) for epoch in states.pop("epochs")]


def read_finished_epochs(path: Path) -> list[Epoch]:
    """Return the finished epochs of a checkpoint; none without a file."""
    return load_checkpoint(path)[1]


def export_tensors(path: Path, card: ModelCard) -> bytes:
    """Return a checkpoint's network in safetensors format: the body, and the head by its name."""
    states, _ = load_checkpoint(path)
    encoder = find_encoder(card.encoder)
    head = encoder.cut(encoder.build())
    named_head = {f"{head}.{name}": tensor for name, tensor in states["head"].items()}
    tensors = {name: tensor.contiguous() for name, tensor in (states["body"] | named_head).items()}
    return safetensors.torch.save(tensors)
