"""Transformers for Spark ML's pipelines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, Literal

from pyspark import keyword_only
from pyspark.ml import Transformer
from pyspark.ml.functions import array_to_vector
from pyspark.ml.param import Param, Params, TypeConverters
from pyspark.ml.param.shared import HasInputCol, HasOutputCol
from pyspark.ml.util import DefaultParamsReadable, DefaultParamsWritable
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as f

from embedstream.api.columns import vectorizer
from embedstream.api.input_columns import KINDS, InputKind, find_columns
from embedstream.api.labels import image_labeler
from embedstream.config.sections import DataFrameConfig, EncoderConfig, Section
from embedstream.spark.connect import get_session_key
from embedstream_core.errors import SetupError

__all__ = ["AudioFeaturizer", "ImageFeaturizer", "ImagePredictor", "TextFeaturizer"]

OutputType = Literal["vector", "array"]


class _EncoderTransformer(
    Transformer, HasInputCol, HasOutputCol, DefaultParamsReadable[Any], DefaultParamsWritable
):
    """An encoder as a stage, prepared at the first use; copies keep it."""

    encoder: ClassVar[Param[Any]] = Param(
        Params._dummy(),
        "encoder",
        "an encoder's name, or the settings of the configuration's section `encoder`",
        lambda value: _dump_settings(
            EncoderConfig, {"name": value} if isinstance(value, str) else value
        ),
    )
    config: ClassVar[Param[Any]] = Param(
        Params._dummy(),
        "config",
        "bounds: settings of the configuration's sections references, decode and pipeline",
        lambda value: _dump_settings(DataFrameConfig, value),
    )

    _input_kwargs: dict[str, Any]
    _make_function: ClassVar[Callable[..., Callable[..., Column]]]
    _kind: ClassVar[InputKind] = KINDS["image"]

    def __init__(self) -> None:
        super().__init__()
        self._setDefault(inputCol="content", encoder={"name": "resnet50"}, config={})
        self._prepared: tuple[object, Callable[..., Column]] | None = None

    def _prepare(self, df: DataFrame) -> tuple[Callable[..., Column], Column]:
        """Return the function of columns and its input, with the output column's name checked."""
        inputs = self._kind.find_column(df, self.getInputCol())
        if taken := find_columns(df, self.getOutputCol()):
            raise SetupError(f"there is a column '{taken[0].name}' already; rename or drop it")
        encoder = EncoderConfig.model_validate(self.getOrDefault(self.encoder))
        config = DataFrameConfig.model_validate(self.getOrDefault(self.config))
        key = get_session_key(df.sparkSession), encoder, config
        if self._prepared is None or self._prepared[0] != key:
            self._prepared = (
                key,
                self._make_function(df.sparkSession, encoder=encoder, config=config),
            )
        return self._prepared[1], inputs


class _Featurizer(_EncoderTransformer):
    """The base of those that embed a column of one modality; see `ImageFeaturizer`."""

    outputType: ClassVar[Param[str]] = Param(  # noqa: N815 - Spark ML's convention
        Params._dummy(), "outputType", "vector or array", TypeConverters.toString
    )
    errorCol: ClassVar[Param[str]] = Param(  # noqa: N815
        Params._dummy(), "errorCol", "a column for errors", TypeConverters.toString
    )

    def _set_given(self, **defaults: str) -> None:
        self._setDefault(outputCol="features", outputType="vector", **defaults)
        self._set(**self._input_kwargs)

    def _transform(self, dataset: DataFrame) -> DataFrame:
        kind = self.getOrDefault(self.outputType)
        if kind not in ("vector", "array"):
            raise SetupError(f"outputType is '{kind}'; it is vector or array")
        vectorize, inputs = self._prepare(dataset)
        outcome = "_embedstream_outcome"
        embedding = f.col(f"{outcome}.embedding")
        if kind == "vector":
            embedding = f.when(embedding.isNotNull(), array_to_vector(embedding))
        columns = {self.getOutputCol(): embedding}
        if self.isDefined(self.errorCol):
            columns[self.getOrDefault(self.errorCol)] = f.col(f"{outcome}.error")
        return dataset.withColumn(outcome, vectorize(inputs)).withColumns(columns).drop(outcome)


