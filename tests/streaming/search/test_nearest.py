"""`nearest` answers from the index where that is right, and else from the table."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import yaml
from deltalake import DeltaTable, write_deltalake

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
from doors import core_vectors
from embedstream import nearest
from embedstream.config.sections import (
    BulkFilesConfig,
    EncoderConfig,
    IndexConfig,
    PreprocessingConfig,
    TableConfig,
)
from embedstream.index.indexer import update_index
from embedstream.index.stores.kinds import open_store
from embedstream.search.answer import ANSWER_SCHEMA
from embedstream.search.nearest import Searcher
from embedstream.worker.model import prepare
from embedstream_core.errors import Code, SetupError
from outcome_tables import MODEL, SCHEMA, row, write_table
from pictures import real_pictures

Vectors = npt.NDArray[np.float32]

OTHER = "other/model/0123456789ab"
START = datetime(2026, 1, 1, tzinfo=UTC)
DIMENSION = 16


def make_vectors(count: int, *, seed: int = 0) -> Vectors:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(8, DIMENSION))
    made = centres[rng.integers(0, 8, count)] + 0.4 * rng.normal(size=(count, DIMENSION))
    return made.astype(np.float32)


def make_rows(vectors: Iterable[Iterable[float]], *, first: int = 0) -> list[dict[str, Any]]:
    return [
        row(f"id-{offset}", vector, offset=offset)
        | {
            "topic": "my-topic",
            "key": f"key-{offset}".encode(),
            "uri": None if offset % 3 else f"file:///{offset}.png",
            "timestamp": START + timedelta(hours=offset),
            "media": {"type": "image/png", "duration_s": None},
            "attributes": {"shop": "ab"[offset % 2], "colour": "red"},
        }
        for offset, vector in enumerate(vectors, first)
    ]


def append(table: str, rows: Iterable[dict[str, Any]]) -> None:
    write_deltalake(table, pa.Table.from_pylist(list(rows), schema=SCHEMA), mode="append")


def tombstone(offset: int, key: str) -> dict[str, Any]:
    error = {"code": Code.DELETED, "stage": "message", "message": "the key is deleted"}
    return row("gone", None, offset=offset) | {
        "topic": "my-topic",
        "key": key.encode(),
        "error": error,
        "model_id": None,
    }


def update(table: str, index: IndexConfig, *, rebuild: bool = False) -> None:
    update_index(table, index, report=lambda _: None, stop=threading.Event(), rebuild=rebuild)


def configure(table: str, index: IndexConfig, *encoders: EncoderConfig) -> BulkFilesConfig:
    encoder = encoders[0] if encoders else EncoderConfig()
    return BulkFilesConfig(table=TableConfig(path=table), index=index, encoder=encoder)


@pytest.fixture
def shops(index: IndexConfig) -> IndexConfig:
    """An index of each kind that keeps one attribute."""
    return index.model_copy(update={"attributes": ("shop",)})


def list_ids(rows: pa.Table) -> list[str]:
    names: list[str] = rows["image_id"].to_pylist()
    return names


def assert_same(indexed: pa.Table, scanned: pa.Table) -> None:
    """Compare all columns; the index keeps the attribute `shop` alone.

    Rows of nearly the same similarity may be in another order.
    """
    assert indexed.schema == scanned.schema == ANSWER_SCHEMA
    np.testing.assert_allclose(indexed["similarity"], scanned["similarity"], atol=1e-5)
    by_index, by_scan = (one.sort_by("offset").to_pylist() for one in (indexed, scanned))
    for found, expected in zip(by_index, by_scan, strict=True):
        assert found.pop("similarity") == pytest.approx(expected.pop("similarity"), abs=1e-5)
        expected["attributes"] = [one for one in expected["attributes"] if one[0] == "shop"]
    assert by_index == by_scan


@pytest.mark.parametrize(
    "where",
    [
        None,
        "attributes['shop'] = 'a' AND timestamp > '2026-01-02T01:00+01:00'",
        "uri IS NULL AND offset BETWEEN 10 AND 40",
        "media_type ILIKE 'IMAGE/%' AND topic = 'my-topic' AND duration_s IS NULL",
        "image_id = 'none of them'",
    ],
)
def test_the_index_and_the_table_give_the_same_rows(
    tmp_path: Path, shops: IndexConfig, where: str | None
) -> None:
    vectors = make_vectors(60)
    table = write_table(tmp_path, make_rows(vectors[:50]), make_rows(vectors[50:], first=50))
    update(table, shops)
    with Searcher(config=configure(table, shops)) as indexed, Searcher(table) as scanned:
        for query in make_vectors(3, seed=1):
            by_index = indexed.search(query, k=7, where=where)
            by_scan = scanned.search(query, k=7, where=where)
            assert (by_index.source, by_scan.source) == ("index", "table")
            assert_same(by_index.rows, by_scan.rows)
            assert by_scan.unused == ""


def test_an_approximate_index_ranks_by_the_true_similarity(
    tmp_path: Path, shops: IndexConfig
) -> None:
    vectors = make_vectors(600)
    index = shops.model_copy(update={"ann_rows": 500})
    table = write_table(tmp_path, make_rows(vectors))
    update(table, index)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    shared = []
    with Searcher(config=configure(table, index)) as searcher:
        for query in make_vectors(10, seed=1):
            true = unit @ query / np.linalg.norm(query)
            best = np.argsort(-true)[:10].tolist()
            found, exact = searcher.search(query), searcher.search(query, exact=True)
            offsets = found.rows["offset"].to_numpy()
            np.testing.assert_allclose(found.rows["similarity"], true[offsets], atol=1e-5)
            assert (np.diff(found.rows["similarity"]) <= 0).all()
            assert (found.source, exact.source) == ("index", "index")
            assert exact.rows["offset"].to_pylist() == best
            shared.append(len({*offsets} & {*best}))
    assert np.mean(shared) >= 8


def test_an_index_says_how_far_it_is_behind(tmp_path: Path, shops: IndexConfig) -> None:
    vectors = make_vectors(12)
    table = write_table(tmp_path, make_rows(vectors[:10]))
    update(table, shops)
    with Searcher(config=configure(table, shops)) as searcher:
        fresh = searcher.search(vectors[11], k=1)
        append(table, make_rows(vectors[10:11], first=10))
        append(table, make_rows(vectors[11:], first=11))
        late = searcher.search(vectors[11], k=1)
        update(table, shops)
        again = searcher.search(vectors[11], k=1)
    version = DeltaTable(table).version()
    assert fresh.describe().endswith(f", version {version - 2}: up to date")
    assert fresh.describe().startswith(f"from the index at {fresh.index_address}, ")
    assert late.describe().endswith(f", version {version - 2}: 2 versions behind the table")
    assert list_ids(late.rows) == list_ids(fresh.rows) != ["id-11"]
    assert (list_ids(again.rows), again.versions_behind) == (["id-11"], 0)


def test_an_open_searcher_follows_an_index_that_is_built_again(
    tmp_path: Path, shops: IndexConfig
) -> None:
    vectors = make_vectors(10)
    table = write_table(tmp_path, make_rows(vectors))
    with Searcher(config=configure(table, shops)) as searcher:
        none = searcher.search(vectors[3], k=1)
        update(table, shops)
        first = searcher.search(vectors[3], k=1)
        update(table, shops, rebuild=True)
        second = searcher.search(vectors[3], k=1)
    assert [one.source for one in (none, first, second)] == ["table", "index", "index"]
    assert none.unused == ""
    for one in (none, first, second):
        assert list_ids(one.rows) == ["id-3"]


def test_the_default_index_is_found_without_a_configuration(tmp_path: Path) -> None:
    vectors = make_vectors(10)
    table = write_table(tmp_path, make_rows(vectors))
    update(table, IndexConfig())
    with Searcher(Path(table)) as searcher:
        assert searcher.search(vectors[4], k=1).source == "index"
    assert list_ids(nearest(vectors[4].tolist(), table, k=2))[0] == "id-4"


def test_an_index_that_cannot_answer_is_named_and_the_table_answers(
    tmp_path: Path, shops: IndexConfig
) -> None:
    vectors = make_vectors(10)
    table = write_table(tmp_path, make_rows(vectors))
    update(table, shops)
    append(table, make_rows([[1, 2]], first=20))
    second = write_table(tmp_path / "second", make_rows(vectors))
    append(table, [one | {"model_id": OTHER} for one in make_rows([[1, 2]], first=30)])
    update(table, shops)

    with Searcher(table, config=configure(table, shops)) as searcher:
        by_colour = searcher.search(vectors[0], where="attributes['colour'] = 'red' AND offset < 5")
        assert (by_colour.source, by_colour.rows.num_rows) == ("table", 5)
        assert "the index was not used: the index at " in by_colour.describe()
        assert "has no attribute 'colour'; add it to index.attributes" in by_colour.describe()
    with Searcher(second, config=configure(table, shops)) as searcher:
        answer = searcher.search(vectors[0], k=1)
        assert (answer.source, list_ids(answer.rows)) == ("table", ["id-0"])
        assert f"is of another table, 'file://{table}/'" in answer.unused


def test_a_model_that_the_index_lacks_is_searched_in_the_table(
    tmp_path: Path, shops: IndexConfig
) -> None:
    vectors = make_vectors(10)
    table = write_table(tmp_path, make_rows(vectors))
    update(table, shops)
    append(table, [one | {"model_id": OTHER} for one in make_rows([[1, 2]], first=30)])
    with Searcher(config=configure(table, shops)) as searcher:
        answer = searcher.search([1, 2], model_id=OTHER)
        assert (answer.source, list_ids(answer.rows)) == ("table", ["id-30"])
        assert f"has no rows of '{OTHER}'" in answer.unused
        with pytest.raises(SetupError, match="holds no embedding of 'none'; it holds those of"):
            searcher.search([1, 2], model_id="none")


def test_an_index_that_is_not_a_state_is_not_used(tmp_path: Path, shops: IndexConfig) -> None:
    vectors = make_vectors(10)
    table = write_table(tmp_path, make_rows(vectors))
    with closing(open_store(shops, table=table, mode="write")) as writer:
        writer.write([], '{"format": 2}')
    with Searcher(config=configure(table, shops)) as searcher:
        answer = searcher.search(vectors[1], k=1)
    assert (answer.source, list_ids(answer.rows)) == ("table", ["id-1"])
    assert "was written by another version of embedstream" in answer.unused


def test_an_unreachable_index_is_named(tmp_path: Path) -> None:
    vectors = make_vectors(3)
    table = write_table(tmp_path, make_rows(vectors))
    index = IndexConfig(kind="pgvector", url="postgresql://nobody@127.0.0.1:9/none")
    with Searcher(config=configure(table, index)) as searcher:
        answer = searcher.search(vectors[1], k=1)
    assert (answer.source, list_ids(answer.rows)) == ("table", ["id-1"])
    assert "127.0.0.1" in answer.unused


def test_missing_packages_matter_only_if_there_is_an_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = make_vectors(3)
    table = write_table(tmp_path, make_rows(vectors))
    second = write_table(tmp_path / "second", make_rows(vectors))
    update(table, IndexConfig())
    monkeypatch.setitem(sys.modules, "lancedb", None)
    with Searcher(table) as indexed, Searcher(second) as plain:
        answer = indexed.search(vectors[2], k=1)
        assert (answer.source, list_ids(answer.rows)) == ("table", ["id-2"])
        assert "pip install 'embedstream[lancedb]'" in answer.describe()
        assert plain.search(vectors[2], k=1).unused == ""


def test_deleted_rows_are_hidden(tmp_path: Path, shops: IndexConfig) -> None:
    vectors = make_vectors(6)
    table = write_table(tmp_path, make_rows(vectors))
    append(table, [tombstone(100, "key-2")])
    later = make_rows(vectors[2:3], first=101)
    append(table, [later[0] | {"key": b"key-2"}, tombstone(101, "key-0")])
    update(table, shops)
    with Searcher(config=configure(table, shops)) as indexed, Searcher(table) as scanned:
        by_index, by_scan = indexed.search(vectors[2]), scanned.search(vectors[2])
        assert by_index.source == "index"
        assert_same(by_index.rows, by_scan.rows)
        assert {*list_ids(by_scan.rows)} == {"id-1", "id-3", "id-4", "id-5", "id-101"}
        for searcher in (indexed, scanned):
            with pytest.raises(SetupError, match="the row my-topic-0-2 is deleted"):
                searcher.search(("my-topic", 0, 2))


def test_a_row_is_a_query(tmp_path: Path, shops: IndexConfig) -> None:
    vectors = make_vectors(6)
    failure = row("broken", None, offset=50) | {"topic": "my-topic"}
    table = write_table(tmp_path, [*make_rows(vectors), failure])
    update(table, shops)
    append(table, make_rows(vectors[:1], first=60))
    with Searcher(config=configure(table, shops)) as indexed, Searcher(table) as scanned:
        for searcher in (indexed, scanned):
            found = searcher.search(("my-topic", 0, 4), k=2)
            assert list_ids(found.rows)[0] == "id-4"
            # The index does not have this one yet.
            assert "id-0" in list_ids(searcher.search(("my-topic", 0, 60), k=2).rows)
            for position, message in [
                (("my-topic", 0, 50), r"row my-topic-0-50 is a failure .*\(image_corrupt: cut"),
                (("my-topic", 0, 99), "has no row of the message my-topic-0-99; give the topic"),
                (("my'topic", 0, 1), "has no row of the message my'topic-0-1"),
                (("my-topic", 0), "a position is .topic, partition, offset."),
            ]:
                with pytest.raises(SetupError, match=message):
                    searcher.search(position)  # type: ignore[arg-type]


def test_of_several_models_one_is_chosen(tmp_path: Path, shops: IndexConfig) -> None:
    vectors = make_vectors(3)
    rows = make_rows(vectors)
    others = [one | {"model_id": OTHER, "embedding": [1.0, 0.0]} for one in rows]
    table = write_table(tmp_path, [*rows, *others], model_id=f"{MODEL}\n{OTHER}")
    update(table, shops)
    for config in (None, configure(table, shops)):
        with Searcher(table, config=config) as searcher:
            chosen = searcher.search(("my-topic", 0, 1), k=1, model_id=MODEL)
            assert (chosen.model_id, list_ids(chosen.rows)) == (MODEL, ["id-1"])
            assert searcher.search([1, 0], model_id=OTHER).rows.num_rows == 3
            with pytest.raises(SetupError, match="embeddings of several models: "):
                searcher.search(("my-topic", 0, 1))
            with pytest.raises(SetupError, match="has rows of several models: "):
                searcher.search([1, 0])
            with pytest.raises(SetupError, match="the row has no embedding of 'none', but of"):
                searcher.search(("my-topic", 0, 1), model_id="none")
            with pytest.raises(SetupError, match=f"has 2 floats, and .* of '{MODEL}' with 16: on"):
                searcher.search([1, 0], model_id=MODEL)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ([[1.0, 2.0]], r"one dimension and finite numbers; this one has the shape \(1, 2\)"),
        ([], "one dimension"),
        ([1.0, float("nan")], "finite numbers"),
        (["a", "b"], "a query is a path, bytes, words, a position or a vector, not a list"),
        (object(), "not a object"),
        (Path("/dev/zero"), "the query '/dev/zero' has more than 268435456 bytes"),
        (Path("absent.png"), "the query 'absent.png' cannot be read: No such file or directory"),
    ],
)
def test_a_query_that_is_none_is_a_sentence(tmp_path: Path, query: Any, message: str) -> None:
    table = write_table(tmp_path, make_rows(make_vectors(1)))
    with pytest.raises(SetupError, match=message):
        nearest(query, table)


def test_what_has_no_meaning_is_a_sentence(tmp_path: Path) -> None:
    table = write_table(tmp_path, make_rows(make_vectors(1)))
    with pytest.raises(SetupError, match="give the table or the configuration"):
        nearest([1.0])
    with pytest.raises(SetupError, match="k is the number of rows, at least 1, not 0"):
        nearest([1.0], table, k=0)


def test_a_stream_s_file_is_a_configuration(tmp_path: Path) -> None:
    vectors = make_vectors(4)
    table = write_table(tmp_path, make_rows(vectors))
    index = {"path": str(tmp_path / "index")}
    update(table, IndexConfig(**index))
    path = tmp_path / "stream.yaml"
    tree = {
        "kafka": {"bootstrap_servers": "127.0.0.1:1", "subscribe": "images"},
        "table": {"path": table},
        "checkpoint": str(tmp_path / "checkpoint"),
        "index": index,
    }
    path.write_text(yaml.safe_dump(tree))
    with Searcher(config=path) as searcher:
        answer = searcher.search(vectors[2], k=1)
    assert (answer.source, list_ids(answer.rows)) == ("index", ["id-2"])


def test_a_vector_needs_neither_spark_nor_torch(tmp_path: Path) -> None:
    table = write_table(tmp_path, make_rows(make_vectors(3)))
    update(table, IndexConfig())
    program = (
        "import sys; from embedstream import nearest; "
        f"rows = nearest([1.0] * {DIMENSION}, {table!r}); print(rows.num_rows, *sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    count, *modules = run.stdout.split()
    assert count == "3"
    # LanceDB puts stand-ins for torch and others there, which import them at their first use.
    assert not {"torch.nn", "pyspark.sql", "py4j"} & {*modules}


def search_both(
    tmp_path: Path, encoder: EncoderConfig, named: dict[str, bytes], queries: Iterable[Any]
) -> list[list[str]]:
    """Embed contents, and ask for each query in index and table; return the ids that they give.

    The index cannot answer about an attribute that it does not keep, so the table does.
    """
    model_id = prepare(encoder).card.model_id
    vectors = core_vectors([*named.values()], encoder)
    rows = [
        row(name, vector.tolist(), offset=offset, model_id=model_id)
        for offset, (name, vector) in enumerate(zip(named, vectors, strict=True))
    ]
    table = write_table(tmp_path, rows, model_id=model_id)
    update(table, IndexConfig())
    found = []
    with Searcher(config=configure(table, IndexConfig(), encoder)) as searcher:
        for query in queries:
            by_index = searcher.search(query)
            by_scan = searcher.search(query, where="attributes['none'] IS NULL")
            assert (by_index.source, by_scan.source) == ("index", "table")
            assert by_index.model_id == by_scan.model_id == model_id
            assert_same(by_index.rows, by_scan.rows)
            found.append(list_ids(by_index.rows))
    return found


def test_words_find_texts(tmp_path: Path) -> None:
    named = {name: text.encode() for name, text in TEXTS.items()}
    queries = ["read a compressed file", TEXTS["tower.txt"].encode()]
    first, second = search_both(tmp_path, MINILM, named, queries)
    assert (first[0], second[0]) == ("gzip.txt", "tower.txt")


def test_sounds_find_sounds(tmp_path: Path) -> None:
    (found,) = search_both(tmp_path, SPEECH, CLIPS, [CLIPS["long.flac"]])
    assert found[0] == "long.flac"


def test_words_and_images_find_images(tmp_path: Path) -> None:
    """The configuration knows the folder of the weights, which is not in the table."""
    encoder = image_text_encoder(save_colour_model(tmp_path / "colours"))
    named = {name: colour_picture(name) for name in COLOURS}
    queries = [*COLOURS, *(colour_picture(name) for name in COLOURS)]
    found = search_both(tmp_path, encoder, named, queries)
    assert [one[0] for one in found] == [*COLOURS, *COLOURS]


def test_images_are_prepared_as_the_configuration_declares(tmp_path: Path) -> None:
    declared = PreprocessingConfig(resize_px=64, crop_px=64, mean=(0.5,) * 3, std=(0.5,) * 3)
    encoder = EncoderConfig(name="resnet18", weights="random", preprocessing=declared)
    named = {name: real_pictures()[name] for name in ("chelsea.png", "coffee.png", "rocket.jpg")}
    coffee = named["coffee.png"]
    (found,) = search_both(tmp_path, encoder, named, [coffee])
    assert found[0] == "coffee.png"

    table = str(tmp_path / "table")
    answer = nearest(coffee, table, k=1, config=configure(table, IndexConfig(), encoder))
    assert answer["similarity"][0].as_py() == pytest.approx(1, abs=1e-4)
    other = declared.model_copy(update={"mean": (0.4,) * 3})
    wrong = encoder.model_copy(update={"preprocessing": other})
    for config in (None, configure(table, IndexConfig(), wrong)):
        with pytest.raises(SetupError, match=r"made with an encoder\.preprocessing "):
            nearest(coffee, table, config=config)
