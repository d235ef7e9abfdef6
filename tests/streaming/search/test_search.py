"""Searching a table without Spark: exact order, the right model's rows, and their images."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import safetensors.torch
import torch
from deltalake import write_deltalake
from PIL import Image
from pyspark.sql import SparkSession

from embedstream.cli.app import main
from embedstream.config.sections import TableConfig
from embedstream.follow.table_reader import list_models, open_table
from embedstream.search.answer import Neighbour, list_neighbours
from embedstream.search.queries import Vector, embed_queries
from embedstream.search.scan import scan_table
from embedstream.table.address import quote_table
from embedstream.table.delta import create_table
from embedstream.worker.messages import OUTCOME_SCHEMA
from embedstream_core.errors import SetupError
from embedstream_core.models.encoders.catalog import find_encoder
from embedstream_core.models.prepare import ModelSpec, prepare_model
from outcome_tables import MODEL, SCHEMA, row, write_table
from pictures import real_pictures

OTHER_MODEL = "resnet50/IMAGENET1K_V1/0676ba61b6b6"

CAT, COFFEE, ROCKET = "chelsea.png", "coffee.png", "rocket.jpg"


def vector(*values: float) -> Vector:
    return np.array(values, np.float32)


def find_nearest(table: str, query: Vector, *, model_id: str, k: int) -> list[Neighbour]:
    return list_neighbours(scan_table(open_table(table), query, model_id=model_id, k=k))


def found(table: str, query: Vector, k: int = 10) -> list[str]:
    return [one.image_id for one in find_nearest(table, query, model_id=MODEL, k=k)]


@pytest.fixture(scope="module")
def random_model() -> str:
    """The id of a small network without training, which needs no download."""
    return prepare_model(ModelSpec("resnet18", "random")).card.model_id


@pytest.fixture(scope="module")
def random_vectors(random_model: str) -> list[Vector]:
    """Return that network's vectors of the three images."""
    contents = [real_pictures()[name] for name in (CAT, COFFEE, ROCKET)]
    _, vectors = embed_queries(contents, model_ids=[random_model])
    return vectors


def test_a_time_that_python_does_not_have_is_left_out(tmp_path: Path) -> None:
    """A producer may give a message any time."""
    rows = pa.Table.from_pylist([row("late", [1, 0])], schema=SCHEMA)
    times = pa.array([9 * 10**17]).cast(pa.timestamp("us", "UTC"))
    column = rows.schema.get_field_index("timestamp")
    table = write_table(tmp_path, [])
    write_deltalake(table, rows.set_column(column, "timestamp", times), mode="append")
    answer = scan_table(open_table(table), vector(1, 0), model_id=MODEL, k=1)
    assert answer.select(["image_id", "timestamp"]).to_pylist() == [
        {"image_id": "late", "timestamp": None}
    ]


def test_rows_come_in_the_order_of_their_cosine(tmp_path: Path) -> None:
    rows = [
        row("opposite", [-2, 0]),
        row("same-but-longer", [50, 0]),
        row("right-angle", [0, 1]),
        row("near", [4, 3]),
    ]
    table = write_table(tmp_path, rows)

    neighbours = find_nearest(table, vector(3, 0), model_id=MODEL, k=10)

    assert [one.image_id for one in neighbours] == [
        "same-but-longer",
        "near",
        "right-angle",
        "opposite",
    ]
    similarities = [one.similarity for one in neighbours]
    np.testing.assert_allclose(similarities, [1, 0.8, 0, -1], atol=1e-6)


def test_a_neighbour_says_where_its_row_came_from(tmp_path: Path) -> None:
    table = write_table(tmp_path, [row("cat", [1, 0], uri="file:///cat.png", offset=7)])
    assert find_nearest(table, vector(1, 0), model_id=MODEL, k=1) == [
        Neighbour(1.0, "cat", "file:///cat.png", topic="images", partition=0, offset=7)
    ]


def test_a_neighbour_says_what_its_row_holds(tmp_path: Path) -> None:
    media = {"type": "audio/wav", "duration_s": 1.5}
    rows = [row("bell", [1, 0]) | {"media": media}, row("unknown", [1, 1])]
    bell, unknown = find_nearest(write_table(tmp_path, rows), vector(1, 0), model_id=MODEL, k=2)
    assert (bell.media_type, bell.duration_s) == ("audio/wav", 1.5)
    assert (unknown.media_type, unknown.duration_s) == (None, None)


def test_a_table_of_an_earlier_version_is_searched(tmp_path: Path) -> None:
    table = str(tmp_path / "table")
    rows = pa.Table.from_pylist([row("cat", [1, 0])], schema=SCHEMA)
    write_deltalake(table, rows.drop_columns(["media"]))
    (neighbour,) = find_nearest(table, vector(1, 0), model_id=MODEL, k=1)
    assert (neighbour.image_id, neighbour.media_type) == ("cat", None)


