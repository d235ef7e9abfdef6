"""The pipeline from bytes to outcomes, around a real, tiny network: vectors are mean colours."""

from __future__ import annotations

import gc
import hashlib
import io
import itertools
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from embedstream_core.errors import Code, ItemError, Stage, SystemicError, TransientError
from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.pipeline.embedding_cache import EmbeddingCache
from embedstream_core.pipeline.pipeline import Pipeline
from embedstream_core.records import Embedding, Entry, Failure, Item, Media, Outcome
from embedstream_core.settings import DecodeSettings, PipelineLimits
from engines import MeanColour, run_only, start_engine
from probe_format import PATIENCE_S, PROBE_SETTINGS, Decoding, probe, use_probes

SIDE = 4
MODEL_ID = "mean/colour/0123456789ab"
PREPROCESSING = ImagePreprocessing(SIDE, SIDE, "nearest", mean=(0, 0, 0), std=(1, 1, 1))

Fetch = Callable[[str], bytes]

__all__ = ["use_probes"]


def no_fetch(uri: str) -> bytes:
    raise AssertionError(f"'{uri}' was fetched")


class Only:
    """A pipeline of one engine, whose outcomes come alone."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    def run(self, batches: Iterable[Sequence[Entry]]) -> Iterator[list[Outcome]]:
        return run_only(self._pipeline, batches)


def pipeline(
    model: nn.Module | None = None,
    *,
    batch_size: int = 4,
    fetch: Fetch = no_fetch,
    limits: PipelineLimits | None = None,
    decode_settings: DecodeSettings | None = None,
    embedding_cache: EmbeddingCache | None = None,
) -> Only:
    engine = start_engine(
        model or MeanColour(), PREPROCESSING, batch_size=batch_size, model_id=MODEL_ID
    )
    return Only(
        Pipeline(
            [engine],
            fetch=fetch,
            # As many threads on every machine.
            limits=limits or PipelineLimits(decode_threads=1),
            decode_settings=decode_settings or DecodeSettings(),
            embedding_caches=[embedding_cache] if embedding_cache else [],
        )
    )


def png(red: int, size: tuple[int, int] = (SIDE, SIDE)) -> bytes:
    """An image of one colour; its red identifies it."""
    file = io.BytesIO()
    Image.new("RGB", size, (red, 100, 200)).save(file, "PNG")
    return file.getvalue()


def item(red: int) -> Item:
    return Item(str(red), content=png(red))


def reference(red: int) -> Item:
    return Item(str(red), uri=str(red))


def fetch_png(uri: str) -> bytes:
    return png(int(uri))


def red_of(outcome: Outcome) -> int:
    assert isinstance(outcome, Embedding), outcome
    return round(float(outcome.vector[0]) * 255)


def reds_of(batches: Iterable[Sequence[Outcome]]) -> list[list[int]]:
    return [[red_of(outcome) for outcome in outcomes] for outcomes in batches]


def failure_of(outcome: Outcome) -> Failure:
    assert isinstance(outcome, Failure), outcome
    return outcome


def preparing() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("prepare")]


class Drawn(Iterator[list[Item]]):
    """Endless batches of one content, drawn and counted one by one."""

    def __init__(
        self, content: bytes, batch_rows: int = 1, attributes: Mapping[str, str] | None = None
    ) -> None:
        self.batches = 0
        self._batch = [Item("endless", content, attributes=attributes or {})] * batch_rows

    def __next__(self) -> list[Item]:
        self.batches += 1
        return self._batch


# Outcomes.


@pytest.mark.parametrize("batch_size", [1, 2, 4, 64])
@pytest.mark.parametrize(
    "sizes",
    [[], [0], [0, 0], [1], [7], [1, 2, 3], [0, 2, 0, 0, 5, 0], [3, 3, 3]],
    ids=str,
)
def test_every_item_has_its_outcome_in_its_batch(sizes: list[int], batch_size: int) -> None:
    reds = itertools.count()
    batches = [[next(reds) for _ in range(size)] for size in sizes]
    items = [[item(red) for red in batch] for batch in batches]

    outcomes = pipeline(batch_size=batch_size).run(items)

    assert reds_of(outcomes) == batches


def test_an_embedding_has_the_size_and_hash_of_its_image() -> None:
    content = png(51, size=(30, 20))

    ((outcome,),) = pipeline().run([[Item("wide", content=content)]])

    assert isinstance(outcome, Embedding)
    np.testing.assert_allclose(outcome.vector, np.array([51, 100, 200]) / 255, rtol=0, atol=1e-6)
    assert outcome.vector.dtype == np.float32
    assert outcome.media == Media("image/png", width=30, height=20)
    assert outcome.model_id == MODEL_ID
    assert outcome.content_sha256 == hashlib.sha256(content).hexdigest()


def test_a_pipeline_runs_again() -> None:
    once = pipeline()

    assert reds_of(once.run([[item(1)]])) == [[1]]
    assert reds_of(once.run([[item(2), item(3)]])) == [[2, 3]]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [([3, 3, 3], [4, 4, 1]), ([1] * 8, [4, 4]), ([0, 9, 0], [4, 4, 1]), ([2], [2]), ([0], [])],
    ids=str,
)
def test_model_batches_are_cut_across_input_batches(sizes: list[int], expected: list[int]) -> None:
    model = MeanColour()

    outcomes = list(pipeline(model, batch_size=4).run([[item(7)] * size for size in sizes]))

    assert [len(batch) for batch in outcomes] == sizes
    assert model.sizes == expected


def test_failures_take_no_place_in_a_model_batch() -> None:
    model = MeanColour()
    broken = Item("broken", content=b"broken")

    list(pipeline(model, batch_size=2).run([[item(1), broken], [broken, item(2), item(3)]]))

    assert model.sizes == [2, 1]


def test_a_failure_that_comes_in_goes_out() -> None:
    failure = Failure(Code.MESSAGE_MALFORMED, Stage.MESSAGE, "not JSON")

    ((before, middle, after), (alone,)) = pipeline().run([[item(1), failure, item(2)], [failure]])

    assert middle == alone == replace(failure, model_id=MODEL_ID)
    assert (red_of(before), red_of(after)) == (1, 2)


# Bad bytes.


BAD_BYTES = [
    (b"", Code.IMAGE_EMPTY, "no bytes"),
    (b"<html>404 Not Found</html>", Code.IMAGE_UNSUPPORTED, "none of JPEG"),
    (png(9)[:-30], Code.IMAGE_CORRUPT, "cannot be decoded"),
    (png(9, size=(101, 100)), Code.IMAGE_TOO_LARGE, "101x100 pixels"),
    (png(9).ljust(5_001), Code.IMAGE_TOO_LARGE, "5001 bytes"),
]


@pytest.mark.parametrize("batch_size", [1, 2, 8])
@pytest.mark.parametrize(
    ("content", "code", "message"),
    BAD_BYTES,
    ids=["empty", "unsupported", "corrupt", "pixels", "bytes"],
)
def test_bad_bytes_fail_alone(content: bytes, code: Code, message: str, batch_size: int) -> None:
    limits = DecodeSettings(max_bytes=5_000, max_pixels=10_000)
    entries = [item(1), Item("bad", content=content), item(2)]

    ((before, bad, after),) = pipeline(batch_size=batch_size, decode_settings=limits).run([entries])

    failure = failure_of(bad)
    assert (failure.code, failure.stage) == (code, Stage.DECODE)
    assert message in failure.message
    assert failure.content_sha256 == hashlib.sha256(content).hexdigest()
    assert (red_of(before), red_of(after)) == (1, 2)


class Inverse(MeanColour):
    """Black has no inverse: its vector is infinite."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return 1 / super().forward(images)


