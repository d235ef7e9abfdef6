"""Functions for SQL."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession

from embedstream.api.columns import image_vectorizer
from embedstream.api.image_columns import ARGUMENT_TYPES, IMAGES_ARE
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

    An image is bytes, a URI, or Spark's `image` struct; a null and an image that cannot be embedded
    give null. `image_labels` exists if the encoder names its classes. A query that passes anything
    else, or more or fewer columns, fails in Spark's analyzer (`AnalysisException`); over Spark
    Connect, which has no access to the analyzer, it fails in its first task.

    Raises:
        SetupError: the encoder, its weights or a setting is wrong; nothing was registered.
    """
    functions = {
        "image_embedding": image_vectorizer(spark, encoder=encoder, config=config).function()
    }
    # The vectorizer has raised for everything else that is wrong with the encoder.
    with suppress(SetupError):
        functions["image_labels"] = image_labeler(spark, encoder=encoder, config=config).function()
    registered: dict[str, Any] = {
        name: spark.udf.register(name, each) for name, each in functions.items()
    }
    if is_connect(spark):
        return
    # Spark would call the functions with any columns. The analyzer runs a check in Java before
    # it does, which the compiler that Spark brings compiles.
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