@pytest.mark.parametrize("k", [1, 7, 100])
def test_the_nearest_of_many_parts_are_exact(tmp_path: Path, k: int) -> None:
    vectors = np.random.default_rng(5).normal(size=(3000, 8)).astype(np.float32)
    rows = [row(str(index), one, offset=index) for index, one in enumerate(vectors.tolist())]
    table = write_table(tmp_path, rows[:1100], rows[1100:1101], rows[1101:])
    query = vectors[1234] + 0.1

    exact = vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
    assert found(table, query, k) == [str(index) for index in np.argsort(-exact)[:k]]


def test_k_may_exceed_the_number_of_rows(tmp_path: Path) -> None:
    table = write_table(tmp_path, [row("a", [1, 0]), row("b", [0, 1])])
    assert found(table, vector(1, 0), k=1000) == ["a", "b"]
    assert found(table, vector(1, 0), k=1) == ["a"]


def test_equal_images_are_all_found(tmp_path: Path) -> None:
    rows = [row("cat", [1, 2], offset=index) for index in range(5)]
    table = write_table(tmp_path, rows[:2], [*rows[2:], row("dog", [2, 1])])
    neighbours = find_nearest(table, vector(1, 2), model_id=MODEL, k=5)
    assert {(one.image_id, one.offset) for one in neighbours} == {("cat", n) for n in range(5)}
    assert len(neighbours) == 5


def test_an_image_sent_as_bytes_and_as_a_reference_is_found_twice(tmp_path: Path) -> None:
    rows = [row("cat", [1, 2]), row("cat", [1, 2], uri="file:///cat.png", offset=1)]
    table = write_table(tmp_path, rows)
    neighbours = find_nearest(table, vector(1, 2), model_id=MODEL, k=2)
    assert {one.uri for one in neighbours} == {None, "file:///cat.png"}


def test_failures_and_other_models_rows_are_left_out(tmp_path: Path) -> None:
    rows = [
        row("failed", None),
        row("other", [1, 0, 0], model_id=OTHER_MODEL),
        row("mine", [0, 1]),
        row("failed-too", None),
        row("mine-too", [1, 1]),
    ]
    table = write_table(tmp_path, rows)
    assert found(table, vector(1, 0)) == ["mine-too", "mine"]
    (other,) = find_nearest(table, vector(1, 0, 0), model_id=OTHER_MODEL, k=5)
    assert other.image_id == "other"


