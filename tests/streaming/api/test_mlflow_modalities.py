"""Encoders of texts, of audio, and of images and texts in MLflow, on a real store in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from pyspark.sql import SparkSession

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
from doors import core_vectors, mlflow_store
from embedstream import EncoderConfig, TextFeaturizer, featurize, log_encoder
from embedstream.search.queries import embed_queries
from embedstream.worker.model import prepare
from embedstream_core.errors import Code, SetupError

__all__ = ["mlflow_store"]

pytestmark = [
    pytest.mark.usefixtures("mlflow_store"),
    # MLflow and its dependencies warn of each other.
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(scope="module")
def texts(mlflow_store: None) -> Any:
    return log_encoder(MINILM, registered_model_name="texts")


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    """The core's vectors of the texts."""
    vectors = core_vectors([text.encode() for text in TEXTS.values()], MINILM)
    return dict(zip(TEXTS.values(), vectors, strict=True))


def list_columns(info: Any) -> list[tuple[str, str, bool]]:
    return [(one["type"], one["name"], one["required"]) for one in info.signature.inputs.to_dict()]


def list_requirements(info: Any) -> set[str]:
    path = Path(info.artifact_path.removeprefix("file://"), "requirements.txt")
    return {line.partition("==")[0] for line in path.read_text().splitlines()}


def test_a_model_of_texts_predicts(texts: Any, expected: dict[str, Any]) -> None:
    model = mlflow.pyfunc.load_model("models:/texts/1")

    found = model.predict(pd.DataFrame({"text": [*expected, " ", "\ud800"]}))

    assert list_columns(texts) == [("string", "text", True)]
    assert texts.metadata["encoder"].startswith("minilm/default/")
    assert {"embedstream[text]", "tokenizers", "transformers"} <= list_requirements(texts)
    for (text, vector), row in zip(expected.items(), found.itertuples(), strict=False):
        np.testing.assert_allclose(row.embedding, vector, rtol=1e-4, atol=1e-5, err_msg=text)
        assert row.error == ""
    assert list(found["embedding"][-2:]) == [None, None]
    blank, broken = found["error"][-2:]
    assert blank.startswith(Code.TEXT_EMPTY)
    assert broken.startswith(Code.TEXT_MALFORMED)


def test_a_model_of_audio_predicts(mlflow_store: None) -> None:
    info = log_encoder(SPEECH)
    model = mlflow.pyfunc.load_model(info.model_uri)

    found = model.predict(pd.DataFrame({"content": [*CLIPS.values(), b"no clip"]}))

    assert list_columns(info) == [("binary", "content", True)]
    assert {"embedstream[audio]", "soundfile", "soxr", "onnxruntime"} <= list_requirements(info)
    expected = core_vectors([*CLIPS.values()], SPEECH)
    np.testing.assert_allclose([*found["embedding"][:-1]], expected, rtol=1e-4, atol=1e-5)
    assert found["error"].iloc[-1].startswith(Code.AUDIO_UNSUPPORTED)


def test_a_model_of_both_takes_a_column_of_each(
    mlflow_store: None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = save_colour_model(tmp_path_factory.mktemp("models") / "colours")
    info = log_encoder(image_text_encoder(folder))
    model = mlflow.pyfunc.load_model(info.model_uri)
    rows = [
        *({"content": colour_picture(name), "text": None} for name in COLOURS),
        *({"content": None, "text": name} for name in COLOURS),
        {"content": CLIPS["short.wav"], "text": None},
        {"content": None, "text": None},
    ]

    found = model.predict(pd.DataFrame(rows))
    words = model.predict(pd.DataFrame({"text": [*COLOURS]}))

    assert list_columns(info) == [("binary", "content", False), ("string", "text", False)]
    expected = np.eye(len(COLOURS), 12)
    np.testing.assert_allclose([*found["embedding"][:6]], [*expected, *expected], atol=1e-4)
    np.testing.assert_allclose([*words["embedding"]], expected, atol=1e-4)
    sound, nothing = found["error"][-2:]
    assert sound.startswith(f"{Code.MEDIA_UNSUPPORTED}: the message holds audio/wav")
    assert nothing.startswith(Code.MEDIA_EMPTY)


def test_a_registered_model_of_texts_is_searched_again(
    texts: Any, expected: dict[str, Any]
) -> None:
    model_id = prepare(registered()).card.model_id
    text, vector = next(iter(expected.items()))

    assert model_id.startswith("mlflow/texts/1/")
    for query in (text, text.encode()):
        named, (found,) = embed_queries([query], model_ids=[model_id])
        assert named == model_id
        np.testing.assert_allclose(found, vector, rtol=1e-4, atol=1e-5)


def registered() -> EncoderConfig:
    return EncoderConfig(name="mlflow", weights="models:/texts/1", precision="float32")


@pytest.mark.long
@pytest.mark.spark
def test_doors_take_a_registered_model_of_texts(
    spark: SparkSession, texts: Any, expected: dict[str, Any]
) -> None:
    frame = spark.createDataFrame([(text,) for text in expected], "text string")
    embed = mlflow.pyfunc.spark_udf(spark, "models:/texts/1", env_manager="local")
    featurizer = TextFeaturizer(encoder=registered(), outputType="array", outputCol="spark_ml")

    featurized = featurize(frame, input="text", encoder=registered())
    rows = featurizer.transform(featurized).withColumn("udf", embed("text")).collect()

    assert len(rows) == len(expected)
    for row in rows:
        for found in (row.embedding, row.spark_ml, row.udf.embedding):
            np.testing.assert_allclose(found, expected[row.text], rtol=1e-3, atol=1e-4)


@pytest.mark.long
@pytest.mark.spark
def test_a_registered_model_of_texts_embeds_no_images(spark: SparkSession, texts: Any) -> None:
    frame = spark.createDataFrame([(b"",)], "content binary")

    with pytest.raises(SetupError, match="the encoder 'minilm' embeds text, not image"):
        featurize(frame, encoder=registered(), modality="image")
