"""The settings of a training; imports neither torch nor Pillow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from embedstream_core.errors import SetupError

__all__ = ["Trainable", "TrainingSettings"]

Trainable = Literal["head", "last_blocks", "all"]


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """How an encoder is trained.

    `trainable` names the part that changes together with the new head: the `last_blocks`, as many
    as `blocks`; `all` of the body; or only the `head`, which leaves the embeddings unchanged.
    `batch_size` is the number of images of one process in a step. `learning_rate` is the highest
    rate of the head; the body trains at a tenth of it. `held_out` is the fraction of the images
    that measures the accuracy and is not trained on.

    Raises:
        SetupError: a value is out of its range.
    """

    trainable: Trainable = "last_blocks"
    blocks: int = 3
    epochs: int = 5
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    held_out: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("blocks", "epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise SetupError(f"{name} is {getattr(self, name)}; it is 1 or more")
        if not 0 < self.held_out < 1:
            raise SetupError(f"held_out is {self.held_out}; it is between 0 and 1")
        if self.learning_rate <= 0:
            raise SetupError(f"learning_rate is {self.learning_rate}; it is more than 0")
        if self.trainable not in get_args(Trainable):
            raise SetupError(f"trainable is '{self.trainable}'; it is head, last_blocks or all")
