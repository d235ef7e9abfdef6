"""A checked model, ready to travel to the workers or to be kept in a folder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from pydantic import TypeAdapter, ValidationError

from embedstream_core.errors import SetupError
from embedstream_core.media.image.decode import Preprocessing
from embedstream_core.model_id import ModelId, Precision

__all__ = [
    "ModelCard",
    "PreparedModel",
    "read_card",
    "read_prepared",
    "save_prepared",
    "tensors_in",
]


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What a worker needs to rebuild a prepared model, and what is stamped on its rows.

    `model_id` is the text of a `ModelId`, with the precision of `precision`. `dimension` is the
    length of an embedding; `tensors_sha256` the hash of the prepared tensors. `labels` names the
    outputs of a model whose head was kept.
    """

    encoder: str
    model_id: str
    dimension: int
    preprocessing: Preprocessing
    license: str
    tensors_sha256: str
    labels: tuple[str, ...] = ()
    precision: Precision = "float32"


class PreparedModel(NamedTuple):
    """A checked model, ready to travel.

    `tensors` is a whole file: in safetensors format, or for a row of `PROGRAMS` the program.
    """

    card: ModelCard
    tensors: bytes

    def in_precision(self, precision: Precision) -> PreparedModel:
        """Return the model whose vectors are made, and named, in a precision."""
        model_id = ModelId.parse(self.card.model_id).in_precision(precision)
        return self._replace(card=replace(self.card, model_id=str(model_id), precision=precision))


_CARD = TypeAdapter(ModelCard)


def save_prepared(model: PreparedModel, folder: Path) -> None:
    """Write a model's two files, `card.json` and `tensors`, into a folder that is made for it."""
    folder.mkdir(parents=True)
    _card_in(folder).write_bytes(_CARD.dump_json(model.card, indent=2))
    tensors_in(folder).write_bytes(model.tensors)


def read_prepared(folder: Path) -> PreparedModel:
    """Read what `save_prepared` wrote; that the tensors are the card's is not checked here.

    Raises:
        SetupError: a file is missing, or the card is none.
    """
    card = read_card(folder)
    try:
        return PreparedModel(card, tensors_in(folder).read_bytes())
    except OSError as error:
        raise _unreadable(folder, error) from error


def read_card(folder: Path) -> ModelCard:
    """Read the card that `save_prepared` wrote.

    Raises:
        SetupError: the file is missing, or holds no card.
    """
    try:
        return _CARD.validate_json(_card_in(folder).read_bytes())
    except (OSError, ValidationError) as error:
        raise _unreadable(folder, error) from error


def tensors_in(folder: Path) -> Path:
    """The file of a saved model's tensors."""
    return folder / "tensors"


def _card_in(folder: Path) -> Path:
    return folder / "card.json"


def _unreadable(folder: Path, error: Exception) -> SetupError:
    return SetupError(f"the saved encoder '{folder}' cannot be read ({error}); write it anew")
