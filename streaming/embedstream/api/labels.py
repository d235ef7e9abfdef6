"""A column of images becomes a column of their likeliest classes, with probabilities."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from pyspark.sql import Column, SparkSession
from pyspark.sql import functions as f
from pyspark.sql.pandas.types import to_arrow_type
from pyspark.sql.types import ArrayType, FloatType, StringType, StructField, StructType

from embedstream.api.arrow_columns import ColumnFunction, column_function
from embedstream.api.columns import entries_of, images_only, prepare_embedder
from embedstream.config.sections import DataFrameConfig, EncoderConfig
from embedstream.worker.task import Embedder
from embedstream_core.records import Embedding, Outcome

__all__ = ["ImageLabeler", "image_labeler"]

_TYPE = ArrayType(
    StructType([StructField("label", StringType()), StructField("probability", FloatType())])
)


@dataclass(frozen=True)
class ImageLabeler:
    """Makes columns of classes: `label("content", 3)`.

    The column is `array<struct<label, probability>>`, the likeliest first; null for what is null or
    cannot be decoded.
    """

    embedder: Embedder

    def __call__(self, column: Column | str, k: int = 5) -> Column:
        """
        Raises:
            AnalysisException: the column holds no images; by Spark, where the column is used.
        """
        made: Column = self.function()(images_only(column), f.lit(k))
        return made

    def function(self) -> ColumnFunction:
        """The function of two columns: images, and how many classes."""
        return column_function(self._label, _TYPE)

    def _label(self, columns: Iterator[tuple[pa.Array, ...]]) -> Iterator[pa.Array]:
        """What Spark calls on a worker, with the columns' batches."""
        wanted: list[list[int | None]] = []

        def batches() -> Iterator[Any]:
            for images, counts in columns:
                wanted.append(counts.to_pylist())
                yield entries_of(images)

        for outcomes in self.embedder.outcomes(batches()):
            rows = zip(outcomes, wanted.pop(0), strict=True)
            yield pa.array([self._labels(*row) for row in rows], to_arrow_type(_TYPE))

    def _labels(self, outcome: Outcome, k: int | None) -> list[dict[str, Any]] | None:
        if not isinstance(outcome, Embedding):
            return None
        return top(outcome.vector, self.embedder.model.card.labels, k=k or 0)


def image_labeler(
    spark: SparkSession,
    *,
    encoder: str | EncoderConfig = "resnet50",
    config: DataFrameConfig | None = None,
) -> ImageLabeler:
    """Prepare an encoder with its head; as `image_vectorizer`.

    Raises:
        SetupError: the encoder, its weights or a setting is wrong, or it names no classes.
    """
    embedder = prepare_embedder(spark, encoder=encoder, head="kept", config=config)
    return ImageLabeler(embedder)


def top(logits: np.ndarray, labels: Sequence[str], *, k: int) -> list[dict[str, Any]]:
    """The `k` likeliest labels; probabilities are the softmax of the logits."""
    weights = np.exp(logits.astype(np.float64) - logits.max())
    probabilities = weights / weights.sum()
    best = np.argsort(-probabilities, kind="stable")[:k]
    return [{"label": labels[index], "probability": probabilities[index]} for index in best]