class Share(MeanColour):
    """Black has no shares: its vector is not a number."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        means = super().forward(images)
        return means / means.sum(1, keepdim=True)


@pytest.mark.parametrize(
    ("model", "norm"), [(MeanColour(), "0.0"), (Inverse(), "inf"), (Share(), "nan")]
)
def test_a_vector_without_a_direction_is_invalid(model: nn.Module, norm: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), "black").save(file, "PNG")
    entries = [item(1), Item("black", content=file.getvalue()), item(2)]

    ((before, black, after),) = pipeline(model).run([entries])

    failure = failure_of(black)
    assert (failure.code, failure.stage) == (Code.EMBEDDING_INVALID, Stage.EMBED)
    assert failure.message == f"the embedding's norm is {norm}"
    assert failure.content_sha256 == hashlib.sha256(file.getvalue()).hexdigest()
    assert isinstance(before, Embedding)
    assert isinstance(after, Embedding)


# References.


def test_references_are_fetched_and_bytes_are_not() -> None:
    fetched: list[str] = []

    def fetch(uri: str) -> bytes:
        fetched.append(uri)
        return fetch_png(uri)

    outcomes = pipeline(fetch=fetch).run([[reference(1), item(2)], [reference(3)]])

    assert reds_of(outcomes) == [[1, 2], [3]]
    assert sorted(fetched) == ["1", "3"]


@pytest.mark.parametrize("kind", [ItemError, TransientError])
def test_an_item_that_cannot_be_fetched_fails_alone(kind: type[ItemError]) -> None:
    def fetch(uri: str) -> bytes:
        if uri == "2":
            raise kind(Code.REFERENCE_TIMEOUT, Stage.FETCH, "no answer within 30 s")
        return fetch_png(uri)

    entries = [reference(1), reference(2), reference(3)]
    ((before, gone, after),) = pipeline(fetch=fetch).run([entries])

    message = "no answer within 30 s"
    assert gone == Failure(Code.REFERENCE_TIMEOUT, Stage.FETCH, message, None, None, MODEL_ID)
    assert (red_of(before), red_of(after)) == (1, 3)


def test_bad_bytes_from_a_reference_have_their_sha256() -> None:
    ((outcome,),) = pipeline(fetch=lambda _: b"<html>").run([[reference(1)]])

    failure = failure_of(outcome)
    assert failure.code == Code.IMAGE_UNSUPPORTED
    assert failure.content_sha256 == hashlib.sha256(b"<html>").hexdigest()


def test_a_late_answer_keeps_its_place() -> None:
    last_is_there = threading.Event()

    def fetch(uri: str) -> bytes:
        if uri == "5":
            last_is_there.set()
        if uri == "1":
            assert last_is_there.wait(PATIENCE_S)
        return fetch_png(uri)

    entries = [[reference(1), reference(2), reference(3)], [reference(4), reference(5)]]

    assert reds_of(pipeline(fetch=fetch, batch_size=2).run(entries)) == [[1, 2, 3], [4, 5]]


def test_fetches_run_side_by_side() -> None:
    limits = PipelineLimits(fetch_threads=8, decode_threads=1)
    together = threading.Barrier(limits.fetch_threads, timeout=PATIENCE_S)

    def fetch(uri: str) -> bytes:
        together.wait()
        return fetch_png(uri)

    entries = [reference(red) for red in range(8)]

    assert reds_of(pipeline(fetch=fetch, limits=limits).run([entries])) == [[*range(8)]]


class Patient(MeanColour):
    """Its first forward pass lasts until the event."""

    def __init__(self, until: threading.Event) -> None:
        super().__init__()
        self.until = until

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        # The engine calls this first to trace it, which has to fail before anything waits.
        assert isinstance(images, torch.Tensor)
        assert self.until.wait(PATIENCE_S)
        return super().forward(images)


def test_the_next_are_fetched_while_the_model_runs() -> None:
    second_is_fetched = threading.Event()

    def fetch(uri: str) -> bytes:
        if uri == "2":
            second_is_fetched.set()
        return fetch_png(uri)

    model = Patient(until=second_is_fetched)
    outcomes = pipeline(model, batch_size=1, fetch=fetch).run([[reference(1)], [reference(2)]])

    assert reds_of(outcomes) == [[1], [2]]


# Errors that no item caused, and the end of a run.


def failing_input() -> Iterator[list[Item]]:
    yield [item(1)]
    raise SystemicError("the input broke")


def failing_fetch(uri: str) -> bytes:
    raise SystemicError("the store is down")


class Broken(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        raise SystemicError("the device is gone")


@pytest.mark.parametrize(
    ("model", "fetch", "batches", "message"),
    [
        (MeanColour(), no_fetch, failing_input, "the input broke"),
        (MeanColour(), failing_fetch, lambda: [[item(1), reference(2)]], "the store is down"),
        (Broken(), no_fetch, lambda: [[item(1)]], "the device is gone"),
    ],
    ids=["input", "fetch", "model"],
)
def test_a_systemic_error_ends_the_run_and_its_threads(
    model: nn.Module, fetch: Fetch, batches: Callable[[], Iterable[list[Item]]], message: str
) -> None:
    broken = pipeline(model, fetch=fetch)

    with pytest.raises(SystemicError, match=message):
        list(broken.run(batches()))

    assert preparing() == []


def test_outcomes_before_a_systemic_error_come_out() -> None:
    limits = PipelineLimits(rows=1)
    outcomes = pipeline(batch_size=1, fetch=failing_fetch, limits=limits).run(
        [[item(1)], [reference(2)]]
    )

    assert reds_of([next(outcomes)]) == [[1]]
    with pytest.raises(SystemicError, match="the store is down"):
        next(outcomes)


def test_a_run_to_the_end_leaves_no_threads() -> None:
    list(pipeline().run([[item(1)], [item(2)]]))

    assert preparing() == []


def test_pixels_are_freed_with_their_outcome() -> None:
    """Not only at the next garbage collection: until then a worker would hold gigabytes."""
    run = pipeline().run([[item(index % 255) for index in range(400)]])
    gc.collect()
    gc.disable()
    try:
        assert len(next(run)) == 400
        assert gc.collect() < 400
    finally:
        gc.enable()


def test_closing_early_leaves_no_threads() -> None:
    outcomes = pipeline(batch_size=1).run(Drawn(png(1)))
    next(outcomes)
    assert preparing() != []

    assert isinstance(outcomes, Generator)
    outcomes.close()

    assert preparing() == []


# Bounds.


def test_endless_input_is_drawn_as_needed() -> None:
    endless = ([item(number % 256)] for number in itertools.count())
    outcomes = pipeline().run(endless)

    assert reds_of(itertools.islice(outcomes, 300))[-3:] == [[41], [42], [43]]


def most_under_way(
    drawn: Drawn,
    limits: PipelineLimits,
    batch_size: int = 1,
    embedding_cache: EmbeddingCache | None = None,
) -> int:
    """Count the batches that were drawn when a batch came out, it and those after it."""
    outcomes = pipeline(batch_size=batch_size, limits=limits, embedding_cache=embedding_cache).run(
        drawn
    )
    return max(drawn.batches - done for done, _ in enumerate(itertools.islice(outcomes, 20)))


@pytest.mark.parametrize("rows", [1, 2, 5, 16])
def test_rows_bound_what_is_read_ahead(rows: int) -> None:
    assert most_under_way(Drawn(png(1)), PipelineLimits(rows=rows)) == rows


def test_rows_are_counted_across_batches() -> None:
    drawn = Drawn(png(1), batch_rows=3)

    # With the third row the first batch ends: rows 3 to 9 are under way, from three batches.
    assert most_under_way(drawn, PipelineLimits(rows=7)) == 3


def test_a_model_batch_does_not_count_as_read_ahead() -> None:
    limits = PipelineLimits(rows=5)

    assert most_under_way(Drawn(png(1)), limits, batch_size=4) == 5 + 4 - 1


@pytest.mark.parametrize("items", [1, 2, 5])
def test_bytes_bound_what_is_read_ahead(items: int) -> None:
    drawn = Drawn(png(1).ljust(1_000, b"\0"))

    # Only the item that exceeds the limit shows that it is reached.
    assert most_under_way(drawn, PipelineLimits(bytes=1_000 * items)) == items + 1


@pytest.mark.parametrize("items", [1, 2, 5])
def test_attributes_are_counted_in_bytes_too(items: int) -> None:
    content = png(1)
    drawn = Drawn(content, attributes={"shop": "4" * (995 - len(content)), "x": ""})

    assert most_under_way(drawn, PipelineLimits(bytes=1_000 * items)) == items + 1


def test_an_item_over_the_byte_limit_is_read_ahead_alone() -> None:
    drawn = Drawn(png(1).ljust(1_000, b"\0"))

    assert most_under_way(drawn, PipelineLimits(bytes=999)) == 1


@pytest.mark.parametrize(
    ("threads", "pixels", "expected"),
    [(1, 10_000, 1), (3, 10_000, 3), (6, 200, 2), (6, 199, 1), (6, 99, 1)],
)
def test_threads_and_pixels_bound_the_decodes_at_once(
    threads: int, pixels: int, expected: int, use_probes: Callable[[Decoding], None]
) -> None:
    decoding = Decoding(parties=expected)
    use_probes(decoding)
    limits = PipelineLimits(decode_threads=threads, pixels=pixels)

    (outcomes,) = pipeline(limits=limits, decode_settings=PROBE_SETTINGS).run([[probe(10, 10)] * 6])

    assert [type(outcome) for outcome in outcomes] == [Embedding] * 6
    assert max(len(together) for together in decoding.seen) == expected


def test_by_default_there_are_as_many_decodes_at_once_as_torch_threads(
    use_probes: Callable[[Decoding], None],
) -> None:
    decoding = Decoding(parties=3)
    use_probes(decoding)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        by_default = pipeline(limits=PipelineLimits(), decode_settings=PROBE_SETTINGS)
        (outcomes,) = by_default.run([[probe(10, 10)] * 6])
    finally:
        torch.set_num_threads(before)

    assert [type(outcome) for outcome in outcomes] == [Embedding] * 6
    assert max(len(together) for together in decoding.seen) == 3


def test_an_image_over_the_pixel_limit_is_decoded_alone(
    use_probes: Callable[[Decoding], None],
) -> None:
    decoding = Decoding()
    use_probes(decoding)
    limits = PipelineLimits(decode_threads=6, pixels=60)
    entries = [probe(4, 5), probe(4, 5), probe(10, 10), probe(4, 5), probe(4, 5)]

    (outcomes,) = pipeline(limits=limits, decode_settings=PROBE_SETTINGS).run([entries])

    assert [type(outcome) for outcome in outcomes] == [Embedding] * 5
    assert [together for together in decoding.seen if 100 in together] == [[100]]
    assert max(sum(together) for together in decoding.seen if 100 not in together) <= 60


def test_an_item_over_the_byte_limit_is_prepared_alone(
    use_probes: Callable[[Decoding], None],
) -> None:
    decoding = Decoding()
    use_probes(decoding)
    limits = PipelineLimits(decode_threads=6, bytes=250)
    entries = [probe(4, 5), probe(10, 10), probe(4, 5)]

    (outcomes,) = pipeline(limits=limits, decode_settings=PROBE_SETTINGS).run([entries])

    assert [type(outcome) for outcome in outcomes] == [Embedding] * 3
    assert [together for together in decoding.seen if 100 in together] == [[100]]


# Images of the same bytes.


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[EmbeddingCache]:
    with EmbeddingCache(tmp_path / "embeddings.sqlite3", entries=100) as opened:
        yield opened


@pytest.fixture
def unusable(tmp_path: Path) -> Iterator[EmbeddingCache]:
    """A file that cannot be opened: nothing is cached."""
    with EmbeddingCache(tmp_path, entries=100) as opened:
        yield opened


def test_without_a_cache_repetitions_are_embedded_again() -> None:
    model = MeanColour()

    assert reds_of(pipeline(model, batch_size=64).run([[item(7)] * 5])) == [[7] * 5]
    assert model.sizes == [5]


@pytest.mark.parametrize("file", ["cache", "unusable"])
@pytest.mark.parametrize("sizes", [[10], [1] * 10, [3, 0, 7]], ids=str)
def test_repetitions_are_decoded_and_embedded_once(
    sizes: list[int],
    file: str,
    use_probes: Callable[[Decoding], None],
    request: pytest.FixtureRequest,
) -> None:
    decoding = Decoding()
    use_probes(decoding)
    model = MeanColour()
    once = pipeline(
        model,
        batch_size=64,
        decode_settings=PROBE_SETTINGS,
        embedding_cache=request.getfixturevalue(file),
    )

    batches = list(once.run([[probe(4, 5)] * size for size in sizes]))

    assert [len(outcomes) for outcomes in batches] == sizes
    assert model.sizes == [1]
    assert decoding.seen == [[20]]
    assert len({id(outcome) for outcomes in batches for outcome in outcomes}) == 1


def test_an_embedding_of_an_earlier_run_is_reused(
    cache: EmbeddingCache, use_probes: Callable[[Decoding], None]
) -> None:
    decoding = Decoding()
    use_probes(decoding)
    model = MeanColour()
    first = pipeline(model, batch_size=2, decode_settings=PROBE_SETTINGS, embedding_cache=cache)
    ((early, _),) = first.run([[probe(4, 5), probe(3, 2)]])
    later = pipeline(model, batch_size=2, decode_settings=PROBE_SETTINGS, embedding_cache=cache)

    ((new, again, new_again),) = later.run([[probe(7, 7), probe(4, 5), probe(7, 7)]])

    assert model.sizes == [2, 1]
    assert sorted(pixels for together in decoding.seen for pixels in together) == [6, 20, 49]
    assert new is new_again
    assert isinstance(early, Embedding)
    assert isinstance(again, Embedding)
    assert again.media == early.media == Media("image/probe", width=4, height=5)
    assert again.content_sha256 == early.content_sha256
    np.testing.assert_array_equal(again.vector, early.vector)


def test_an_image_that_another_process_embedded_after_the_lookup_is_not_embedded_again(
    tmp_path: Path, cache: EmbeddingCache
) -> None:
    other, model = MeanColour(), MeanColour()

    class Interfering(EmbeddingCache):
        """Another process embeds the image as soon as a lookup has not found it."""

        def get(self, content_sha256: str) -> Embedding | None:
            found = super().get(content_sha256)
            if found is None:
                list(pipeline(other, embedding_cache=cache).run([[item(2)]]))
            return found

    with Interfering(tmp_path / "embeddings.sqlite3", entries=100) as same_file:
        assert reds_of(pipeline(model, embedding_cache=same_file).run([[item(2)]])) == [[2]]
    assert (model.sizes, other.sizes) == ([], [1])


def test_an_unusable_cache_changes_no_outcome(unusable: EmbeddingCache) -> None:
    model = MeanColour()
    once = pipeline(model, embedding_cache=unusable)

    assert reds_of(once.run([[item(1), item(2), item(1)]])) == [[1, 2, 1]]
    assert reds_of(once.run([[item(1)]])) == [[1]]
    assert model.sizes == [2, 1]


@pytest.mark.parametrize("rows", [1, 2, 5, 256])
@pytest.mark.parametrize("batch_size", [1, 4, 64])
@pytest.mark.parametrize("file", ["cache", "unusable"])
def test_repetitions_keep_their_places(
    rows: int, batch_size: int, file: str, request: pytest.FixtureRequest
) -> None:
    rng = np.random.default_rng(rows * batch_size)
    batches = [rng.integers(12, size=size).tolist() for size in (30, 0, 1, 17, 40)]
    items = [[item(red) if red % 2 else reference(red) for red in batch] for batch in batches]
    model = MeanColour()
    cache: EmbeddingCache = request.getfixturevalue(file)

    outcomes = pipeline(
        model,
        batch_size=batch_size,
        fetch=fetch_png,
        limits=PipelineLimits(rows=rows),
        embedding_cache=cache,
    ).run(items)

    assert reds_of(outcomes) == batches
    assert file == "unusable" or sum(model.sizes) == 12


def test_the_first_to_arrive_is_embedded_for_an_item_before_it(cache: EmbeddingCache) -> None:
    second_is_there = threading.Event()

    def fetch(uri: str) -> bytes:
        if uri == "late":
            assert second_is_there.wait(PATIENCE_S)
            return png(1)
        if uri == "after":
            second_is_there.set()
        return png(1 if uri == "early" else 2)

    model = MeanColour()
    entries = [Item(uri, uri=uri) for uri in ("late", "early", "after")]

    assert reds_of(pipeline(model, fetch=fetch, embedding_cache=cache).run([entries])) == [
        [1, 1, 2]
    ]
    assert model.sizes == [2]


@pytest.mark.parametrize("rows", [1, 3, 256])
def test_repetitions_of_a_broken_image_share_its_failure(cache: EmbeddingCache, rows: int) -> None:
    broken = Item("broken", content=png(9)[:-30])
    entries = [item(1), *[broken, item(2)] * 20]

    (outcomes,) = pipeline(limits=PipelineLimits(rows=rows), embedding_cache=cache).run([entries])

    assert reds_of([outcomes[::2]]) == [[1] + [2] * 20]
    failures = {failure_of(outcome) for outcome in outcomes[1::2]}
    assert {failure.code for failure in failures} == {Code.IMAGE_CORRUPT}
    assert len(failures) == 1


def test_repetitions_of_an_invalid_embedding_share_its_failure_and_it_is_not_cached(
    cache: EmbeddingCache,
) -> None:
    file = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), "black").save(file, "PNG")
    black = Item("black", content=file.getvalue())
    model = MeanColour()
    once = pipeline(model, embedding_cache=cache)

    ((first, second),) = once.run([[black, black]])
    ((later,),) = once.run([[black]])

    assert failure_of(first).code == Code.EMBEDDING_INVALID
    assert first is second
    assert later == first
    assert model.sizes == [1, 1]


@pytest.mark.parametrize("rows", [1, 2, 5, 16])
def test_repetitions_that_wait_for_the_model_are_bounded(
    unusable: EmbeddingCache, rows: int
) -> None:
    limits = PipelineLimits(rows=rows)

    under_way = most_under_way(Drawn(png(1)), limits, batch_size=64, embedding_cache=unusable)

    assert under_way <= 2 * rows


def test_an_error_among_repetitions_ends_the_run_and_the_next_is_whole(
    cache: EmbeddingCache,
) -> None:
    broken = pipeline(Broken(), embedding_cache=cache)
    with pytest.raises(SystemicError, match="the device is gone"):
        list(broken.run([[item(1), item(1)], [item(1)]]))

    assert preparing() == []
    assert reds_of(pipeline(embedding_cache=cache).run([[item(1), item(1)]])) == [[1, 1]]
