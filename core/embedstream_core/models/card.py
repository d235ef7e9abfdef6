"""A checked model, to send to the workers or to store in a folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from pydantic import TypeAdapter, ValidationError

from embedstream_core.errors import SetupError
from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.media.modalities import Preprocessing
from embedstream_core.model_id import ModelId, Precision
from embedstream_core.settings import ModalityName, Normalization

__all__ = [
    "ModelCard",
    "PreparedModel",
    "build_modality_error",
    "get_tensors_path",
    "read_card",
    "read_prepared",
    "save_prepared",
]

_CARD_FILE = "card.json"


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What a worker needs to rebuild a prepared model and to label its rows.

    `model_id` is the text of a `ModelId`, with the precision of `precision` and the normalization
    of `normalize`. `dimension` is the length of an embedding; `inputs` has the preprocessing of
    each modality that the model accepts; `tensors_sha256` is the hash of the prepared tensors.
    `labels` names the outputs of a model whose head was kept.
    """

    encoder: str
    model_id: str
    dimension: int
    inputs: tuple[Preprocessing, ...]
    license: str
    tensors_sha256: str
    labels: tuple[str, ...] = ()
    precision: Precision = "float32"
    normalize: Normalization = "none"

    @property
    def modalities(self) -> tuple[ModalityName, ...]:
        """The modalities that the model accepts."""
        return tuple(one.modality for one in self.inputs)

    @property
    def image(self) -> ImagePreprocessing:
        """The preprocessing of images; raises SetupError for a model that accepts none."""
        for one in self.inputs:
            if isinstance(one, ImagePreprocessing):
                return one
        raise build_modality_error(self.encoder, self.modalities, wanted="image")


class PreparedModel(NamedTuple):
    """A checked model; `tensors` is a file's content: safetensors, or a program of `PROGRAMS`."""

    card: ModelCard
    tensors: bytes

    def in_precision(self, precision: Precision) -> PreparedModel:
        """Return the same model with a card for vectors in that precision."""
        model_id = ModelId.parse(self.card.model_id).in_precision(precision)
        return self._replace(card=replace(self.card, model_id=str(model_id), precision=precision))

    def accept_only(self, modality: ModalityName) -> PreparedModel:
        """Return the same model for contents of one modality.

        Raises:
            SetupError: the model does not accept it.
        """
        inputs = tuple(one for one in self.card.inputs if one.modality == modality)
        if not inputs:
            raise build_modality_error(self.card.encoder, self.card.modalities, wanted=modality)
        return self._replace(card=replace(self.card, inputs=inputs))


_CARD = TypeAdapter(ModelCard)


def build_modality_error(
    encoder: str, accepted: Iterable[ModalityName], *, wanted: ModalityName
) -> SetupError:
    """Return the error of an encoder that does not accept a modality."""
    return SetupError(
        f"the encoder '{encoder}' embeds {' and '.join(accepted)}, not {wanted}; name an encoder "
        f"of {wanted}, see `embedstream encoders`"
    )


def save_prepared(model: PreparedModel, folder: Path) -> None:
    """Write a model's two files, `card.json` and `tensors`, into a new folder."""
    folder.mkdir(parents=True)
    (folder / _CARD_FILE).write_bytes(_CARD.dump_json(model.card, indent=2))
    get_tensors_path(folder).write_bytes(model.tensors)


def read_prepared(folder: Path) -> PreparedModel:
    """Read a saved model without comparing its tensors to its card; errors as in `read_card`."""
    with _convert_errors(folder):
        return PreparedModel(read_card(folder), get_tensors_path(folder).read_bytes())


def read_card(folder: Path) -> ModelCard:
    """Read the card that `save_prepared` wrote; raise SetupError for a missing or invalid one."""
    with _convert_errors(folder):
        return _CARD.validate_json((folder / _CARD_FILE).read_bytes())


def get_tensors_path(folder: Path) -> Path:
    """Return the path of a saved model's tensors."""
    return folder / "tensors"


@contextmanager
def _convert_errors(folder: Path) -> Iterator[None]:
    """Raise SetupError if a file of the folder is missing or invalid."""
    try:
        yield
    except (OSError, ValidationError) as error:
        reason = f"the saved encoder '{folder}' cannot be read ({error}); write it again"
        raise SetupError(reason) from error