@pytest.mark.parametrize("rows", [[], [row("failed", None)]], ids=["empty", "failures"])
def test_a_table_without_an_embedding_says_so(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    with pytest.raises(SetupError, match=f"no embedding of '{MODEL}'; it holds none at all yet"):
        found(write_table(tmp_path, rows), vector(1, 0))


def test_a_model_without_a_row_says_whose_rows_there_are(tmp_path: Path) -> None:
    table = write_table(tmp_path, [row("other", [1, 0], model_id="it's/another/0")])
    with pytest.raises(SetupError, match=f"'{MODEL}'; it holds those of 'it's/another/0'"):
        found(table, vector(1, 0))
    (other,) = find_nearest(table, vector(1, 0), model_id="it's/another/0", k=1)
    assert other.image_id == "other"


@pytest.mark.parametrize("vectors", [[[1, 2, 3]], [[1, 2], [1, 2, 3]]], ids=["all", "one"])
def test_rows_of_another_dimension_are_refused(tmp_path: Path, vectors: list[list[float]]) -> None:
    table = write_table(tmp_path, [row(str(one), one) for one in vectors])
    with pytest.raises(SetupError, match=rf"has 2 floats, and .* rows of '{MODEL}' with 3: only"):
        found(table, vector(1, 0))


def test_a_vector_of_zeros_is_near_to_nothing_and_far_from_nothing(tmp_path: Path) -> None:
    table = write_table(tmp_path, [row("far", [-1, 0]), row("zeros", [0, 0]), row("near", [1, 1])])
    neighbours = find_nearest(table, vector(1, 0), model_id=MODEL, k=3)
    assert [one.image_id for one in neighbours] == ["near", "zeros", "far"]
    assert neighbours[1].similarity == 0.0


def test_the_tables_model_is_the_newest(tmp_path: Path) -> None:
    table = write_table(tmp_path, [row("old", [1], model_id=OTHER_MODEL)], model_id=MODEL)
    assert list_models(open_table(table)) == [MODEL]


def test_a_table_without_a_model_is_an_error(tmp_path: Path) -> None:
    table = write_table(tmp_path, [row("a", [1])], model_id=None)
    with pytest.raises(SetupError, match="names no model: it was not made by embedstream") as error:
        list_models(open_table(table))
    assert table in str(error.value)


def test_a_missing_table_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for table in (str(tmp_path / "empty"), str(tmp_path / "absent")):
        message = f"there is no Delta table at '{table}'; has the stream run"
        with pytest.raises(SetupError, match=message):
            list_models(open_table(table))
        with pytest.raises(SetupError, match=message):
            find_nearest(table, vector(1), model_id=MODEL, k=1)


def test_looking_for_a_table_creates_none(tmp_path: Path) -> None:
    with pytest.raises(SetupError):
        open_table(str(tmp_path / "absent"))
    assert list(tmp_path.iterdir()) == []


def test_a_broken_table_is_an_error(tmp_path: Path) -> None:
    table = write_table(tmp_path, [row("a", [1])])
    for log in (Path(table) / "_delta_log").glob("*.json"):
        log.write_text("{ not json")
    with pytest.raises(SetupError, match="cannot be read") as error:
        list_models(open_table(table))
    assert table in str(error.value)


def test_a_table_whose_files_are_gone_is_an_error(tmp_path: Path) -> None:
    table = write_table(tmp_path, [row("a", [1])])
    for file in Path(table).glob("*.parquet"):
        file.unlink()
    with pytest.raises(SetupError, match="cannot be read without Spark") as error:
        found(table, vector(1))
    assert "\x1b" not in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("table", ["hdfs:/tables/a", "hdfs://name/a", "dbfs:/tables/a", "foo:///a"])
def test_a_table_out_of_reach_is_an_error(table: str) -> None:
    with pytest.raises(SetupError, match=f"'{table}'"):
        list_models(open_table(table))


# What Spark users switch on, and what they then do with the table.
FEATURES = {
    "deletion vectors": (
        {"delta.enableDeletionVectors": "true"},
        ["DELETE FROM {} WHERE offset = 1"],
    ),
    "column mapping": (
        {"delta.columnMapping.mode": "name"},
        [
            "ALTER TABLE {} RENAME COLUMN image_id TO name",
            "ALTER TABLE {} RENAME COLUMN uri TO image_id",
            "ALTER TABLE {} RENAME COLUMN name TO uri",
            "DELETE FROM {} WHERE offset = 1",
        ],
    ),
    "v2 checkpoints": (
        {"delta.checkpointPolicy": "v2", "delta.checkpointInterval": "1"},
        ["DELETE FROM {} WHERE offset = 1"],
    ),
}


@pytest.mark.spark
@pytest.mark.parametrize(
    "feature",
    [
        pytest.param(name, marks=[pytest.mark.long] * (name != "deletion vectors"))
        for name in FEATURES
    ],
)
def test_tables_of_sparks_newer_features_are_searched(
    spark: SparkSession, tmp_path: Path, feature: str
) -> None:
    properties, statements = FEATURES[feature]
    table = spark_table(spark, tmp_path, properties)
    for statement in statements:
        spark.sql(statement.format(quote_table(table)))

    neighbours = find_nearest(table, vector(1, 0), model_id=MODEL, k=10)

    assert list_models(open_table(table)) == [MODEL]
    names = [one.uri if feature == "column mapping" else one.image_id for one in neighbours]
    assert names == ["same", "opposite"]
    assert [one.offset for one in neighbours] == [0, 2]


@pytest.mark.spark
def test_a_feature_that_only_spark_knows_is_named(spark: SparkSession, tmp_path: Path) -> None:
    table = spark_table(spark, tmp_path, {"delta.enableTypeWidening": "true"})
    with pytest.raises(SetupError, match=r"cannot be read without Spark: .*typeWidening"):
        found(table, vector(1, 0))


def spark_table(spark: SparkSession, folder: Path, properties: dict[str, str]) -> str:
    """Three rows in one file of a table that Spark has made."""
    table = str(folder / "table")
    create_table(spark, TableConfig(path=table, properties=properties), model_ids=[MODEL])
    vectors = {"same": [1.0, 0.0], "right-angle": [0.0, 1.0], "opposite": [-1.0, 0.0]}
    rows = [row(name, one, offset=n) for n, (name, one) in enumerate(vectors.items())]
    whole = [{name: one.get(name) for name in OUTCOME_SCHEMA.names} for one in rows]
    frame = spark.createDataFrame(whole, OUTCOME_SCHEMA).coalesce(1)
    frame.write.format("delta").mode("append").save(table)
    return table


def test_a_file_is_not_a_table(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SetupError, match=str(tmp_path / "file")):
        open_table(str(tmp_path / "file"))


def test_images_are_embedded_in_order(random_model: str, random_vectors: list[Vector]) -> None:
    cat, coffee, rocket = random_vectors
    contents = [real_pictures()[ROCKET], real_pictures()[CAT]]

    model_id, again = embed_queries(contents, model_ids=[random_model])

    assert model_id == random_model

    np.testing.assert_allclose(again, [rocket, cat], rtol=1e-4, atol=1e-5)
    assert not np.allclose(cat, coffee, rtol=1e-3, atol=1e-3)
    assert cat.shape == (512,)
    assert cat.dtype == np.float32


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "has no bytes"),
        (b"\0\1\2\3", "are none of JPEG, PNG"),
        (real_pictures()[ROCKET][:2000], "rocket|cut|truncated|corrupt|decode"),
    ],
    ids=["empty", "unknown", "cut"],
)
def test_a_broken_query_image_is_an_error(random_model: str, content: bytes, reason: str) -> None:
    message = f"(?i)the query cannot be used: .*({reason})"
    with pytest.raises(SetupError, match=message):
        embed_queries([real_pictures()[CAT], content], model_ids=[random_model])


