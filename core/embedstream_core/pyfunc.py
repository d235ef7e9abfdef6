"""A saved encoder as MLflow runs it, in any process: MLflow calls `_load_pyfunc`.

Nothing here imports MLflow, and nothing is pickled: a model in MLflow is the folder that
`save_prepared` wrote, and the name of this module.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import TypeAdapter

from embedstream_core.engine.cache import engine_of
from embedstream_core.fetch import deny_references
from embedstream_core.model_id import Precision
from embedstream_core.models.card import ModelCard, read_card, tensors_in
from embedstream_core.pipeline.pipeline import Pipeline
from embedstream_core.records import Embedding, Item, Outcome
from embedstream_core.settings import EngineSettings

__all__ = ["ImageEncoder"]


@dataclass(frozen=True, slots=True)
class ImageEncoder:
    """A saved encoder; its engine is started by the first prediction, once a process."""

    folder: Path
    card: ModelCard
    # MLflow's `model_config`.
    settings: EngineSettings

    def predict(self, model_input: pd.DataFrame) -> pd.DataFrame:
        """Embed the images in the column `content`, bytes or null.

        Returns a frame of the same index. `embedding` is float32 of shape (dimension,), or None
        for what cannot be embedded; `error` says why, as `<code>: <message>`, and is empty
        otherwise: MLflow would make the text "None" of a null.
        """
        # Servers predict from several threads, and an engine takes one at a time.
        with _turn:
            outcomes = self._outcomes(model_input["content"].tolist())
        columns = {
            "embedding": pd.Series([_vector(one) for one in outcomes], dtype=object),
            "error": pd.Series([_error(one) for one in outcomes], dtype=object),
        }
        return pd.DataFrame(columns).set_axis(model_input.index)

    def _outcomes(self, images: Sequence[Any]) -> list[Outcome]:
        pipeline = Pipeline(
            engine_of(self.card, lambda: tensors_in(self.folder), self.settings),
            self.card.preprocessing,
            fetch=deny_references,
        )
        (outcomes,) = pipeline.run([[Item("", content=_content(image)) for image in images]])
        return outcomes


_turn = threading.Lock()


def _load_pyfunc(data_path: str, model_config: Mapping[str, Any] | None = None) -> ImageEncoder:
    folder = Path(data_path)
    card = read_card(folder)
    config = dict(model_config or {})
    precision = TypeAdapter(Precision).validate_python(config.pop("precision", card.precision))
    settings = TypeAdapter(EngineSettings).validate_python(config)
    return ImageEncoder(folder, replace(card, precision=precision), settings)


def _content(image: Any) -> bytes:
    # What is null stands for no bytes, and pandas has several nulls.
    return image if isinstance(image, bytes) else b""


def _vector(outcome: Outcome) -> Any:
    return outcome.vector if isinstance(outcome, Embedding) else None


def _error(outcome: Outcome) -> str:
    return "" if isinstance(outcome, Embedding) else f"{outcome.code}: {outcome.message}"
