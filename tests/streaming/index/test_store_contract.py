"""What the contract of stores promises holds for each kind, with the real engine."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from sqlglot import exp

import killed_writer
from embedstream.config.sections import IndexConfig
from embedstream.index.rows import KEY, build_row_schema
from embedstream.index.stores.contract import Store, StoreWriter, Write
from embedstream.index.stores.kinds import KINDS, open_store
from embedstream_core.errors import SetupError
from index_stores import build_keys, build_rows, build_vectors, configure_index

TEXTS = [
    "it's",
    'a "quoted" name',
    "back\\slash \\' \\n",
    "ünïcødé 像 🙂 e\u0301",
    "100%_[x]*?",
    "'; DROP TABLE one; --",
    "$1 %s {x} :name ?",
    "line\nbreak\ttab",
    "",
]


class Opener:
    """Open stores of one index, and close them after the test."""

    def __init__(self, config: IndexConfig, table: Path, stack: ExitStack) -> None:
        self.config = config
        self.table = str(table)
        self.stack = stack

    @overload
    def __call__(self, mode: Literal["read"]) -> Store: ...
    @overload
    def __call__(self, mode: Literal["write"]) -> StoreWriter: ...
    def __call__(self, mode: Literal["read", "write"]) -> Store:
        store: Store = open_store(self.config, table=self.table, mode=mode)
        return self.stack.enter_context(closing(store))


@pytest.fixture
def open_index(index: IndexConfig, tmp_path: Path) -> Iterator[Opener]:
    with ExitStack() as stack:
        yield Opener(index, tmp_path / "table", stack)


@pytest.fixture
def writer(open_index: Opener) -> StoreWriter:
    return open_index("write")


def list_offsets(store: Store, collection: str = "one") -> list[int]:
    return sorted(store.list_keys(collection)["offset"].to_pylist())


def compare(vectors: npt.NDArray[np.float32], query: npt.NDArray[np.float32]) -> Any:
    """Return the cosine similarities in float64, of shape (rows,); 0 for vectors of zeros."""
    wide, one = vectors.astype(np.float64), query.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1) * np.linalg.norm(one)
    return np.divide(wide @ one, lengths, out=np.zeros(len(wide)), where=lengths > 0)


def find(store: Store, query: npt.NDArray[np.float32], k: int, **options: Any) -> list[int]:
    return list(store.search("one", query, k, **options)["offset"].to_pylist())


def name_offset(store: Store) -> str:
    return exp.column("offset", quoted=True).sql(dialect=store.dialect)


def equal(store: Store, column: str, value: str) -> str:
    """Return a condition in the store's dialect, as the search builds it."""
    return exp.column(column, quoted=True).eq(value).sql(dialect=store.dialect)


class TestState:
    def test_an_index_that_does_not_exist_has_no_state(self, open_index: Opener) -> None:
        assert open_index("read").read_state() is None
        assert open_index("write").read_state() is None

    def test_the_state_is_replaced_and_outlives_the_writer(self, open_index: Opener) -> None:
        writer = open_index("write")
        reader = open_index("read")
        for state in ("{}", json.dumps(TEXTS, ensure_ascii=False), "x" * 1_000_000, "last"):
            writer.write([], state)
            assert writer.read_state() == reader.read_state() == state
        writer.close()

        assert open_index("write").read_state() == "last"

    def test_the_address_names_the_place(self, open_index: Opener) -> None:
        config = open_index.config

        place = config.path or config.db_schema

        assert place in open_index("read").address


