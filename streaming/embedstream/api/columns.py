"""A column becomes a column of embeddings; the other batch APIs build on this."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
from pyspark.sql import Column, SparkSession
from pyspark.sql.pandas.functions import arrow_udf
from pyspark.sql.types import DataType

from embedstream.api.input_columns import KINDS, InputKind
from embedstream.config.sections import DataFrameConfig, EncoderConfig
from embedstream.table.rows import COLUMN_TYPE, build_outcome_column, build_vector_column
from embedstream.worker.model import choose_precision, prepare
from embedstream.worker.task import Embedder, build_embedder
from embedstream_core.models.card import PreparedModel, build_modality_error
from embedstream_core.models.encoders.listing import list_modalities
from embedstream_core.models.prepare import Head
from embedstream_core.records import Outcome
from embedstream_core.settings import ModalityName

__all__ = [
    "ColumnFunction",
    "Returns",
    "Vectorizer",
    "make_column_function",
    "prepare_embedder",
    "send_model",
    "vectorizer",
]

Returns = Literal["embedding", "outcome"]

ColumnFunction = Callable[..., Column]
"""Takes columns, or their names, and returns a column; `spark.udf.register` takes it too."""

_RETURNS: Mapping[Returns, tuple[DataType, Callable[[Sequence[Outcome]], pa.Array]]] = {
    "embedding": (COLUMN_TYPE["embedding"].dataType, build_vector_column),
    "outcome": (COLUMN_TYPE, build_outcome_column),
}


@dataclass(frozen=True)
class Vectorizer:
    """Makes columns of embeddings: `vectorize("content")`.

    The input is a column of the model's modality, see `vectorizer`. With `returns="embedding"` the
    column is `array<float>`, null for a null and for what cannot be embedded; with `"outcome"` it
    is `struct<embedding, error>`, and exactly one of the two is null.

    It holds no SparkContext, so functions that travel to the workers may refer to it.
    """

    embedder: Embedder
    returns: Returns = "embedding"

    @property
    def dimension(self) -> int:
        """Floats in an embedding."""
        return self.embedder.model.card.dimension

    @property
    def kind(self) -> InputKind:
        """The columns that it takes."""
        (modality,) = self.embedder.modalities
        return KINDS[modality]

    def __call__(self, column: Column | str) -> Column:
        """Return the column of embeddings.

        Raises:
            AnalysisException: the column is of another type; by Spark, where the column is used.
        """
        return self.function()(self.kind.require(column))

    def function(self) -> ColumnFunction:
        """Return the function itself, to register it under a name of one's own.

        Spark calls it with a column of any type; if that is a wrong one, the first task fails.
        """
        return make_column_function(self._embed, _RETURNS[self.returns][0])

    def _embed(self, columns: Iterator[pa.Array]) -> Iterator[pa.Array]:
        """Embed a partition's Arrow batches; Spark calls this on a worker."""
        build = _RETURNS[self.returns][1]
        for outcomes in self.embedder.embed(map(self.kind.read_entries, columns)):
            yield build([outcome for (outcome,) in outcomes])


def vectorizer(
    spark: SparkSession,
    *,
    encoder: str | EncoderConfig = "resnet50",
    modality: ModalityName | None = None,
    returns: Returns = "embedding",
    config: DataFrameConfig | None = None,
) -> Vectorizer:
    """Prepare an encoder on the driver and send it to the workers, once.

    `encoder` is a name, or all its settings. Its modality decides what the column holds: images are
    bytes, URIs or Spark's `image` struct; texts are strings or bytes; audio is bytes or URIs. An
    encoder of several modalities makes columns of its first one, unless `modality` names another.
    Only what `config.references` allows is fetched; without it, nothing.

    Raises:
        SetupError: the encoder, its weights or a setting is wrong, or it does not accept the
            modality; nothing was started.
    """
    embedder = prepare_embedder(spark, encoder=encoder, modality=modality, config=config)
    return Vectorizer(embedder, returns)


def prepare_embedder(
    spark: SparkSession,
    *,
    encoder: str | EncoderConfig,
    modality: ModalityName | None = None,
    head: Head = "cut",
    config: DataFrameConfig | None = None,
) -> Embedder:
    """Prepare an encoder for one modality, by default its first, and send it to the workers.

    Raises:
        SetupError: the encoder, its weights or a setting is wrong, or it does not accept the
            modality.
    """
    settings = EncoderConfig(name=encoder) if isinstance(encoder, str) else encoder
    # Before anything is downloaded.
    if modality is not None and modality not in (accepted := list_modalities(settings.name)):
        raise build_modality_error(settings.name, accepted, wanted=modality)
    model = prepare(settings, head=head)
    model = model.accept_only(modality or model.card.modalities[0])
    return send_model(spark, model, settings, config=config)


def send_model(
    spark: SparkSession,
    model: PreparedModel,
    encoder: EncoderConfig,
    *,
    config: DataFrameConfig | None = None,
) -> Embedder:
    """Choose a prepared model's precision and send it to the workers."""
    chosen = choose_precision(spark, model, encoder)
    return build_embedder(spark, [(chosen.model, encoder)], config or DataFrameConfig())


def make_column_function(
    function: Callable[[Iterator[Any]], Iterator[pa.Array]], kind: DataType
) -> ColumnFunction:
    """Return a function of columns that runs on the workers.

    `function` gets a partition's Arrow batches: arrays, or tuples of them if its annotations say
    so. It yields an array of type `kind` and the same length for each.
    """
    # Spark runs a deterministic function again for each filter over its column.
    made: ColumnFunction = arrow_udf(function, kind).asNondeterministic()  # type: ignore[call-overload]
    return made
