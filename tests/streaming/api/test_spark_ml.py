"""The transformers in Spark ML's pipelines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.evaluation import MulticlassClassificationEvaluator
from pyspark.ml.tuning import CrossValidator, ParamGridBuilder
from pyspark.sql import DataFrame, SparkSession
from sklearn.linear_model import LogisticRegression as SklearnRegression

from doors import ENCODER, SMALL, digits, write_pictures
from embedstream import ImageFeaturizer, ImagePredictor, read_images
from embedstream_core.errors import Code, SetupError
from pictures import real_pictures

pytestmark = pytest.mark.spark

TRAINED, HELD_OUT = 600, 300


@pytest.fixture(scope="module")
def featurized(spark: SparkSession) -> DataFrame:
    """Digits with their features; the first are for training."""
    contents, labels = digits(TRAINED + HELD_OUT)
    rows = [(index, *row) for index, row in enumerate(zip(contents, labels, strict=True))]
    images = spark.createDataFrame(rows, "id int, content binary, label int").repartition(2)
    return ImageFeaturizer(encoder=SMALL).transform(images).drop("content").cache()


@pytest.mark.long
def test_transfer_learning_is_as_good_as_in_scikit_learn(featurized: DataFrame) -> None:
    train, test = (featurized.where(rule) for rule in (f"id < {TRAINED}", f"id >= {TRAINED}"))

    model = LogisticRegression(maxIter=50, regParam=0.1).fit(train)

    accuracy = MulticlassClassificationEvaluator(metricName="accuracy").evaluate(
        model.transform(test)
    )
    rows = sorted(featurized.collect(), key=lambda row: row.id)
    features = np.array([row.features.toArray() for row in rows])
    labels = np.array([row.label for row in rows])
    peer = SklearnRegression(max_iter=1000).fit(features[:TRAINED], labels[:TRAINED])
    assert accuracy >= peer.score(features[TRAINED:], labels[TRAINED:]) - 0.01
    assert accuracy > 0.9


def test_a_pipeline_is_fitted_saved_loaded_and_copied(spark: SparkSession, tmp_path: Path) -> None:
    contents, labels = digits(40)
    images = spark.createDataFrame(
        list(zip(contents, labels, strict=True)), "picture binary, label int"
    )
    featurizer = ImageFeaturizer(inputCol="picture", outputCol="vector", encoder=SMALL)
    regression = LogisticRegression(featuresCol="vector", maxIter=5)
    fitted = Pipeline(stages=[featurizer, regression]).fit(images)

    fitted.write().overwrite().save(str(tmp_path / "model"))
    loaded = PipelineModel.load(str(tmp_path / "model"))
    copied = fitted.copy()

    expected = [row.prediction for row in fitted.transform(images).collect()]
    for other in (loaded, copied):
        assert [row.prediction for row in other.transform(images).collect()] == expected


@pytest.mark.long
# PySpark leaves its pool of threads open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_cross_validation(spark: SparkSession) -> None:
    contents, labels = digits(60)
    images = spark.createDataFrame(
        [(content, label % 2) for content, label in zip(contents, labels, strict=True)],
        "content binary, label int",
    )
    regression = LogisticRegression(maxIter=5)
    validator = CrossValidator(
        estimator=Pipeline(stages=[ImageFeaturizer(encoder=SMALL), regression]),
        estimatorParamMaps=ParamGridBuilder().addGrid(regression.regParam, [0.01, 0.1]).build(),
        evaluator=MulticlassClassificationEvaluator(metricName="accuracy"),
        numFolds=2,
        seed=1,
    )

    assert max(validator.fit(images).avgMetrics) > 0.7


def test_arrays_and_errors(spark: SparkSession, tmp_path: Path) -> None:
    write_pictures(tmp_path)
    featurizer = ImageFeaturizer(
        outputCol="numbers", outputType="array", errorCol="why", encoder=ENCODER
    )

    rows = featurizer.transform(read_images(spark, str(tmp_path))).collect()

    for row in rows:
        broken = row.path.endswith("broken.jpg")
        assert (row.numbers is None) == broken
        assert (row.why.code if row.why else None) == (Code.IMAGE_UNSUPPORTED if broken else None)
        assert broken or len(row.numbers) == 1280


def test_the_vector_of_an_image_that_cannot_be_embedded_is_null(spark: SparkSession) -> None:
    images = spark.createDataFrame([(b"no picture",)], "content binary")

    assert ImageFeaturizer(encoder=ENCODER).transform(images).first().features is None  # type: ignore[union-attr]


def test_the_predictor_names_the_likeliest_classes(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(real_pictures()["chelsea.png"])
    (tmp_path / "broken.png").write_bytes(b"no picture")
    predictor = ImagePredictor(encoder=ENCODER, topK=3)
    predictor.write().save(str(tmp_path / "predictor"))
    loaded = ImagePredictor.load(str(tmp_path / "predictor"))

    rows = loaded.transform(read_images(spark, f"{tmp_path}/*.png")).collect()

    found = {row.path.rpartition("/")[2]: row.labels for row in rows}
    assert found["broken.png"] is None
    assert len(found["cat.png"]) == 3
    assert found["cat.png"][0].label in ("tabby", "tiger cat", "Egyptian cat")
    probabilities = [one.probability for one in found["cat.png"]]
    assert 1 > probabilities[0] > probabilities[1] > probabilities[2] > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"inputCol": "id"}, "column 'id' is of type int; images are bytes"),
        ({"inputCol": "none"}, "there is no column 'none'"),
        ({"outputCol": "id"}, "there is a column 'id' already"),
        ({"outputType": "tensor"}, "outputType is 'tensor'; it is vector or array"),
        ({"encoder": "resnet5"}, "unknown encoder 'resnet5'"),
    ],
)
def test_wrong_settings_fail_before_a_job_runs(
    spark: SparkSession, settings: dict[str, str], message: str
) -> None:
    images = spark.createDataFrame([(1, b"")], "id int, content binary")

    with pytest.raises(SetupError, match=message):
        ImageFeaturizer(**{"encoder": ENCODER, **settings}).transform(images)  # type: ignore[arg-type]