class TestWrite:
    def test_rows_are_appended_to_a_collection_that_the_first_write_creates(
        self, writer: StoreWriter
    ) -> None:
        writer.write([Write("one", 8, build_rows([0, 1]))], "a")
        writer.write([Write("one", 8, build_rows([2**63 - 1]))], "b")

        assert list_offsets(writer) == [0, 1, 2**63 - 1]
        assert writer.count_rows("one") == 3
        assert writer.list_collections() == ["one"]

    def test_no_rows_create_a_collection_too(self, writer: StoreWriter) -> None:
        writer.write([Write("one", 8, build_rows([]))], "a")

        assert writer.list_collections() == ["one"]
        assert writer.count_rows("one") == 0
        assert writer.search("one", np.ones(8, np.float32), 3).num_rows == 0
        assert writer.sample("one", 3).shape == (0, 8)

    def test_an_upsert_replaces_rows_of_equal_keys_alone(self, writer: StoreWriter) -> None:
        others = [build_rows([0], topic="other"), build_rows([0], partition=1)]
        writer.write([Write("one", 8, pa.concat_tables([build_rows([0, 1]), *others]))], "a")
        vectors = build_vectors([7, 8], 8)

        rows = build_rows([1, 2], vectors=vectors, uri=["new", "new"])
        writer.write([Write("one", 8, rows, "upsert")], "b")

        assert list_offsets(writer) == [0, 0, 0, 1, 2]
        for offset, vector in zip([0, 1, 2], [*build_vectors([0], 8), *vectors], strict=True):
            found = writer.get_vector("one", topic="photos", partition=0, offset=offset)
            assert found is not None
            assert found.tobytes() == vector.tobytes()
        where = equal(writer, "uri", "new")
        assert set(find(writer, vectors[0], 9, where=where)) == {1, 2}

    def test_keys_are_deleted_before_rows_are_inserted(self, writer: StoreWriter) -> None:
        writer.write([Write("one", 8, build_rows([0, 1, 2]))], "a")

        deleted = pa.concat_tables([build_keys([0, 2, 9]), build_keys([1], topic="other")])
        writer.write([Write("one", 8, build_rows([2, 3]), deleted=deleted)], "b")

        assert list_offsets(writer) == [1, 2, 3]

    def test_message_keys_delete_rows_with_a_smaller_offset(self, writer: StoreWriter) -> None:
        keys = ["aa", "aa", "aa", "bb", None, "ff" * 20_000]
        rows = pa.concat_tables(
            [
                build_rows(range(6), message_key=keys),
                build_rows([0], topic="other", message_key=["aa"]),
                build_rows([0], partition=1, message_key=["aa"]),
            ]
        )
        writer.write([Write("one", 8, rows)], "a")

        deleted = pa.table(
            {
                "topic": ["photos"] * 3,
                "partition": pa.array([0] * 3, pa.int32()),
                "message_key": ["aa", "cc", keys[-1]],
                "offset": pa.array([2, 9, 9], pa.int64()),
            }
        )
        # The rows of the write itself are inserted after the deletion.
        later = build_rows([1], message_key=["aa"])
        writer.write([Write("one", 8, later, deleted_keys=deleted)], "b")

        assert list_offsets(writer) == [0, 0, 1, 2, 3, 4]

    def test_one_write_changes_several_collections(self, open_index: Opener) -> None:
        writer, reader = open_index("write"), open_index("read")
        writer.write([Write("one", 8, build_rows([0])), Write("two", 8, build_rows([0]))], "a")
        writer.write(
            [
                Write("one", 8, deleted=build_keys([0])),
                Write("two", 8, build_rows([0, 1]), "upsert"),
                Write("three", 3, build_rows([5], dimension=3)),
            ],
            "b",
        )

        assert reader.read_state() == "b"
        assert [list_offsets(reader, one) for one in ("one", "two", "three")] == [[], [0, 1], [5]]
        assert sorted(writer.list_collections()) == ["one", "three", "two"]

    def test_a_refused_write_does_nothing(self, open_index: Opener) -> None:
        writer, reader = open_index("write"), open_index("read")
        writer.write([Write("one", 8, build_rows([0]))], "a")

        with pytest.raises(SetupError):
            writer.write(
                [
                    Write("one", 8, build_rows([1])),
                    Write("two", 8, build_rows([1])),
                    Write("one", 9, build_rows([2], dimension=9)),
                ],
                "b",
            )

        for store in (writer, reader):
            assert store.read_state() == "a"
            assert list_offsets(store) == [0]
        writer.write([Write("one", 8, build_rows([2])), Write("two", 8, build_rows([2]))], "c")
        writer.close()
        writer = open_index("write")
        assert [list_offsets(writer, one) for one in ("one", "two")] == [[0, 2], [2]]

    def test_every_column_comes_back(self, writer: StoreWriter) -> None:
        count = len(TEXTS)
        moment = datetime(2026, 3, 29, 1, 30, 0, 123456, tzinfo=UTC)
        rows = build_rows(
            range(count),
            message_key=[f"{one:04x}" for one in range(count)],
            duration_s=[0.1 * one for one in range(count)],
            timestamp=[moment] * count,
            attributes={"shop": TEXTS},
            image_id=TEXTS,
            uri=TEXTS,
            media_type=TEXTS,
        )
        nulls = build_rows([100], attributes={"shop": [None]})
        # Slices of several chunks have offsets within their buffers.
        pieces = [rows.slice(0, 3), rows.slice(3), nulls]
        writer.write([Write("one", 8, pa.concat_tables(pieces))], "a")

        found = writer.search("one", build_vectors([0], 8)[0], 50)

        columns = build_row_schema(1, ["shop"]).names[:-1]
        assert set(found.column_names) == {*columns, "similarity"}
        assert found["similarity"].type == pa.float32()
        expected = pa.concat_tables([rows, nulls]).select(columns)
        assert found.select(columns).sort_by("offset").cast(expected.schema) == expected

    def test_a_time_far_in_the_future_is_kept(self, writer: StoreWriter) -> None:
        # A producer sets the timestamp of its messages, in milliseconds.
        times = pa.array([2**63 - 1, 253_402_300_800_000_000, 0, -1_000], pa.int64())
        rows = build_rows(range(4))
        place = rows.schema.get_field_index("timestamp")
        rows = rows.set_column(place, rows.schema.field(place), times.cast(rows["timestamp"].type))
        writer.write([Write("one", 8, rows)], "a")

        found = writer.search("one", build_vectors([0], 8)[0], 4).sort_by("offset")

        assert found["timestamp"].cast(pa.int64()).to_pylist() == times.to_pylist()

    def test_a_nul_character_stops_no_write(self, writer: StoreWriter) -> None:
        rows = build_rows([0], image_id=["a\0b"], uri=["\0"], attributes={"shop": ["\0\0"]})

        writer.write([Write("one", 8, rows)], "a")

        (found,) = writer.search("one", build_vectors([0], 8)[0], 1).to_pylist()
        given = [found["image_id"], found["uri"], found["attribute_shop"]]
        assert [one.replace("\ufffd", "\0") for one in given] == ["a\0b", "\0", "\0\0"]


