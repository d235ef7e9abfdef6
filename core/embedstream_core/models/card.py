"""A checked model, ready to travel to the workers or to be stored in a folder."""

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
    "get_tensors_path",
    "read_card",
    "read_prepared",
    "save_prepared",
]

_CARD_FILE = "card.json"


@dataclass(frozen=True, slots=True)
class ModelCard:
    """The facts that a worker needs to rebuild a prepared model and to label its rows.

    `model_id` is the text of a `ModelId`, with the precision of `precision`. `dimension` is the
    length of an embedding; `tensors_sha256` is the hash of the prepared tensors. `labels` names
    the outputs of a model whose head was kept.
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

    `tensors` is the content of a file: in safetensors format, or the program of a row of
    `PROGRAMS`.
    """

    card: ModelCard
    tensors: bytes

    def in_precision(self, precision: Precision) -> PreparedModel:
        """Return the same model with a card for vectors in that precision."""
        model_id = ModelId.parse(self.card.model_id).in_precision(precision)
        return self._replace(card=replace(self.card, model_id=str(model_id), precision=precision))


_CARD = TypeAdapter(ModelCard)


def save_prepared(model: PreparedModel, folder: Path) -> None:
    """Write a model's two files, `card.json` and `tensors`, into a new folder."""
    folder.mkdir(parents=True)
    (folder / _CARD_FILE).write_bytes(_CARD.dump_json(model.card, indent=2))
    get_tensors_path(folder).write_bytes(model.tensors)


def read_prepared(folder: Path) -> PreparedModel:
    """Read the files that `save_prepared` wrote, without comparing the tensors to the card.

    Raises:
        SetupError: a file is missing, or the card is invalid.
    """
    try:
        return PreparedModel(read_card(folder), get_tensors_path(folder).read_bytes())
    except OSError as error:
        raise _read_error(folder, error) from error


def read_card(folder: Path) -> ModelCard:
    """Read the card that `save_prepared` wrote.

    Raises:
        SetupError: the file is missing, or holds no valid card.
    """
    try:
        return _CARD.validate_json((folder / _CARD_FILE).read_bytes())
    except (OSError, ValidationError) as error:
        raise _read_error(folder, error) from error


def get_tensors_path(folder: Path) -> Path:
    """Return the path of a saved model's tensors."""
    return folder / "tensors"


def _read_error(folder: Path, error: Exception) -> SetupError:
    return SetupError(f"the saved encoder '{folder}' cannot be read ({error}); write it again")
