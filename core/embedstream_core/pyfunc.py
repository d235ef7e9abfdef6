"""A saved encoder as MLflow runs it, in any process: MLflow calls `_load_pyfunc`.

Nothing here imports MLflow, and nothing is pickled: a model in MLflow is the folder that
`save_prepared` wrote, and the name of this module.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import TypeAdapter

from embedstream_core.engine.cache import get_engine
from embedstream_core.fetch.fetcher import deny_references
from embedstream_core.model_id import Precision
from embedstream_core.models.card import ModelCard, get_tensors_path, read_card
from embedstream_core.pipeline.pipeline import Pipeline
from embedstream_core.records import Embedding, Item
from embedstream_core.settings import EngineSettings

__all__ = ["LoggedEncoder"]

# Servers predict from several threads, and an engine takes one at a time.
_turn = threading.Lock()


@dataclass(frozen=True, slots=True)
class LoggedEncoder:
    """A saved encoder; the first prediction starts its engine, once per process.

    `settings` is MLflow's `model_config`.
    """

    folder: Path
    card: ModelCard
    settings: EngineSettings

    def predict(self, model_input: pd.DataFrame) -> pd.DataFrame:
        """Embed the bytes in the column `content`, or the texts in the column `text`.

        Returns a frame of the same index. `embedding` is float32 of shape (dimension,), or None
        for what cannot be embedded; `error` gives the reason, as `<code>: <message>`, and is empty
        otherwise: MLflow would turn a null into the text "None".
        """
        columns = [
            model_input[name] if name in model_input else [None] * len(model_input)
            for name in ("content", "text")
        ]
        items = list(map(_build_item, *columns))
        with _turn:
            engine = get_engine(self.card, lambda: get_tensors_path(self.folder), self.settings)
            (outcomes,) = Pipeline([engine], fetch=deny_references).run([items])
        rows = [
            (one.vector, "") if isinstance(one, Embedding) else (None, f"{one.code}: {one.message}")
            for (one,) in outcomes
        ]
        return pd.DataFrame(rows, model_input.index, ["embedding", "error"], dtype=object)


def _build_item(content: object, text: object) -> Item:
    # pandas has several nulls; a row of nulls stands for no bytes.
    if isinstance(text, str):
        # Unpaired surrogates become bytes that are not UTF-8, and so a failure.
        content = text.encode("utf-8", "surrogatepass")
        return Item("", content=content, media_type="text/plain")
    return Item("", content=content if isinstance(content, bytes) else b"")


def _load_pyfunc(data_path: str, model_config: Mapping[str, Any] | None = None) -> LoggedEncoder:
    folder = Path(data_path)
    card = read_card(folder)
    config = dict(model_config or {})
    precision = TypeAdapter(Precision).validate_python(config.pop("precision", card.precision))
    settings = TypeAdapter(EngineSettings).validate_python(config)
    return LoggedEncoder(folder, replace(card, precision=precision), settings)
