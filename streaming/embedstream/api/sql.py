"""Functions for SQL."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession

from embedstream.api.columns import ColumnFunction, Vectorizer, send_model
from embedstream.api.input_columns import KINDS, InputKind
from embedstream.api.labels import image_labeler
from embedstream.config.sections import DataFrameConfig, EncoderConfig
from embedstream.spark.connect import is_connect
from embedstream.spark.java_classes import compile_class
from embedstream.worker.model import prepare
from embedstream_core.errors import SetupError

__all__ = ["register_functions"]

_CHECK = Path(__file__).with_name("CheckedColumns.java")

_IMAGE_LABELS = "image_labels"


def register_functions(
    spark: SparkSession,
    *,
    encoder: str | EncoderConfig = "resnet50",
    config: DataFrameConfig | None = None,
) -> None:
    """Register functions for the session, by the modalities that the encoder accepts.

    | function | its argument |
    | --- | --- |
    | `image_embedding(image)` | bytes, a URI, or Spark's `image` struct |
    | `image_labels(image, k)` | the same; only if the encoder names its classes |
    | `text_embedding(text)` | a string, or its bytes in UTF-8 |
    | `audio_embedding(audio)` | the bytes of a file, or a URI |

    A null and what cannot be embedded give null. A query that passes anything else, or more or
    fewer columns, fails in Spark's analyzer (`AnalysisException`); over Spark Connect, which has no
    access to the analyzer, it fails in its first task. Encoders of different modalities may be
    registered one after the other.

    Raises:
        SetupError: the encoder, its weights or a setting is wrong; nothing was registered.
    """
    settings = EncoderConfig(name=encoder) if isinstance(encoder, str) else encoder
    functions: dict[str, tuple[ColumnFunction, InputKind]] = {}
    model = prepare(settings)
    for modality in model.card.modalities:
        made = Vectorizer(send_model(spark, model.accept_only(modality), settings, config=config))
        functions[f"{modality}_embedding"] = made.function(), made.kind
    if "image" in model.card.modalities:
        # All else that may be wrong with the encoder has been raised by now.
        with suppress(SetupError):
            labeler = image_labeler(spark, encoder=settings, config=config)
            functions[_IMAGE_LABELS] = labeler.function(), KINDS["image"]
    registered: dict[str, Any] = {
        name: spark.udf.register(name, function) for name, (function, _) in functions.items()
    }
    if is_connect(spark):
        return
    # Spark would call the functions with any columns. The analyzer runs a check in Java before
    # it does.
    session: Any = spark
    jvm, gateway = session._jvm, session.sparkContext._gateway
    constructor = compile_class(spark, _CHECK)
    registry = session._jsparkSession.sessionState().functionRegistry()
    for name, function in registered.items():
        kind = functions[name][1]
        arguments = gateway.new_array(jvm.Object, 4)
        count = 2 if name == _IMAGE_LABELS else 1
        arguments[:] = function._judf, count, kind.argument_types, kind.described
        registry.createOrReplaceTempFunction(name, constructor.newInstance(arguments), "python_udf")
