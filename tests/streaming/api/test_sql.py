"""The functions for SQL."""

from __future__ import annotations

import pytest
from pyspark.errors import AnalysisException
from pyspark.sql import SparkSession

import small_models
from doors import ENCODER, write_pictures
from embedstream import read_images, register_functions

pytestmark = pytest.mark.spark


@pytest.fixture(scope="module")
def registered(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> SparkSession:
    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder)
    read_images(spark, str(folder)).createOrReplaceTempView("images")
    register_functions(spark, encoder=ENCODER)
    return spark


def test_embeddings_and_labels(registered: SparkSession) -> None:
    rows = registered.sql(
        "SELECT path, image_embedding(content) AS embedding, image_labels(content, 3) AS labels "
        "FROM images"
    ).collect()

    assert len(rows) == 7
    for row in rows:
        if row.path.endswith("broken.jpg"):
            assert (row.embedding, row.labels) == (None, None)
        else:
            assert len(row.embedding) == 1280
            assert len(row.labels) == 3
            assert row.labels[0].probability >= row.labels[1].probability


def test_in_a_view_and_over_nothing(registered: SparkSession) -> None:
    registered.sql(
        "CREATE OR REPLACE TEMPORARY VIEW embedded AS "
        "SELECT path, image_embedding(content) AS embedding FROM images"
    )

    counted = registered.sql(
        "SELECT count(*) AS images, count(embedding) AS embeddings FROM embedded"
    ).first()
    nothing = registered.sql("SELECT image_embedding(CAST(NULL AS BINARY)) AS embedding").first()

    assert counted is not None
    assert (counted.images, counted.embeddings) == (7, 6)
    assert nothing is not None
    assert nothing.embedding is None


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (
            "SELECT image_embedding(width) FROM images",
            r"image_embedding.* images.width has the type int",
        ),
        ("CREATE TEMPORARY VIEW wrong AS SELECT image_embedding(1)", "1 has the type int"),
        ("SELECT image_labels(array(path), 3) FROM images", "has the type array<string>"),
    ],
)
def test_a_column_without_images_fails_in_the_analyzer(
    registered: SparkSession, query: str, message: str
) -> None:
    with pytest.raises(AnalysisException, match=message) as error:
        registered.sql(query)

    assert "requires the bytes (binary), URIs (string), or Spark's image struct" in str(error.value)


@pytest.mark.parametrize(
    ("call", "takes"),
    [
        ("image_embedding()", "requires 1 parameters but the actual number is 0"),
        ("image_embedding(content, 3)", "requires 1 parameters but the actual number is 2"),
        ("image_labels(content)", "requires 2 parameters but the actual number is 1"),
    ],
)
def test_a_wrong_number_of_columns_fails_in_the_analyzer(
    registered: SparkSession, call: str, takes: str
) -> None:
    with pytest.raises(AnalysisException, match=f"{call.partition('(')[0]}.*{takes}"):
        registered.sql(f"SELECT {call} FROM images")


def test_an_encoder_without_classes_gives_embeddings_only(spark: SparkSession) -> None:
    spark.sql("DROP TEMPORARY FUNCTION IF EXISTS image_labels")
    spark.sparkContext.addPyFile(small_models.__file__)

    register_functions(spark, encoder="small_models:network_and_preprocessing")

    registered = {function.name for function in spark.catalog.listFunctions(pattern="image_*")}
    assert registered == {"image_embedding"}
