"""Add to a DataFrame the embeddings of a column, or the errors of what has none."""

from __future__ import annotations

from pyspark.sql import DataFrame

from embedstream.api.columns import vectorizer
from embedstream.api.input_columns import find_column, find_columns
from embedstream.config.sections import DataFrameConfig, EncoderConfig
from embedstream.table.rows import COLUMN_TYPE
from embedstream_core.errors import SetupError
from embedstream_core.settings import ModalityName

__all__ = ["featurize"]

_OUTCOME = "_embedstream_outcome"


def featurize(
    df: DataFrame,
    *,
    encoder: str | EncoderConfig = "resnet50",
    input: str = "content",  # noqa: A002 - the name that Spark's users know
    modality: ModalityName | None = None,
    config: DataFrameConfig | None = None,
) -> DataFrame:
    """Add the columns `embedding`, `array<float>`, and `error`, `struct<code, stage, message>`.

    Exactly one of the two is null in each row. All other columns of `df` stay; it may be a
    streaming DataFrame. `input` is a column of the encoder's modality: images are bytes, URIs (of
    which only those are fetched that `config.references` allows) or Spark's `image` struct; texts
    are strings or bytes; audio is bytes or URIs. Its name is resolved as Spark does, so
    `image.bytes` is a field of a struct. An encoder of several modalities embeds its first one,
    unless `modality` names another. Columns named `embedding` and `error` that exist already with
    these types, as after `read_images`, are replaced.

    Raises:
        SetupError: the column is of another type, a name is taken, or the encoder, its weights or a
            setting is wrong; nothing was started.
    """
    find_column(df, input)
    for added in COLUMN_TYPE:
        for taken in find_columns(df, added.name):
            if taken.dataType != added.dataType:
                raise SetupError(
                    f"featurize adds the column '{added.name}', and there is a column "
                    f"'{taken.name}' of another type, {taken.dataType.simpleString()}: rename or "
                    f"drop it first, as in df.withColumnRenamed('{taken.name}', 'my_{taken.name}')"
                )
    vectorize = vectorizer(
        df.sparkSession, encoder=encoder, modality=modality, returns="outcome", config=config
    )
    inputs = vectorize.kind.find_column(df, input)
    others = df.withColumn(_OUTCOME, vectorize(inputs)).drop(*COLUMN_TYPE.names)
    return others.select("*", f"{_OUTCOME}.*").drop(_OUTCOME)
