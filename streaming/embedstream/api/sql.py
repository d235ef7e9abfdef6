"""Functions for SQL."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession

from embedstream.api.arrow_columns import ColumnFunction
from embedstream.api.columns import ARGUMENT_TYPES, IMAGES_ARE, image_vectorizer
from embedstream.api.labels import image_labeler
from embedstream.config.sections import DataFrameConfig, EncoderConfig
from embedstream.spark.connect import is_connect
from embedstream_core.errors import SetupError

__all__ = ["register_image_functions"]

_CHECK = Path(__file__).with_name("ImagesOnly.java")

_COLUMNS = {"image_embedding": 1, "image_labels": 2}


def register_image_functions(
    spark: SparkSession,
    *,
    encoder: str | EncoderConfig = "resnet50",
    config: DataFrameConfig | None = None,
) -> None:
    """Register `image_embedding(image)` and `image_labels(image, k)` for the session.

    An image is bytes, a URI, or Spark's `image` struct; what is null or cannot be embedded gives
    null. `image_labels` is there where the encoder names its classes. A query that gives them
    anything else, or more or less, fails in Spark's analyzer (`AnalysisException`); over Spark
    Connect, which cannot tell the analyzer, it fails in its first task.

    Raises:
        SetupError: the encoder, its weights or a setting is wrong; nothing was registered.
    """
    vectorize = image_vectorizer(spark, encoder=encoder, config=config)
    functions = {"image_embedding": vectorize.function()}
    # Whatever else is wrong with the encoder has been told by now.
    with suppress(SetupError):
        label = image_labeler(spark, encoder=encoder, config=config)
        functions["image_labels"] = label.function()
    registered = {name: spark.udf.register(name, each) for name, each in functions.items()}
    if not is_connect(spark):
        _check_columns(spark, registered)


def _check_columns(spark: SparkSession, registered: Mapping[str, ColumnFunction]) -> None:
    """Put a check of columns before registered functions, which Spark would call with any.

    The analyzer calls Java, and Spark brings a compiler.
    """
    session: Any = spark
    jvm, gateway = session._jvm, session.sparkContext._gateway
    compiler = jvm.org.codehaus.janino.SimpleCompiler()
    compiler.setTargetVersion(8)
    compiler.setParentClassLoader(jvm.org.apache.spark.util.Utils.getContextOrSparkClassLoader())
    compiler.cook(_CHECK.read_text())
    [constructor] = compiler.getClassLoader().loadClass(_CHECK.stem).getConstructors()

    registry = session._jsparkSession.sessionState().functionRegistry()
    for name, function in registered.items():
        arguments = gateway.new_array(jvm.Object, 4)
        arguments[:] = function._judf, _COLUMNS[name], ARGUMENT_TYPES, IMAGES_ARE
        registry.createOrReplaceTempFunction(name, constructor.newInstance(arguments), "python_udf")