@pytest.mark.parametrize(
    ("model_id", "message"),
    [
        ("resnet18", "'resnet18' is not a model_id; one is <encoder>/<weights>/"),
        ("resnet18/random", "'resnet18/random' is not a model_id"),
        ("resnet5/random-seed-0/abcdef123456", "resnet5"),
        ("resnet18/random-seed-1/abcdef123456", "random-seed-1"),
    ],
)
def test_an_unknown_model_is_an_error(model_id: str, message: str) -> None:
    with pytest.raises(SetupError, match=message):
        embed_queries([real_pictures()[CAT]], model_ids=[model_id])


@pytest.mark.parametrize("name", ["mine", "random-crops", "random-seed-0"])
def test_weights_from_a_file_are_those_of_the_file(
    tmp_path: Path, random_vectors: list[Vector], name: str
) -> None:
    path = tmp_path / f"{name}.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        safetensors.torch.save_file(find_encoder("resnet18").build().state_dict(), path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    model_id = f"resnet18/{name}/{sha256[:12]}"

    content = real_pictures()[CAT]
    _, (cat,) = embed_queries([content], model_ids=[model_id], weights=str(path))

    assert not np.allclose(cat, random_vectors[0], rtol=1e-3)


def test_weights_that_are_not_the_tables_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    safetensors.torch.save_file(find_encoder("resnet18").build().state_dict(), path)
    with pytest.raises(SetupError, match=r"has sha256 .*, not 000000000000"):
        embed_queries([b"\0"], model_ids=["resnet18/mine/000000000000"], weights=str(path))


@pytest.fixture
def search_command(
    tmp_path: Path,
    random_model: str,
    random_vectors: list[Vector],
    monkeypatch: pytest.MonkeyPatch,
) -> list[str]:
    """`embedstream search` of one image in a table of three, one of them in a file."""
    names = [CAT, COFFEE, ROCKET]
    (tmp_path / CAT).write_bytes(real_pictures()[CAT])
    uris = [(tmp_path / CAT).as_uri(), None, None]
    rows = [
        row(name, one.tolist(), uri=uri, offset=index, model_id=random_model)
        for index, (name, one, uri) in enumerate(zip(names, random_vectors, uris, strict=True))
    ]
    table = write_table(tmp_path, rows, model_id=random_model)
    command = ["embedstream", "search", str(tmp_path / CAT), "--table", table]
    monkeypatch.setattr(sys, "argv", command)
    return command


def test_the_command_lists_the_nearest_rows_and_draws_them(
    tmp_path: Path, search_command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    sheet = tmp_path / "sheet.png"
    search_command += ["-k", "2", "--out", str(sheet)]

    with pytest.raises(SystemExit) as end:
        main()

    assert end.value.code == 0
    said = capsys.readouterr()
    head, first, second, last = said.out.splitlines()
    assert head.split() == ["similarity", "id", "media", "type", "source"]
    assert first.split() == ["1.0000", CAT, (tmp_path / CAT).as_uri()]
    assert second.split()[1:] in ([COFFEE, "images-0-1"], [ROCKET, "images-0-2"])
    assert said.err == "compared all rows of the table, version 1\n"
    assert last == f"contact sheet: {sheet}"
    with Image.open(sheet) as drawn:
        assert (drawn.format, drawn.size) == ("PNG", (3 * 178 + 20, 212 + 10))


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("absent/sheet.png", "there is no folder '{folder}/absent'; create it first"),
        ("sheet.nosuch", "it is an image, and its name ends in .png or .jpg"),
    ],
)
def test_a_sheet_that_cannot_be_written_is_an_error_before_the_search(
    tmp_path: Path,
    search_command: list[str],
    capsys: pytest.CaptureFixture[str],
    out: str,
    message: str,
) -> None:
    search_command += ["--out", str(tmp_path / out)]
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert capsys.readouterr() == (
        "",
        f"embedstream: the contact sheet '{tmp_path / out}' cannot be written: "
        f"{message.format(folder=tmp_path)}\n",
    )
