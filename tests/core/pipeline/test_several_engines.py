"""Several encoders at once: fetched and decoded once, an outcome for each in their order."""

from __future__ import annotations

import itertools
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from embedstream_core.engine.engine import Engine
from embedstream_core.errors import Code, ItemError, Stage
from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.media.modality import Sample
from embedstream_core.media.text.preprocessing import TextPreprocessing
from embedstream_core.models.loaded import LoadedModel
from embedstream_core.pipeline.embedding_cache import EmbeddingCache
from embedstream_core.pipeline.pipeline import Pipeline
from embedstream_core.pipeline.steps import Outcomes
from embedstream_core.records import Deletion, Embedding, Entry, Failure, Item, Media
from embedstream_core.settings import Isolation, PipelineLimits
from engines import MeanColour, start_engine
from letters import Letters, SumOfLetters, TwoHalves, letters, word
from pictures import encoded, real_pictures
from probe_format import PATIENCE_S, PROBE_SETTINGS, Decoding, probe, use_probes

__all__ = ["letters", "use_probes"]

CPU = torch.device("cpu")
SMALL = ImagePreprocessing(8, 8, "bilinear", mean=(0, 0, 0), std=(1, 1, 1))
LARGE = ImagePreprocessing(40, 32, "bicubic", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
WORDS = TextPreprocessing(4)
BROKEN = Item("broken", content=encoded(Image.new("RGB", (9, 9)))[:-30])


def of_small(network: nn.Module | None = None, **options: Any) -> Engine:
    return start_engine(network or MeanColour(), SMALL, model_id="small/a/01", **options)


def of_large(network: nn.Module | None = None, **options: Any) -> Engine:
    return start_engine(network or MeanColour(), LARGE, model_id="large/b/02", **options)


def of_words(network: nn.Module | None = None, **options: Any) -> Engine:
    loaded = LoadedModel(network or SumOfLetters(), (WORDS,))
    return Engine.start(loaded, device=CPU, model_id="words/c/03", **options)


def of_both() -> Engine:
    loaded = LoadedModel(TwoHalves(MeanColour()), (SMALL, WORDS))
    return Engine.start(loaded, device=CPU, model_id="both/d/04")


def refuse_fetch(uri: str) -> bytes:
    raise ItemError(Code.REFERENCE_DENIED, Stage.FETCH, f"'{uri}' is denied")


def run(engines: Sequence[Engine], entries: Sequence[Entry], **options: Any) -> list[Outcomes]:
    options = {"fetch": refuse_fetch, **options}
    (outcomes,) = Pipeline(engines, **options).run([entries])
    return outcomes


def models_of(outcomes: Outcomes) -> list[str | None]:
    return [one.model_id for one in outcomes]


def codes_of(outcomes: Outcomes) -> list[Code | None]:
    return [one.code if isinstance(one, Failure) else None for one in outcomes]


def vectors_of(outcomes: Sequence[Outcomes], position: int) -> list[Any]:
    vectors = []
    for entry in outcomes:
        one = entry[position]
        assert isinstance(one, Embedding), one
        vectors.append(one.vector)
    return vectors


# Engines of one modality.


@pytest.mark.parametrize("careful", [False, True], ids=["in process", "in a child"])
@pytest.mark.parametrize("batch_sizes", [(4, 4), (1, 16), (3, 2)])
def test_each_engine_gives_what_it_gives_alone(batch_sizes: tuple[int, int], careful: bool) -> None:
    contents = list(real_pictures().values())[:7]
    items = [Item(str(index), content) for index, content in enumerate(contents)]
    isolation = Isolation() if careful else None
    engines = [of_small(batch_size=batch_sizes[0]), of_large(batch_size=batch_sizes[1])]

    together = run(engines, items, isolation=isolation)

    assert [models_of(one) for one in together] == [["small/a/01", "large/b/02"]] * 7
    for position, engine in enumerate((of_small(batch_size=16), of_large(batch_size=16))):
        alone = run([engine], items, isolation=isolation)
        for found, expected in zip(together, alone, strict=True):
            assert found[position].media == expected[0].media
            assert found[position].content_sha256 == expected[0].content_sha256
        np.testing.assert_allclose(
            vectors_of(together, position), vectors_of(alone, 0), rtol=0, atol=1e-6
        )


@pytest.mark.parametrize("same", [False, True])
def test_an_image_is_fetched_and_decoded_once(
    same: bool, use_probes: Callable[[Decoding], None]
) -> None:
    decoding = Decoding()
    use_probes(decoding)
    fetched: list[str] = []

    def fetch(uri: str) -> bytes:
        fetched.append(uri)
        content = probe(4, 5).content
        assert content is not None
        return content

    engines = [of_small(), of_small() if same else of_large()]
    (outcomes,) = run(engines, [Item("", uri="mine")], fetch=fetch, decode_settings=PROBE_SETTINGS)

    assert codes_of(outcomes) == [None, None]
    assert fetched == ["mine"]
    assert decoding.seen == [[20]]


@pytest.mark.parametrize(
    ("entry", "code", "stage", "media"),
    [
        (BROKEN, Code.IMAGE_CORRUPT, Stage.DECODE, True),
        (Item("denied", uri="x"), Code.REFERENCE_DENIED, Stage.FETCH, False),
        (
            Failure(Code.MESSAGE_MALFORMED, Stage.MESSAGE, "not JSON"),
            Code.MESSAGE_MALFORMED,
            Stage.MESSAGE,
            False,
        ),
    ],
    ids=["decode", "fetch", "message"],
)
def test_a_failure_before_the_engines_is_one_for_each(
    entry: Entry, code: Code, stage: Stage, media: bool
) -> None:
    sound = Item("sound", content=encoded(Image.new("RGB", (9, 9), "red")))

    before, failed, after = run([of_small(), of_large()], [sound, entry, sound])

    assert models_of(failed) == ["small/a/01", "large/b/02"]
    for one in failed:
        assert isinstance(one, Failure)
        assert (one.code, one.stage) == (code, stage)
        assert (one.media is not None) == (one.content_sha256 is not None) == media
    assert codes_of(before) == codes_of(after) == [None, None]


@pytest.mark.parametrize("engines", [[of_small], [of_small, of_large], [of_small, of_words]])
def test_a_deletion_has_one_outcome_whatever_the_engines_are(
    engines: list[Callable[[], Engine]],
) -> None:
    red = Item("red", content=encoded(Image.new("RGB", (9, 9), "red")))

    before, deleted, after = run(
        [start() for start in engines], [red, Deletion("red", {"shop": "42"}), red]
    )

    (outcome,) = deleted
    assert isinstance(outcome, Failure)
    assert (outcome.code, outcome.stage, outcome.model_id) == (Code.DELETED, Stage.MESSAGE, None)
    assert (outcome.media, outcome.content_sha256) == (None, None)
    assert outcome.message
    assert codes_of(before) == codes_of(after)
    assert set(codes_of(before)) == {None}


def test_a_vector_without_a_direction_fails_for_its_engine_alone() -> None:
    # LARGE normalizes black to -1.
    black = Item("black", content=encoded(Image.new("RGB", (9, 9))))

    (outcomes,) = run([of_small(), of_large()], [black])

    assert codes_of(outcomes) == [Code.EMBEDDING_INVALID, None]
    assert models_of(outcomes) == ["small/a/01", "large/b/02"]


# Caches.


@pytest.fixture
def caches(tmp_path: Path) -> Iterator[list[EmbeddingCache]]:
    with (
        EmbeddingCache(tmp_path / "a.sqlite3", entries=100) as first,
        EmbeddingCache(tmp_path / "b.sqlite3", entries=100) as second,
    ):
        yield [first, second]


def test_repeated_bytes_are_decoded_once_and_embedded_once_by_each_engine(
    caches: list[EmbeddingCache], use_probes: Callable[[Decoding], None]
) -> None:
    decoding = Decoding()
    use_probes(decoding)
    small, large = MeanColour(), MeanColour()
    engines = [of_small(small), of_large(large)]
    options = {"decode_settings": PROBE_SETTINGS, "embedding_caches": caches}

    first = run(engines, [probe(4, 5)] * 10, **options)
    again = run(engines, [probe(4, 5)] * 3, **options)

    assert len({id(one) for one in first}) == 1
    assert models_of(first[0]) == models_of(again[0]) == ["small/a/01", "large/b/02"]
    assert (small.sizes, large.sizes) == ([1], [1])
    assert decoding.seen == [[20]]
    for position in (0, 1):
        np.testing.assert_array_equal(
            vectors_of(again, position)[0], vectors_of(first, position)[0]
        )


def test_only_the_engine_without_a_cached_embedding_embeds(caches: list[EmbeddingCache]) -> None:
    items = [
        Item(str(red), content=encoded(Image.new("RGB", (9, 9), (red, 9, 9)))) for red in (40, 80)
    ]
    run([of_small()], items[:1], embedding_caches=caches[:1])
    small, large = MeanColour(), MeanColour()

    outcomes = run([of_small(small), of_large(large)], items, embedding_caches=caches)

    assert (small.sizes, large.sizes) == ([1], [2])
    expected = run([of_small(), of_large()], items)
    for position in (0, 1):
        assert [models_of(one) for one in outcomes] == [["small/a/01", "large/b/02"]] * 2
        np.testing.assert_allclose(
            vectors_of(outcomes, position), vectors_of(expected, position), rtol=0, atol=1e-6
        )


def test_repeated_broken_bytes_share_the_failures_of_all_engines(
    caches: list[EmbeddingCache],
) -> None:
    outcomes = run([of_small(), of_large()], [BROKEN] * 20, embedding_caches=caches)

    assert {tuple(codes_of(one)) for one in outcomes} == {(Code.IMAGE_CORRUPT,) * 2}
    assert {tuple(models_of(one)) for one in outcomes} == {("small/a/01", "large/b/02")}


@pytest.mark.usefixtures("letters")
def test_equal_bytes_of_two_modalities_are_two_contents(tmp_path: Path) -> None:
    items = [Item(kind, RED.content, media_type=kind) for kind in ("image/png", "text/plain")]
    with EmbeddingCache(tmp_path / "both.sqlite3", entries=100) as cache:
        for _ in range(2):
            image, text = (
                run([of_both()], [item], embedding_caches=[cache])[0][0] for item in items
            )
            assert isinstance(image, Embedding)
            assert isinstance(text, Embedding)
            assert (image.media.type, text.media.type) == ("image/png", "text/plain")


# Engines of different modalities.

RED = Item("red", content=encoded(Image.new("RGB", (9, 9), "red")))


@pytest.mark.usefixtures("letters")
def test_each_message_goes_to_the_engines_that_accept_it() -> None:
    engines = [of_small(), of_words(), of_both(), of_large()]
    entries = [RED, Item("plain", content=b"AB"), word("CDEFG"), RED]

    image, plain, declared, last = run(engines, entries)

    assert models_of(image) == models_of(last) == ["small/a/01", "both/d/04", "large/b/02"]
    assert models_of(plain) == models_of(declared) == ["words/c/03", "both/d/04"]
    assert codes_of(image) + codes_of(plain) + codes_of(declared) == [None] * 7
    np.testing.assert_allclose(vectors_of([plain], 0), [[65.5, 2, 1]])
    np.testing.assert_allclose(vectors_of([image], 1), [[1, 0, 0]])


@pytest.mark.usefixtures("letters")
@pytest.mark.parametrize(
    ("entry", "code", "stage", "media"),
    [
        (Item("", content=b"%PDF-1"), Code.MEDIA_UNSUPPORTED, Stage.DECODE, True),
        (Item("", content=b""), Code.MEDIA_EMPTY, Stage.DECODE, False),
        (Item("", uri="x"), Code.REFERENCE_DENIED, Stage.FETCH, False),
        (
            Failure(Code.MESSAGE_MALFORMED, Stage.MESSAGE, "not JSON"),
            Code.MESSAGE_MALFORMED,
            Stage.MESSAGE,
            False,
        ),
    ],
    ids=["unsupported", "empty", "fetch", "message"],
)
def test_what_no_engine_is_chosen_for_is_one_failure_without_a_model(
    entry: Entry, code: Code, stage: Stage, media: bool
) -> None:
    (outcomes,) = run([of_small(), of_words(), of_large()], [entry])

    (failure,) = outcomes
    assert isinstance(failure, Failure)
    assert (failure.code, failure.stage, failure.model_id) == (code, stage, None)
    assert failure.media == (Media("application/octet-stream") if media else None)
    assert (failure.content_sha256 is not None) == (stage == Stage.DECODE)


@pytest.mark.usefixtures("letters")
def test_broken_content_fails_for_the_engines_of_its_modality() -> None:
    image, text = run([of_words(), of_small(), of_large()], [BROKEN, word("boxx")])

    assert models_of(image) == ["small/a/01", "large/b/02"]
    assert codes_of(image) == [Code.IMAGE_CORRUPT] * 2
    assert models_of(text) == ["words/c/03"]
    assert codes_of(text) == [Code.TEXT_MALFORMED]


def test_a_text_for_engines_of_images_alone_is_unsupported_by_each() -> None:
    (outcomes,) = run([of_small(), of_large()], [word("AB")])

    assert codes_of(outcomes) == [Code.MEDIA_UNSUPPORTED] * 2
    assert models_of(outcomes) == ["small/a/01", "large/b/02"]
    assert outcomes[0].media == Media("text/plain")


def test_a_detector_that_fails_fails_the_item_alone(
    letters: Callable[[Letters], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from embedstream_core.pipeline import steps

    def fail(content: bytes) -> str:
        raise ValueError("a bug in the detector")

    monkeypatch.setattr(steps, "detect_type", fail)

    several, declared = run([of_small(), of_words()], [RED, word("AB")])
    (broken,) = run([of_small()], [BROKEN])

    assert codes_of(several) == [Code.INTERNAL_ERROR]
    assert codes_of(declared) == [None]
    assert codes_of(broken) == [Code.IMAGE_CORRUPT]


# Bounds.


class Drawn(Iterator[list[Item]]):
    """A word, then endless images; batches of one are drawn and counted."""

    def __init__(self) -> None:
        self.batches = 0

    def __next__(self) -> list[Item]:
        self.batches += 1
        return [word("RARE") if self.batches == 1 else RED]


@pytest.mark.usefixtures("letters")
@pytest.mark.parametrize("rows", [1, 5, 40])
def test_a_rare_modality_does_not_hold_up_the_others(rows: int) -> None:
    drawn = Drawn()
    pipeline = Pipeline(
        [of_small(batch_size=2), of_words()],
        fetch=refuse_fetch,
        limits=PipelineLimits(rows=rows, decode_threads=1),
    )

    ((first,),) = itertools.islice(pipeline.run(drawn), 1)

    assert models_of(first) == ["words/c/03"]
    # `rows` that are read ahead, and `rows` that pass the word.
    assert drawn.batches <= 2 * rows + 1


@pytest.mark.usefixtures("letters")
def test_read_ahead_rows_do_not_cut_model_batches() -> None:
    network = SumOfLetters()
    limits = PipelineLimits(rows=2, decode_threads=1)

    run([of_words(network, batch_size=16)], [word("AB")] * 16, limits=limits)

    assert network.shapes == [(16, 2)]


class Held:
    """Counts the samples in memory; each is of 800 kB."""

    inflate = 100_000

    def __init__(self) -> None:
        self.most = 0
        self._count = 0
        self._lock = threading.Lock()

    def add(self, sample: Sample) -> None:
        with self._lock:
            self._count += 1
            self.most = max(self.most, self._count)
        # The parts are views; their base ends with the last of them.
        weakref.finalize(sample.parts[0].base, self._remove)

    def _remove(self) -> None:
        with self._lock:
            self._count -= 1


class Slow(SumOfLetters):
    """Takes as long as decoding all that may be decoded ahead."""

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        time.sleep(0.02)
        return super().forward(ids, mask)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_what_is_decoded_ahead_is_bounded(
    batch_size: int, letters: Callable[[Letters], None]
) -> None:
    held = Held()
    letters(Letters(inflate=held.inflate, on_decode=held.add))
    network = Slow()
    limits = PipelineLimits(bytes=4_000_000, rows=64, fetch_threads=2, decode_threads=1)
    engine = of_words(network, batch_size=batch_size)

    outcomes = run([engine], [word("A")] * 100, limits=limits)

    assert [codes_of(one) for one in outcomes] == [[None]] * 100
    # Five wait in order, six in the queue, one for each of three threads, and one is the next.
    assert held.most <= 5 + 6 + 3 + 1
    assert max(shape[0] for shape in network.shapes) == batch_size


def test_closing_early_ends_threads_that_wait_for_room(
    letters: Callable[[Letters], None],
) -> None:
    letters(Letters(inflate=Held.inflate))
    limits = PipelineLimits(bytes=1_000_000, rows=16, fetch_threads=4, decode_threads=1)
    pipeline = Pipeline([of_words(batch_size=1)], fetch=refuse_fetch, limits=limits)
    outcomes = pipeline.run(itertools.repeat([word("A")]))
    next(outcomes)
    closed = threading.Thread(target=outcomes.close)  # type: ignore[attr-defined]

    closed.start()
    closed.join(PATIENCE_S)

    assert not closed.is_alive()
