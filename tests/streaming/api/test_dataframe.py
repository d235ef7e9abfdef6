"""`featurize` and the column functions: images in a DataFrame get embeddings or errors."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pyspark import cloudpickle
from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as f

from doors import ENCODER, core_vectors, folder
from drivers import python_workers
from embedstream import (
    DataFrameConfig,
    EncoderConfig,
    ImageLabeler,
    Vectorizer,
    featurize,
    image_labeler,
    read_images,
    vectorizer,
)
from embedstream.config.sections import ReferencesConfig
from embedstream_core.errors import Code, SetupError

__all__ = ["folder"]

pytestmark = pytest.mark.spark

Rows = dict[str, tuple[list[float] | None, str | None]]


@pytest.fixture(scope="module")
def expected(folder: Path) -> Rows:
    """The results of the core for these files, without Spark."""
    good = [path for path in sorted(folder.iterdir()) if path.name != "broken.jpg"]
    contents = [path.read_bytes() for path in good]
    vectors = core_vectors(contents)
    rows: Rows = {
        path.name: (list(vector), None) for path, vector in zip(good, vectors, strict=True)
    }
    return rows | {"broken.jpg": (None, Code.IMAGE_UNSUPPORTED)}


def outcomes(df: DataFrame, name: str = "path") -> Rows:
    rows = df.select(name, "embedding", "error.code").collect()
    return {path.rpartition("/")[2]: (embedding, code) for path, embedding, code in rows}


def assert_same(found: Rows, expected: Rows) -> None:
    assert found.keys() == expected.keys()
    for name, (embedding, code) in expected.items():
        assert found[name][1] == code
        if embedding is not None:
            ours = np.array(found[name][0])
            np.testing.assert_allclose(ours, np.array(embedding), rtol=1e-3, atol=1e-4)


def test_bytes(spark: SparkSession, folder: Path, expected: Rows) -> None:
    images = read_images(spark, str(folder))

    featurized = featurize(images, encoder=ENCODER)

    others = ["path", "content", "width", "height", "format"]
    assert featurized.columns == [*others, "embedding", "error"]
    assert_same(outcomes(featurized), expected)


def test_uris(spark: SparkSession, folder: Path, expected: Rows) -> None:
    uris = spark.createDataFrame([(path.as_uri(),) for path in folder.iterdir()], "uri string")
    config = DataFrameConfig(references=ReferencesConfig(folders=(str(folder),)))

    allowed = featurize(uris, encoder=ENCODER, input="uri", config=config)
    denied = featurize(uris, encoder=ENCODER, input="uri")

    assert_same(outcomes(allowed, "uri"), expected)
    assert {code for _, code in outcomes(denied, "uri").values()} == {Code.REFERENCE_DENIED}


def test_image_structs(spark: SparkSession, folder: Path, expected: Rows) -> None:
    """Spark's own reader keeps files that it cannot decode; its pixels equal Pillow's."""
    images = spark.read.format("image").load(str(folder))

    found = outcomes(featurize(images, encoder=ENCODER, input="image"), "image.origin")

    assert found["broken.jpg"] == (None, Code.IMAGE_CORRUPT)
    for name in found.keys() - {"broken.jpg"}:
        ours, theirs = (np.array(rows[name][0]) for rows in (expected, found))
        assert ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs) > 0.98, name


def test_other_columns_stay_as_they_are(spark: SparkSession, folder: Path) -> None:
    content = (folder / "astronaut.jpg").read_bytes()
    kinds = "`a.b` string, many array<int>, pairs map<string,bigint>, at timestamp_ntz, none int"
    moment = datetime(2026, 11, 21, 12, 0, 0, 1)
    row = ("x", [1, None], {"y": 2**60}, moment, None, content)
    images = spark.createDataFrame([row], f"{kinds}, content binary")

    found = featurize(images, encoder=ENCODER).drop("embedding", "error")

    assert found.schema == images.schema
    assert found.collect() == images.collect()


def test_names_are_resolved_as_spark_does(
    spark: SparkSession, folder: Path, expected: Rows
) -> None:
    images = read_images(spark, str(folder)).selectExpr(
        "path",
        "content AS Content",
        "struct(content AS bytes, path) AS image",
        "content AS `dotted.name`",
        "1 AS id",
        "2 AS id",
    )

    for name in ("content", "image.bytes", "IMAGE.Bytes", "dotted.name", "`dotted.name`"):
        featurized = featurize(images, encoder=ENCODER, input=name)
        assert featurized.columns == [*images.columns, "embedding", "error"]
        assert_same(outcomes(featurized), expected)


def test_a_dotted_name_comes_before_a_field(spark: SparkSession, folder: Path) -> None:
    content = (folder / "astronaut.jpg").read_bytes()
    kinds = "image struct<bytes: binary>, `image.bytes` binary"
    images = spark.createDataFrame([((b"no picture",), content)], kinds)

    (row,) = featurize(images, encoder=ENCODER, input="image.bytes").collect()
    (field,) = featurize(images, encoder=ENCODER, input="image.`bytes`").collect()

    assert row.error is None
    assert field.error.code == Code.IMAGE_UNSUPPORTED


def test_a_streaming_dataframe(
    spark: SparkSession, folder: Path, tmp_path: Path, expected: Rows
) -> None:
    stream = (
        spark.readStream.format("binaryFile")
        .schema("path string, modificationTime timestamp, length long, content binary")
        .load(str(folder))
    )
    name = f"featurized_{uuid.uuid4().hex}"
    query = (
        featurize(stream, encoder=ENCODER)
        .writeStream.format("memory")
        .queryName(name)
        .option("checkpointLocation", str(tmp_path))
        .trigger(availableNow=True)
        .start()
    )
    query.awaitTermination()

    assert_same(outcomes(spark.table(name)), expected)


def test_the_column_function(spark: SparkSession, folder: Path, expected: Rows) -> None:
    vectorize = vectorizer(spark, encoder=ENCODER)
    images = read_images(spark, str(folder)).select("path", "content", "error")
    nothing = spark.createDataFrame([("null.jpg", None)], "path string, content binary")
    all_images = images.unionByName(nothing, allowMissingColumns=True)

    found = outcomes(all_images.withColumn("embedding", vectorize("content")))

    assert vectorize.dimension == 1280
    assert found.pop("null.jpg") == (None, None)
    assert_same(found, expected)


def test_a_null_image_has_an_error(spark: SparkSession) -> None:
    nothing = spark.createDataFrame([("null.jpg", None)], "path string, content binary")

    found = outcomes(featurize(nothing, encoder=ENCODER))

    assert found == {"null.jpg": (None, Code.IMAGE_EMPTY)}


def test_a_function_on_the_workers_may_refer_to_the_vectorizer(
    spark: SparkSession, folder: Path
) -> None:
    """Spark would refuse to send a function that refers to a SparkContext."""
    vectorize = vectorizer(spark, encoder=ENCODER)

    def dimensions(frames: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        return (pd.DataFrame({"floats": [vectorize.dimension]}) for _ in frames)

    found = spark.range(1).mapInPandas(dimensions, "floats int")

    assert [row.floats for row in found.collect()] == [1280]
    assert b"SparkContext" not in cloudpickle.dumps(vectorize)  # type: ignore[no-untyped-call]


def test_the_model_is_loaded_once_per_worker_for_all_queries(
    spark: SparkSession, folder: Path
) -> None:
    images = read_images(spark, str(folder)).repartition(2)
    vectorizers = [vectorizer(spark, encoder=ENCODER) for _ in range(3)]

    for vectorize in vectorizers:
        for _ in range(2):
            images.select(vectorize("content").alias("embedding")).agg(
                f.count("embedding")
            ).collect()

    # Workers that other tests left behind may have it already.
    loads = sum(vectorize.embedder.model.loads for vectorize in vectorizers)
    assert loads <= len(python_workers())
    assert len({id(vectorize.embedder.model.tensors) for vectorize in vectorizers}) == 1


def test_a_filter_over_the_embedding_embeds_once(spark: SparkSession, folder: Path) -> None:
    images = read_images(spark, str(folder))
    featurized = featurize(images, encoder=ENCODER)

    plan = _plan(featurized.where("error is null and size(embedding) > 5").select("embedding"))

    assert plan.count("ArrowEvalPython [_embed") == 1


def _plan(df: DataFrame) -> str:
    # Spark has no public way to a plan's text.
    return str(df._jdf.queryExecution().executedPlan().toString())


@pytest.mark.parametrize(
    ("columns", "settings", "message"),
    [
        (["path"], {}, r"there is no column 'content'; there are: path"),
        (["width AS content"], {}, r"column 'content' is of type int; images are bytes"),
        (["null AS content"], {}, r"column 'content' is of type void; images are bytes"),
        (["content", "1 AS Error"], {}, r"a column 'Error' of another type, int: .*'my_Error'\)"),
        (["content", "'x' AS EMBEDDING"], {}, r"adds the column 'embedding', .*'EMBEDDING' of ano"),
        (["content", "path AS Content"], {}, r"there are several columns 'content' .*; rename"),
        (
            ["struct(content) AS image", "struct(path) AS image"],
            {"input": "image.content"},
            r"there are several columns 'image.content' ",
        ),
        (["struct(path) AS image"], {"input": "image.none"}, r"no column 'image.none'; there are"),
        (["content"], {"input": "a`b"}, r"there is no column 'a`b'; there are: content"),
        (["struct(content, path) AS content"], {}, r"struct<.*; for its field give 'content.conte"),
        (["struct(path) AS content"], {}, r"struct<path:string>; images are .* struct$"),
        (["content"], {"encoder": "resnet5"}, r"unknown encoder 'resnet5'.*resnet50"),
        (
            ["content"],
            {"encoder": EncoderConfig(name="resnet18", weights="nowhere/none.safetensors")},
            r"the weights file 'nowhere/none.safetensors' cannot be read",
        ),
    ],
)
def test_wrong_settings_fail_before_a_job_runs(
    spark: SparkSession, folder: Path, columns: list[str], settings: dict[str, str], message: str
) -> None:
    images = read_images(spark, str(folder)).selectExpr(*columns)

    with pytest.raises(SetupError, match=message):
        featurize(images, **{"encoder": ENCODER, **settings})  # type: ignore[arg-type]


@pytest.mark.parametrize("door", [vectorizer, image_labeler])
@pytest.mark.parametrize("kind", ["int", "array<binary>", "struct<content:binary>"])
def test_a_column_function_over_no_images_fails_in_the_analyzer(
    spark: SparkSession, door: Callable[..., Vectorizer | ImageLabeler], kind: str
) -> None:
    numbers = spark.createDataFrame([], f"`odd.name` {kind}")
    columns = door(spark, encoder=ENCODER)

    with pytest.raises(AnalysisException, match=rf"images are bytes.*column of type {kind}"):
        numbers.select(columns("`odd.name`"))


def test_a_column_function_accepts_every_type_of_images(spark: SparkSession, folder: Path) -> None:
    vectorize = vectorizer(spark, encoder=ENCODER)
    images = spark.read.format("image").load(str(folder)).where("image.height > 0")

    longs = f.col("image").cast(
        "struct<origin:string,height:long,width:long,nChannels:long,mode:long,data:binary>"
    )

    rows = images.select(
        vectorize("image").alias("of_struct"),
        vectorize(longs).alias("of_longs"),
        vectorize(f.lit(None)).alias("no"),
    )

    found = [(len(row.of_struct), row.of_longs == row.of_struct, row.no) for row in rows.collect()]
    assert found == [(1280, True, None)] * 6
    assert "named_struct" not in _plan(rows)
