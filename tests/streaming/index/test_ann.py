"""When an approximate index is built, and what is measured of it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from embedstream.index.ann import build_ann, is_ann_due, measure_recall
from embedstream.index.state import Ann
from embedstream.index.stores.contract import AnnIndex, Write
from embedstream.index.stores.lance_location import LanceLocation
from embedstream.index.stores.lancedb import LanceWriter
from index_stores import build_rows

DIMENSION = 24
ROWS = 3000


def build_clusters(seed: int = 0) -> npt.NDArray[np.float32]:
    """Return vectors in 100 clusters, of various lengths, of shape (ROWS, DIMENSION)."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(100, DIMENSION))
    noise = 0.5 * generator.normal(size=(ROWS, DIMENSION))
    lengths = generator.uniform(0.1, 10, size=(ROWS, 1))
    return np.asarray(lengths * (centres[np.arange(ROWS) % 100] + noise), np.float32)


class Store(LanceWriter):
    """A store whose approximate search answers with what a test wants."""

    def __init__(self, folder: Path) -> None:
        super().__init__(LanceLocation(str(folder)))
        self.efforts: Sequence[int] | None = None
        self.searched: list[int] = []

    def fill(self, vectors: npt.NDArray[np.float32]) -> None:
        rows = build_rows(range(len(vectors)), dimension=vectors.shape[1], vectors=vectors)
        self.write([Write("one", vectors.shape[1], rows)], "a")

    def build_ann(self, collection: str, *, rows: int, dimension: int) -> AnnIndex | None:
        built = super().build_ann(collection, rows=rows, dimension=dimension)
        if built is None or self.efforts is None:
            return built
        return AnnIndex(built.kind, built.parameters, self.efforts)

    def search(
        self,
        collection: str,
        vector: npt.NDArray[np.float32],
        k: int,
        *,
        where: str | None = None,
        effort: int | None = None,
    ) -> pa.Table:
        if effort is None:
            return super().search(collection, vector, k, where=where)
        self.searched.append(effort)
        return self.approximate(collection, vector, k, effort)

    def approximate(self, collection: str, vector: Any, k: int, effort: int) -> pa.Table:
        return super().search(collection, vector, k, effort=effort)


class Farthest(Store):
    """Answers with the rows that are farthest away, as if they were near."""

    def approximate(self, collection: str, vector: Any, k: int, effort: int) -> pa.Table:
        near = LanceWriter.search(self, collection, vector, k)
        far = LanceWriter.search(self, collection, -vector, k)
        place = far.schema.get_field_index("similarity")
        return far.set_column(place, "similarity", near["similarity"])


class Partial(Store):
    """Finds `effort` of the nearest rows besides the query's own, then wrong ones."""

    def approximate(self, collection: str, vector: Any, k: int, effort: int) -> pa.Table:
        near = LanceWriter.search(self, collection, vector, 1 + effort)
        far = LanceWriter.search(self, collection, -vector, max(0, k - 1 - effort) or 1)
        return pa.concat_tables([near, far]).slice(0, k)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(Store(tmp_path)) as opened:
        yield opened


@pytest.mark.parametrize(
    ("built_with", "rows", "is_due"),
    [
        (None, 999, False),
        (None, 1000, True),
        (1000, 1999, False),
        (1000, 2000, True),
        (5000, 1000, False),
        (100, 900, False),
    ],
)
def test_an_index_is_due_from_a_size_on_and_when_it_has_doubled(
    built_with: int | None, rows: int, is_due: bool
) -> None:
    ann = built_with and Ann(
        kind="A", parameters={}, effort=1, recall=1, queries=50, rows=built_with, build_s=1
    )

    assert is_ann_due(ann or None, rows=rows, ann_rows=1000) == is_due


def test_the_recall_is_that_of_the_index(store: Store) -> None:
    vectors = build_clusters()
    store.fill(vectors)

    ann = build_ann(store, "one", rows=ROWS, dimension=DIMENSION)

    assert ann is not None
    assert ann.recall >= 0.95
    assert ann.queries == 100
    assert ann.rows == ROWS
    assert ann.build_s > 0
    # The same figure, by numpy, with other code.
    queries = store.sample("one", ann.queries)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    hits = 0
    for query in queries:
        nearest = np.argsort(-unit @ query)[:11]
        found = store.approximate("one", query, 11, ann.effort)["offset"].to_pylist()
        hits += len({*found} & {*nearest[1:].tolist()})
    assert hits / (10 * len(queries)) == pytest.approx(ann.recall, abs=0.005)
    # It is the smallest effort that is good enough.
    below = [one for one in (5, 10, 20, 40) if one < ann.effort]
    assert all(one < 0.95 for one in measure_recall(store, "one", queries, efforts=below))


def test_wrong_rows_are_found_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with closing(Farthest(tmp_path)) as store, caplog.at_level(logging.WARNING):
        store.fill(build_clusters())
        store.efforts = [5]

        ann = build_ann(store, "one", rows=ROWS, dimension=DIMENSION)

    assert ann is not None
    assert ann.recall == 0
    assert "finds 0 % of the nearest rows" in caplog.text


@pytest.mark.parametrize(("efforts", "chosen", "recall"), [([9, 10], 10, 1.0), ([6, 4], 6, 0.6)])
def test_the_smallest_effort_that_is_good_enough_is_chosen_or_the_best(
    tmp_path: Path, efforts: list[int], chosen: int, recall: float
) -> None:
    with closing(Partial(tmp_path)) as store:
        store.fill(build_clusters())
        store.efforts = [*efforts, 20] if recall == 1 else efforts

        ann = build_ann(store, "one", rows=ROWS, dimension=DIMENSION)

    assert ann is not None
    assert ann.effort == chosen
    assert ann.recall == pytest.approx(recall)
    # No search is spent on efforts beyond the one that is good enough.
    assert len(store.searched) == ann.queries * len(efforts)


def test_rows_that_are_as_near_as_the_tenth_count_like_it(store: Store) -> None:
    # Sixty copies of each of fifty vectors: an index may name any ten of them.
    vectors = np.repeat(build_clusters()[:50], 60, axis=0)
    store.fill(vectors)

    ann = build_ann(store, "one", rows=ROWS, dimension=DIMENSION)

    assert ann is not None
    assert ann.recall == 1


def test_zeros_ask_for_nothing(store: Store) -> None:
    vectors = build_clusters()
    vectors[::2] = 0
    store.fill(vectors)

    ann = build_ann(store, "one", rows=ROWS, dimension=DIMENSION)

    assert ann is not None
    assert ann.recall >= 0.95
    assert 0 < ann.queries < 100


def test_few_rows_have_fewer_than_ten_neighbours(store: Store) -> None:
    store.fill(build_clusters()[:4])

    assert list(measure_recall(store, "one", store.sample("one", 50), efforts=[1])) == [1.0]
