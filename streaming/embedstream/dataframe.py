"""A DataFrame of images gets their embeddings, or the errors that they have instead."""

from __future__ import annotations

from pyspark.sql import DataFrame
from pyspark.sql import functions as f

from embedstream.config import BatchConfig, EncoderConfig
from embedstream.outcomes import COLUMN_TYPE
from embedstream.vectorizer import check_input_column, image_vectorizer
from embedstream_core.errors import SetupError

__all__ = ["featurize"]

_OUTCOME = "_embedstream_outcome"


def featurize(
    df: DataFrame,
    *,
    encoder: str | EncoderConfig = "resnet50",
    input: str = "content",  # noqa: A002 - what Spark's users call it
    config: BatchConfig | None = None,
) -> DataFrame:
    """Add the columns `embedding`, `array<float>`, and `error`, `struct<code, stage, message>`.

    Exactly one of the two is null in each row. All other columns of `df` stay; it may be a
    streaming DataFrame. `input` is a column of image bytes, of URIs (of which only those are
    fetched that `config.references` allows), or of Spark's `image` struct. Columns of these names
    and types that are there already, as after `read_images`, are replaced.

    Raises:
        SetupError: the column holds no images, a name is taken, or the encoder, its weights or a
            setting is wrong; nothing was started.
    """
    _check_columns(df, input)
    vectorize = image_vectorizer(
        df.sparkSession,
        encoder=encoder,
        returns="outcome",
        config=config,
    )
    others = [f.col(f"`{name}`") for name in df.columns if name not in COLUMN_TYPE.names]
    parts = [f.col(f"{_OUTCOME}.{name}") for name in COLUMN_TYPE.names]
    return df.withColumn(_OUTCOME, vectorize(f.col(f"`{input}`"))).select(*others, *parts)


def _check_columns(df: DataFrame, input: str) -> None:  # noqa: A002
    check_input_column(df, input)
    for field in COLUMN_TYPE:
        if field.name in df.columns and df.schema[field.name].dataType != field.dataType:
            raise SetupError(
                f"there is a column '{field.name}' of another type; rename or drop it first"
            )
