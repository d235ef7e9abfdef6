"""Use the batch API as a client of Spark Connect, and print the results as JSON.

python over_connect.py FOLDER_OF_PICTURES FOLDER_OF_ODD_NAMES
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from pyspark.sql import SparkSession
from pyspark.sql import functions as f

from contents import CLIPS, MINILM, SPEECH, TEXTS
from doors import ENCODER
from embedstream import (
    AudioFeaturizer,
    EncoderConfig,
    ImageFeaturizer,
    TextFeaturizer,
    featurize,
    finetune,
    read_images,
    register_functions,
    vectorizer,
)
from embedstream_core.errors import SetupError


def main(folder: str, odd_names: str) -> None:
    # A server with two cores, and a session that is its client.
    spark = SparkSession.builder.remote("local[2]").getOrCreate()
    try:
        listed = {
            "by a worker": [row.path for row in read_images(spark, odd_names).collect()],
            "by spark": [row.path for row in read_images(spark, os.path.relpath(folder)).collect()],
        }
        options = {"inputCol": "value", "outputType": "array", "outputCol": "spark_ml"}
        of_texts = TextFeaturizer(encoder=MINILM, **options)  # type: ignore[arg-type]
        of_clips = AudioFeaturizer(encoder=SPEECH, **options)  # type: ignore[arg-type]
        others = {
            "texts": _embed(spark, TEXTS, of_texts, "text_embedding"),
            "clips": _embed(spark, CLIPS, of_clips, "audio_embedding"),
        }
        print(json.dumps({**_outcomes(spark, folder), **others, "listed": listed}))
    finally:
        spark.stop()


def _outcomes(spark: SparkSession, folder: str) -> dict[str, Any]:
    images = read_images(spark, folder)
    register_functions(spark, encoder=ENCODER)
    vectorize = vectorizer(spark, encoder=ENCODER)
    ml = ImageFeaturizer(encoder=ENCODER, outputType="array", outputCol="spark_ml")
    embedded = ml.transform(featurize(images, encoder=ENCODER)).select(
        "path",
        "error.code",
        f.expr("image_labels(content, 1)[0].label").alias("label"),
        f.col("embedding").alias("featurize"),
        vectorize("content").alias("column"),
        f.expr("image_embedding(content)").alias("sql"),
        "spark_ml",
    )
    return {
        "rows": [row.asDict() for row in embedded.collect()],
        "refused": _refused(images, folder),
    }


def _embed(
    spark: SparkSession, contents: Mapping[str, Any], featurizer: Any, function: str
) -> list[dict[str, Any]]:
    """Embed the contents at every door, with the featurizer's encoder."""
    encoder = EncoderConfig.model_validate(featurizer.getOrDefault("encoder"))
    register_functions(spark, encoder=encoder)
    rows = spark.createDataFrame([*contents.items()], ["name", "value"])
    embedded = featurizer.transform(featurize(rows, input="value", encoder=encoder)).select(
        "name",
        f.col("embedding").alias("featurize"),
        vectorizer(spark, encoder=encoder)("value").alias("column"),
        f.expr(f"{function}(value)").alias("sql"),
        "spark_ml",
    )
    return [row.asDict() for row in embedded.collect()]


def _refused(images: Any, folder: str) -> str:
    try:
        finetune(images, label_col="path", output=f"{folder}/trained", encoder=ENCODER)
    except SetupError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    main(*sys.argv[1:])