class ImageFeaturizer(_Featurizer):
    """Embeds a column of image bytes, of URIs or of Spark's `image` structs.

    `outputType` is `vector` for Spark ML's own stages, or `array` for `array<float>`. An image that
    cannot be embedded gives null, and its error, `struct<code, stage, message>`, goes to the column
    `errorCol` if that is set.
    """

    _make_function = staticmethod(partial(vectorizer, modality="image", returns="outcome"))

    @keyword_only
    def __init__(
        self,
        *,
        inputCol: str = "content",  # noqa: N803
        outputCol: str = "features",  # noqa: N803
        encoder: str | EncoderConfig | Mapping[str, Any] = "resnet50",
        outputType: OutputType = "vector",  # noqa: N803
        errorCol: str | None = None,  # noqa: N803
        config: DataFrameConfig | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self._set_given()


class TextFeaturizer(_Featurizer):
    """Embeds a column of texts, strings or bytes in UTF-8; all else is as in `ImageFeaturizer`."""

    _make_function = staticmethod(partial(vectorizer, modality="text", returns="outcome"))
    _kind = KINDS["text"]

    @keyword_only
    def __init__(
        self,
        *,
        inputCol: str = "text",  # noqa: N803
        outputCol: str = "features",  # noqa: N803
        encoder: str | EncoderConfig | Mapping[str, Any] = "minilm",
        outputType: OutputType = "vector",  # noqa: N803
        errorCol: str | None = None,  # noqa: N803
        config: DataFrameConfig | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self._setDefault(encoder={"name": "minilm"})
        self._set_given(inputCol="text")


class AudioFeaturizer(_Featurizer):
    """Embeds a column of audio files' bytes or URIs; all else is as in `ImageFeaturizer`."""

    _make_function = staticmethod(partial(vectorizer, modality="audio", returns="outcome"))
    _kind = KINDS["audio"]

    @keyword_only
    def __init__(
        self,
        *,
        inputCol: str = "content",  # noqa: N803
        outputCol: str = "features",  # noqa: N803
        encoder: str | EncoderConfig | Mapping[str, Any] = "speech-embedding",
        outputType: OutputType = "vector",  # noqa: N803
        errorCol: str | None = None,  # noqa: N803
        config: DataFrameConfig | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self._setDefault(encoder={"name": "speech-embedding"})
        self._set_given()


class ImagePredictor(_EncoderTransformer):
    """Classifies images: the `topK` likeliest classes of the encoder's own head.

    The output column is `array<struct<label: string, probability: float>>`, the likeliest first;
    null for an image that cannot be decoded.
    """

    _make_function = staticmethod(image_labeler)

    topK: ClassVar[Param[int]] = Param(  # noqa: N815
        Params._dummy(), "topK", "how many classes", TypeConverters.toInt
    )

    @keyword_only
    def __init__(
        self,
        *,
        inputCol: str = "content",  # noqa: N803
        outputCol: str = "labels",  # noqa: N803
        encoder: str | EncoderConfig | Mapping[str, Any] = "resnet50",
        topK: int = 5,  # noqa: N803
        config: DataFrameConfig | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self._setDefault(outputCol="labels", topK=5)
        self._set(**self._input_kwargs)

    def _transform(self, dataset: DataFrame) -> DataFrame:
        label, image = self._prepare(dataset)
        return dataset.withColumn(self.getOutputCol(), label(image, self.getOrDefault(self.topK)))


def _dump_settings(section: type[Section], value: Any) -> dict[str, Any]:
    """Return settings as in a configuration, which is how a pipeline is saved."""
    given = value if isinstance(value, section) else section.model_validate(value)
    settings: dict[str, Any] = given.model_dump(mode="json", exclude_unset=True)
    return settings
