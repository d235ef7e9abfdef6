"""Add to a DataFrame of images their embeddings, or the errors of those that have none."""

from __future__ import annotations

from pyspark.sql import DataFrame

from embedstream.api.columns import image_vectorizer
from embedstream.api.image_columns import find_columns, find_image_column
from embedstream.config.sections import DataFrameConfig, EncoderConfig
from embedstream.table.rows import COLUMN_TYPE
from embedstream_core.errors import SetupError

__all__ = ["featurize"]

_OUTCOME = "_embedstream_outcome"


def featurize(
    df: DataFrame,
    *,
    encoder: str | EncoderConfig = "resnet50",
    input: str = "content",  # noqa: A002 - the name that Spark's users know
    config: DataFrameConfig | None = None,
) -> DataFrame:
    """Add the columns `embedding`, `array<float>`, and `error`, `struct<code, stage, message>`.

    Exactly one of the two is null in each row. All other columns of `df` stay; it may be a
    streaming DataFrame. `input` is a column of image bytes, of URIs (of which only those are
    fetched that `config.references` allows), or of Spark's `image` struct; its name is resolved as
    Spark does, so `image.bytes` is a field of a struct. Columns named `embedding` and `error` that
    exist already with these types, as after `read_images`, are replaced.

    Raises:
        SetupError: the column holds no images, a name is taken, or the encoder, its weights or a
            setting is wrong; nothing was started.
    """
    images = find_image_column(df, input)
    for added in COLUMN_TYPE:
        for taken in find_columns(df, added.name):
            if taken.dataType != added.dataType:
                raise SetupError(
                    f"featurize adds the column '{added.name}', and there is a column "
                    f"'{taken.name}' of another type, {taken.dataType.simpleString()}: rename or "
                    f"drop it first, as in df.withColumnRenamed('{taken.name}', 'my_{taken.name}')"
                )
    vectorize = image_vectorizer(df.sparkSession, encoder=encoder, returns="outcome", config=config)
    others = df.withColumn(_OUTCOME, vectorize(images)).drop(*COLUMN_TYPE.names)
    return others.select("*", f"{_OUTCOME}.*").drop(_OUTCOME)