class TestOneWriter:
    def test_a_second_writer_is_refused_until_the_first_closes(self, open_index: Opener) -> None:
        first = open_index("write")
        with pytest.raises(SetupError):
            open_index("write")
        first.write([], "first")
        first.close()

        open_index("write").write([], "second")

        assert open_index("read").read_state() == "second"

    def check_killed_writers(
        self, kind: str, fractions: Sequence[float], request: pytest.FixtureRequest, tmp_path: Path
    ) -> None:
        """Kill a writer of its own index at each of these points of a write, all at once."""
        table = str(tmp_path / "table")
        started: list[tuple[IndexConfig, subprocess.Popen[str]]] = []
        with ExitStack() as stack:
            for fraction in fractions:
                config = configure_index(kind, request, tmp_path / str(fraction))
                url = config.url and config.url.get_secret_value()
                text = json.dumps({**json.loads(config.model_dump_json()), "url": url})
                child = subprocess.Popen(
                    [sys.executable, killed_writer.__file__, text, table, str(fraction)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
                stack.callback(child.kill)
                started.append((config, stack.enter_context(child)))
            for number, (config, child) in enumerate(started):
                assert child.stdout is not None
                assert child.stdout.readline() == "open\n"
                # A store may wait a second before it refuses.
                if number == 0:
                    with pytest.raises(SetupError):
                        open_store(config, table=table, mode="write")
                child.communicate("\n", timeout=60)
                assert child.returncode == -signal.SIGKILL
                with closing(open_store(config, table=table, mode="write")) as store:
                    killed_writer.check(store)

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_killed_writer_leaves_all_of_a_write_or_nothing(
        self, kind: str, request: pytest.FixtureRequest, tmp_path: Path
    ) -> None:
        self.check_killed_writers(kind, (0.5, 0.95), request, tmp_path)

    @pytest.mark.long
    @pytest.mark.parametrize("kind", KINDS)
    def test_a_writer_may_be_killed_at_any_point(
        self, kind: str, request: pytest.FixtureRequest, tmp_path: Path
    ) -> None:
        points = [(number + 0.5) / 30 for number in range(30)]
        for first in range(0, 30, 5):
            self.check_killed_writers(kind, points[first : first + 5], request, tmp_path)


class TestReadersBesideAWriter:
    def test_a_reader_sees_what_is_committed_later(self, open_index: Opener) -> None:
        writer = open_index("write")
        writer.write([Write("one", 8, build_rows([0]))], "a")
        reader = open_index("read")
        assert list_offsets(reader) == [0]

        writer.write([Write("one", 8, build_rows([1]), deleted=build_keys([0]))], "b")
        writer.maintain(["one"])

        assert reader.read_state() == "b"
        assert list_offsets(reader) == find(reader, np.ones(8, np.float32), 5) == [1]
        assert reader.get_vector("one", topic="photos", partition=0, offset=0) is None

    def test_a_reader_sees_a_collection_that_was_dropped_and_made_again(
        self, open_index: Opener
    ) -> None:
        writer = open_index("write")
        writer.write([Write("one", 8, build_rows([0]))], "a")
        reader = open_index("read")
        assert find(reader, np.ones(8, np.float32), 5) == [0]

        writer.drop(["one"])
        with pytest.raises(SetupError):
            reader.search("one", np.ones(8, np.float32), 5)
        rows = build_rows([5, 6], dimension=3, attributes={"shop": ["a", "b"]})
        writer.write([Write("one", 3, rows)], "b")

        where = equal(reader, "attribute_shop", "b")
        assert find(reader, np.ones(3, np.float32), 5, where=where) == [6]
        assert reader.sample("one", 9).shape == (2, 3)

    def test_collections_that_no_state_names_are_dropped(self, open_index: Opener) -> None:
        writer = open_index("write")
        writer.write([Write(one, 8, build_rows([0])) for one in ("one", "two", "three")], "a")

        writer.drop(["two", "never", "two"])
        writer.drop(["two"])
        writer.drop([])
        writer.write([], "b")
        writer.close()

        assert sorted(open_index("write").list_collections()) == ["one", "three"]


class TestSearch:
    @pytest.mark.parametrize("dimension", [1, 384, 2048, 2500, 4100])
    def test_exact_search_is_numpys_cosine(self, writer: StoreWriter, dimension: int) -> None:
        offsets = range(30)
        vectors = build_vectors(offsets, dimension)
        writer.write([Write("one", dimension, build_rows(offsets, dimension=dimension))], "a")
        for query in (vectors[3], build_vectors([99], dimension)[0], -1e-3 * vectors[5]):
            found = writer.search("one", query, 10)

            cosines = compare(vectors, query)
            similarities = np.asarray(found["similarity"])
            np.testing.assert_allclose(similarities, np.sort(cosines)[::-1][:10], atol=2e-6)
            of_found = cosines[found["offset"].to_pylist()]
            np.testing.assert_allclose(similarities, of_found, atol=2e-6)
        for offset in (0, 29):
            kept = writer.get_vector("one", topic="photos", partition=0, offset=offset)
            assert kept is not None
            assert kept.tobytes() == vectors[offset].tobytes()

    def test_vectors_come_back_bit_for_bit(self, writer: StoreWriter) -> None:
        info = np.finfo(np.float32)
        odd = [0.0, -0.0, info.max, info.min, info.tiny, info.smallest_subnormal, 1 / 3, np.pi]
        vectors = np.array([odd, odd[::-1]], np.float32)
        writer.write([Write("one", 8, build_rows([0, 1], vectors=vectors))], "a")

        for offset, vector in enumerate(vectors):
            kept = writer.get_vector("one", topic="photos", partition=0, offset=offset)
            assert kept is not None
            assert kept.dtype == np.float32
            assert kept.tobytes() == vector.tobytes()
        assert sorted(map(bytes, writer.sample("one", 2))) == sorted(map(bytes, vectors))
        assert writer.get_vector("one", topic="photos", partition=0, offset=2) is None
        assert writer.get_vector("one", topic="other", partition=0, offset=0) is None

    def test_a_vector_of_zeros_is_like_no_other(self, writer: StoreWriter) -> None:
        vectors = np.array([[0, 0], [1, 1], [-1, -1], [1, 0]], np.float32)
        writer.write([Write("one", 2, build_rows(range(4), dimension=2, vectors=vectors))], "a")

        assert find(writer, np.array([2, 1.5], np.float32), 4) == [1, 3, 0, 2]
        found = writer.search("one", np.zeros(2, np.float32), 4)
        assert sorted(found["offset"].to_pylist()) == [0, 1, 2, 3]
        assert found["similarity"].to_pylist() == [0.0] * 4

    def test_a_condition_is_applied_before_the_rows_are_ranked(self, writer: StoreWriter) -> None:
        offsets = range(200)
        shops = ["rare" if one % 40 == 0 else "common" for one in offsets]
        vectors = build_vectors(offsets, 8)
        writer.write([Write("one", 8, build_rows(offsets, attributes={"shop": shops}))], "a")
        order = np.argsort(-compare(vectors, vectors[1])).tolist()

        where = equal(writer, "attribute_shop", "rare")

        rare = [one for one in order if one % 40 == 0]
        assert find(writer, vectors[1], 4, where=where) == rare[:4]
        assert find(writer, vectors[1], 50, where=where) == rare
        either = f"{where} OR {name_offset(writer)} < 10"
        assert set(find(writer, vectors[1], 50, where=either)) == {*range(10), *rare}

    def test_texts_in_conditions_are_compared_as_they_are(self, writer: StoreWriter) -> None:
        rows = [
            build_rows([number], topic=text, image_id=[text], attributes={"shop": [text]})
            for number, text in enumerate(TEXTS)
        ]
        writer.write([Write("one", 8, pa.concat_tables(rows))], "a")

        for number, text in enumerate(TEXTS):
            for column in ("topic", "image_id", "attribute_shop"):
                where = equal(writer, column, text)
                assert find(writer, np.ones(8, np.float32), 50, where=where) == [number]
            kept = writer.get_vector("one", topic=text, partition=0, offset=number)
            assert kept is not None

    def test_nulls_satisfy_no_comparison(self, writer: StoreWriter) -> None:
        rows = build_rows(range(3), attributes={"shop": [None, "a", ""]}, duration_s=[None, 1, 2])
        writer.write([Write("one", 8, rows)], "a")

        def find_where(where: str) -> list[int]:
            return sorted(find(writer, np.ones(8, np.float32), 9, where=where))

        assert find_where("attribute_shop <> 'a'") == [2]
        assert find_where("attribute_shop IS NULL") == [0]
        assert find_where("NOT (duration_s > 1)") == [1]

    @pytest.mark.parametrize(
        "where",
        [
            "no_such_column = 1",
            "topic >",
            "topic = 'a'; DROP TABLE one",
            "topic = 'a'); DELETE FROM one; --",
            "no_such_function(topic)",
            "partition / 0 = 1",
        ],
    )
    def test_a_condition_that_cannot_be_evaluated_is_refused(
        self, writer: StoreWriter, where: str
    ) -> None:
        writer.write([Write("one", 8, build_rows(range(3)))], "a")

        with pytest.raises(SetupError):
            writer.search("one", np.ones(8, np.float32), 3, where=where)

        assert len(find(writer, np.ones(8, np.float32), 9)) == 3

    def test_a_query_of_another_dimension_is_refused(self, writer: StoreWriter) -> None:
        writer.write([Write("one", 8, build_rows(range(3)))], "a")

        with pytest.raises(SetupError):
            writer.search("one", np.ones(7, np.float32), 3)

    def test_all_rows_are_read_with_their_keys(self, writer: StoreWriter) -> None:
        vectors = build_vectors(range(9000), 8)
        writer.write([Write("one", 8, build_rows(range(9000), vectors=vectors))], "a")

        parts = list(writer.read_vectors("one"))

        assert len(parts) > 1
        offsets = np.concatenate([keys["offset"].to_numpy() for keys, _ in parts])
        assert sorted(offsets) == [*range(9000)]
        assert {keys.schema.names == [*KEY] for keys, _ in parts} == {True}
        np.testing.assert_array_equal(np.concatenate([one for _, one in parts]), vectors[offsets])

    @pytest.mark.parametrize("count", [1, 7, 40, 100])
    def test_a_sample_is_spread_over_the_rows(self, writer: StoreWriter, count: int) -> None:
        for first in range(0, 40, 10):
            writer.write([Write("one", 8, build_rows(range(first, first + 10)))], "a")
        rows = {bytes(one): offset for offset, one in enumerate(build_vectors(range(40), 8))}

        sample = writer.sample("one", count)

        assert sample.dtype == np.float32
        assert sample.shape == (min(count, 40), 8)
        taken = {rows[bytes(one)] for one in sample}
        assert len(taken) == min(count, 40)
        # Not one file's rows alone.
        assert count < 7 or max(taken) - min(taken) >= 20


class TestApproximateIndex:
    GROUPS = 100

    def build_groups(self, dimension: int) -> npt.NDArray[np.float32]:
        """Return five vectors of each group, which are nearer to one another than to all others."""
        centres = np.repeat(build_vectors(range(self.GROUPS), dimension), 5, axis=0)
        noise = build_vectors(range(1000, 1000 + len(centres)), dimension)
        return np.asarray(centres + 0.05 * noise, np.float32)

    @pytest.mark.parametrize("dimension", [32, 2048])
    def test_approximate_search_finds_what_exact_search_finds(
        self, writer: StoreWriter, dimension: int
    ) -> None:
        vectors = self.build_groups(dimension)
        count = len(vectors)
        colours = {"colour": [("red", "green")[one % 2] for one in range(count)]}
        rows = build_rows(range(count), dimension=dimension, vectors=vectors, attributes=colours)
        writer.write([Write("one", dimension, rows)], "a")

        ann = writer.build_ann("one", rows=count, dimension=dimension)

        assert ann is not None
        assert list(ann.efforts) == sorted(set(ann.efforts))
        effort = ann.efforts[-1]
        green = equal(writer, "attribute_colour", "green")
        for one in (2, 250, 498):
            exact = find(writer, vectors[one], 5)
            assert sorted(exact) == list(range(one - one % 5, one - one % 5 + 5))
            assert set(find(writer, vectors[one], 5, effort=effort)) == set(exact)
            found = writer.search("one", vectors[one], 5, effort=effort)
            assert found["offset"][0].as_py() == one
            cosines = compare(vectors, vectors[one])[found["offset"].to_pylist()]
            np.testing.assert_allclose(np.asarray(found["similarity"]), cosines, atol=2e-6)
            greens = find(writer, vectors[one], 2, effort=effort, where=green)
            assert greens == find(writer, vectors[one], 2, where=green)
        # A condition with few rows still finds all of them, however far away they are.
        few = f"{name_offset(writer)} IN (1, 200, 201, 400)"
        assert set(find(writer, vectors[0], 4, effort=effort, where=few)) == {1, 200, 201, 400}
        assert len(find(writer, vectors[0], 450, effort=effort)) == 450

    def test_it_follows_later_writes_and_is_built_again(self, open_index: Opener) -> None:
        writer, reader = open_index("write"), open_index("read")
        vectors = self.build_groups(32)
        count = len(vectors)
        rows = build_rows(range(count), dimension=32, vectors=vectors)
        writer.write([Write("one", 32, rows)], "a")
        ann = writer.build_ann("one", rows=count, dimension=32)
        assert ann is not None
        effort = ann.efforts[-1]
        new = build_rows([5000], dimension=32, vectors=vectors[10:11])
        moved = build_rows([490], dimension=32, vectors=vectors[20:21])
        deleted = build_keys(range(10, 15))

        writer.write([Write("one", 32, pa.concat_tables([new, moved]), "upsert", deleted)], "b")

        for is_maintained in (False, True):
            if is_maintained:
                writer.maintain(["one"])
            assert find(reader, vectors[10], 1, effort=effort) == [5000]
            assert set(find(reader, vectors[20], 6, effort=effort)) == {*range(20, 25), 490}
        again = writer.build_ann("one", rows=count - 4, dimension=32)
        assert again is not None
        assert find(reader, vectors[10], 1, effort=again.efforts[-1]) == [5000]
        writer.close()
        assert find(open_index("write"), vectors[10], 1, effort=again.efforts[-1]) == [5000]


class TestMaintenance:
    def test_it_changes_no_row(self, open_index: Opener) -> None:
        writer, reader = open_index("write"), open_index("read")
        for step in range(6):
            first = 10 * step
            rows = build_rows(range(first, first + 10))
            deleted = build_keys([first - 1])
            writer.write([Write("one", 8, rows, "upsert", deleted)], str(step))
        expected = [one for one in range(60) if one % 10 != 9 or one == 59]

        writer.maintain(["one"])
        writer.maintain([])

        assert list_offsets(reader) == list_offsets(writer) == expected
        assert reader.read_state() == "5"
        writer.write([Write("one", 8, build_rows([60]))], "6")
        writer.close()
        assert list_offsets(open_index("write")) == [*expected, 60]
