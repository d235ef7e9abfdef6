"""What the core makes of one message by itself: the standard for the rows of a stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import torch

from embedstream_core.boundary import attempt
from embedstream_core.engine.engine import Engine
from embedstream_core.errors import Stage
from embedstream_core.fetch.fetcher import open_fetcher
from embedstream_core.messages.parse import Message, MessageReader
from embedstream_core.models.card import PreparedModel
from embedstream_core.models.prepare import load_prepared
from embedstream_core.pipeline.pipeline import Pipeline
from embedstream_core.pipeline.steps import Outcomes
from embedstream_core.records import Entry, Failure
from embedstream_core.settings import FetchPolicy, ModalityName
from mixed_messages import Kind

__all__ = ["Core", "check_kind", "start_engines"]


def start_engines(models: Sequence[PreparedModel]) -> list[Engine]:
    """Start prepared models on the CPU, in the precision of their cards."""
    return [
        Engine.start(
            load_prepared(model),
            device=torch.device("cpu"),
            precision=model.card.precision,
            normalize=model.card.normalize,
            model_id=model.card.model_id,
        )
        for model in models
    ]


@dataclass(frozen=True, eq=False)
class Core:
    """The engines of a stream, in this process."""

    engines: Sequence[Engine]
    references: FetchPolicy

    @property
    def modalities(self) -> frozenset[ModalityName]:
        """What the engines accept together."""
        return frozenset(one for engine in self.engines for one in engine.inputs)

    def find_models(self, kind: Kind) -> list[str | None]:
        """Return the models that have a row for a message."""
        if kind.modality is None:
            return [None]
        return [one.model_id for one in self.engines if kind.modality in one.inputs]

    def parse(self, value: bytes | None) -> Entry:
        """Return the item of a message, its deletion, or its failure."""
        message = Message(value=value, position="topic-0-0")
        parse = partial(MessageReader().read, message, accepts=self.modalities)
        return attempt(parse, Stage.MESSAGE)

    @lru_cache(maxsize=2000)  # noqa: B019
    def embed(self, value: bytes | None) -> Outcomes:
        """Return the outcomes of a message, which is alone in its batch."""
        with open_fetcher(self.references) as fetcher:
            ((outcomes,),) = Pipeline(self.engines, fetch=fetcher.fetch).run([[self.parse(value)]])
        return outcomes


def check_kind(kind: Kind, outcomes: Outcomes, core: Core) -> None:
    """Check that the outcomes of a message are those that its kind says."""
    assert [one.model_id for one in outcomes] == core.find_models(kind)
    for one in outcomes:
        assert (one.code if isinstance(one, Failure) else None) == kind.code, one
        assert (one.media and one.media.type) == kind.media_type, one
