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
from pyspark.sql.types import ArrayType, StructType

from embedstream.api.columns import ColumnFunction, make_column_function, prepare_embedder
from embedstream.api.input_columns import KINDS
from embedstream.config.sections import DataFrameConfig, EncoderConfig
from embedstream.worker.task import Embedder
from embedstream_core.records import Embedding, Entry

__all__ = ["ImageLabeler", "image_labeler"]

_TYPE = ArrayType(StructType().add("label", "string").add("probability", "float"))


@dataclass(frozen=True)
class ImageLabeler:
    """Makes columns of classes: `label("content", 3)`.

    The column is `array<struct<label, probability>>`, the likeliest first; null for a null and for
    an image that cannot be decoded.
    """

    embedder: Embedder

    def __call__(self, column: Column | str, k: int = 5) -> Column:
        """Return the column of the `k` likeliest classes.

        Raises:
            AnalysisException: the column holds no images; by Spark, where the column is used.
        """
        return self.function()(KINDS["image"].require(column), f.lit(k))

    def function(self) -> ColumnFunction:
        """Return the function of two columns: images, and how many classes."""
        return make_column_function(self._label, _TYPE)

    def _label(self, columns: Iterator[tuple[pa.Array, ...]]) -> Iterator[pa.Array]:
        """Label a partition's Arrow batches; Spark calls this on a worker."""
        counts: list[list[int | None]] = []

        def read_batches() -> Iterator[list[Entry]]:
            for images, wanted in columns:
                counts.append(wanted.to_pylist())
                yield KINDS["image"].read_entries(images)

        labels = self.embedder.model.card.labels
        for outcomes in self.embedder.embed(read_batches()):
            rows = [
                rank_labels(one.vector, labels, k=k or 0) if isinstance(one, Embedding) else None
                for (one,), k in zip(outcomes, counts.pop(0), strict=True)
            ]
            yield pa.array(rows, to_arrow_type(_TYPE))


def image_labeler(
    spark: SparkSession,
    *,
    encoder: str | EncoderConfig = "resnet50",
    config: DataFrameConfig | None = None,
) -> ImageLabeler:
    """Prepare an encoder with its head, as `vectorizer` does.

    Raises:
        SetupError: the encoder, its weights or a setting is wrong, or it names no classes.
    """
    embedder = prepare_embedder(
        spark, encoder=encoder, modality="image", head="kept", config=config
    )
    return ImageLabeler(embedder)


def rank_labels(logits: np.ndarray, labels: Sequence[str], *, k: int) -> list[dict[str, Any]]:
    """Return the `k` likeliest labels; probabilities are the softmax of the logits."""
    weights = np.exp(logits.astype(np.float64) - logits.max())
    probabilities = weights / weights.sum()
    best = np.argsort(-probabilities, kind="stable")[:k]
    return [{"label": labels[index], "probability": probabilities[index]} for index in best]
