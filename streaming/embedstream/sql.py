"""Functions for SQL."""

from __future__ import annotations

from contextlib import suppress

from pyspark.sql import SparkSession

from embedstream.config import BatchConfig, EncoderConfig
from embedstream.labeler import image_labeler
from embedstream.vectorizer import image_vectorizer
from embedstream_core.errors import SetupError

__all__ = ["register_image_functions"]


def register_image_functions(
    spark: SparkSession,
    *,
    encoder: str | EncoderConfig = "resnet50",
    config: BatchConfig | None = None,
) -> None:
    """Register `image_embedding(image)` and `image_labels(image, k)` for the session.

    An image is bytes, a URI, or Spark's `image` struct; what is null or cannot be embedded gives
    null. `image_labels` is there where the encoder names its classes.

    Raises:
        SetupError: the encoder, its weights or a setting is wrong; nothing was registered.
    """
    vectorize = image_vectorizer(spark, encoder=encoder, config=config)
    spark.udf.register("image_embedding", vectorize.function())
    # Whatever else is wrong with the encoder has been told by now.
    with suppress(SetupError):
        label = image_labeler(spark, encoder=encoder, config=config)
        spark.udf.register("image_labels", label.function())
