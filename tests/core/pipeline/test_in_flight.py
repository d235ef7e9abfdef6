"""Model batches in flight: the outcomes are those of one at a time, whatever fails and when."""

from __future__ import annotations

import io
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from embedstream_core.engine.engine import Engine
from embedstream_core.errors import Code, ItemError, Stage, SystemicError
from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.media.text.preprocessing import TextPreprocessing
from embedstream_core.models.loaded import LoadedModel
from embedstream_core.pipeline.embedding_cache import EmbeddingCache
from embedstream_core.pipeline.pipeline import Pipeline
from embedstream_core.pipeline.steps import Outcomes
from embedstream_core.pipeline.watchdog import Watchdog
from embedstream_core.pipeline.work_record import WorkRecord
from embedstream_core.records import Deletion, Embedding, Entry, Failure, Item, Outcome
from embedstream_core.settings import PipelineLimits
from engines import start_engine
from late_forward import LateForward, delay
from letters import Letters, SumOfLetters, TwoHalves, letters, word
from peak import Peak

__all__ = ["letters"]

SMALL = ImagePreprocessing(8, 8, "bilinear", mean=(0, 0, 0), std=(1, 1, 1))
LARGE = ImagePreprocessing(20, 16, "bicubic", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
WORDS = TextPreprocessing(4)
CPU = torch.device("cpu")
LIMITS = PipelineLimits(decode_threads=2)


class Colours(nn.Module):
    """Means of colours, with a step that depends on every pixel; calls `on_pass` first."""

    def __init__(self, on_pass: Callable[[torch.Tensor], None] = lambda images: None) -> None:
        super().__init__()
        self.on_pass = on_pass

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.on_pass(images)
        return torch.cat([images.mean((2, 3)), images.std((2, 3))], 1)


def of_images(
    network: nn.Module | None = None, preprocessing: ImagePreprocessing = SMALL
) -> Engine:
    model_id = f"colours/{preprocessing.crop_px}/01"
    return start_engine(network or Colours(), preprocessing, batch_size=4, model_id=model_id)


def of_words() -> Engine:
    model = LoadedModel(SumOfLetters(), (WORDS,))
    return Engine.start(model, device=CPU, model_id="words/c/03", batch_size=3)


def of_both() -> Engine:
    model = LoadedModel(TwoHalves(Colours()), (SMALL, WORDS))
    return Engine.start(model, device=CPU, model_id="both/d/04", batch_size=5)


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def picture(seed: int) -> Item:
    return Item(str(seed), content=png(seed))


def fetch(uri: str) -> bytes:
    if uri == "gone":
        raise ItemError(Code.REFERENCE_NOT_FOUND, Stage.FETCH, "it is gone")
    return png(int(uri))


def mix_entries(seed: int, count: int) -> list[list[Entry]]:
    """Input batches of images, words, references, repetitions, failures and deletions."""
    draw = random.Random(seed)
    kinds: list[Callable[[], Entry]] = [
        lambda: picture(draw.randrange(1000)),
        lambda: picture(draw.randrange(3)),
        lambda: word("".join(draw.choices("abcdef", k=draw.randint(1, 20)))),
        lambda: word("axxb"),
        lambda: Item("reference", uri=str(draw.randrange(1000))),
        lambda: Item("gone", uri="gone"),
        lambda: Item("broken", content=png(1)[:-30]),
        lambda: Item("empty", content=b""),
        lambda: Failure(Code.MESSAGE_MALFORMED, Stage.MESSAGE, "not JSON"),
        lambda: Deletion("deleted"),
    ]
    weights = [12, 4, 6, 1, 4, 1, 1, 1, 1, 1]
    entries = [draw.choices(kinds, weights)[0]() for _ in range(count)]
    batches: list[list[Entry]] = []
    while entries:
        size = draw.choice([0, 1, 2, 5, 17])
        batches.append(entries[:size])
        entries = entries[size:]
    return batches


def simplify(outcome: Outcome) -> tuple[Any, ...]:
    """Return what can be compared bit by bit."""
    if isinstance(outcome, Embedding):
        return outcome.vector.tobytes(), *astuple(replace(outcome, vector=None))  # type: ignore[arg-type]
    return astuple(outcome)


def run(engines: Sequence[Engine], batches: Sequence[Sequence[Entry]], **options: Any) -> Any:
    options = {"fetch": fetch, "limits": LIMITS, **options}
    found: Iterator[list[Outcomes]] = Pipeline(engines, **options).run(batches)
    return [[tuple(map(simplify, one)) for one in outcomes] for outcomes in found]


def delay_all(engines: Sequence[Engine], in_flight: int) -> list[Engine]:
    return [delay(engine, in_flight)[0] for engine in engines]


@pytest.mark.parametrize("in_flight", [2, 3])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "build",
    [
        lambda: [of_images()],
        lambda: [of_images(), of_images(preprocessing=LARGE)],
        lambda: [of_images(), of_words()],
        lambda: [of_both(), of_images(preprocessing=LARGE), of_words()],
    ],
    ids=["images", "two of images", "images, words", "both, images, words"],
)
def test_outcomes_are_those_of_one_model_batch_at_a_time(
    build: Callable[[], list[Engine]],
    seed: int,
    in_flight: int,
    letters: Callable[[Letters], None],
) -> None:
    letters(Letters())
    batches = mix_entries(seed, 120)
    expected = run(build(), batches)
    assert [len(one) for one in expected] == [len(one) for one in batches]

    assert run(delay_all(build(), in_flight), batches) == expected


def test_as_many_model_batches_are_in_flight_as_allowed() -> None:
    for in_flight in (1, 2, 3):
        engine, late = delay(of_images(), in_flight)

        run([engine], [[picture(seed) for seed in range(30)]])

        assert (late["image"].most, late["image"].unfinished) == (in_flight, 0)


def test_a_batch_in_flight_holds_up_no_more_than_the_limit_of_rows() -> None:
    engine, _ = delay(of_images(), 2)
    taken = 0

    def give() -> Iterator[list[Entry]]:
        nonlocal taken
        yield [picture(seed) for seed in range(4)]
        for _ in range(40):
            taken += 1
            yield [Failure(Code.MESSAGE_MALFORMED, Stage.MESSAGE, "not JSON")]

    limits = PipelineLimits(decode_threads=2, rows=8)
    found = Pipeline([engine], fetch=fetch, limits=limits).run(give())

    assert len(next(found)) == 4
    assert taken < 40
    assert len(list(found)) == 40


def test_no_more_is_fetched_at_a_time_where_threads_wait_for_a_batch_decoder() -> None:
    limits = PipelineLimits(decode_threads=1, fetch_threads=2)
    peak = Peak()

    def fetch_slowly(uri: str) -> bytes:
        with peak.enter():
            time.sleep(0.005)
        return png(int(uri))

    class Refuses:
        def decode(self, jpegs: Sequence[object]) -> list[None]:
            return [None] * len(jpegs)

        def check(self) -> None:
            """Find nothing."""

    pipeline = Pipeline(
        [of_images()], fetch=fetch_slowly, limits=limits, batch_decoder=cast("Any", Refuses())
    )
    items: list[Entry] = [Item(str(each), uri=str(each)) for each in range(60)]

    assert len(next(iter(pipeline.run([items])))) == 60
    assert peak.most <= 3


def test_repetitions_are_shared_and_cached_while_batches_are_in_flight(tmp_path: Path) -> None:
    batches = [[picture(seed % 7) for seed in range(start, start + 5)] for start in range(0, 60, 5)]
    expected = run([of_images()], batches)
    computed: list[int] = []
    network = Colours(lambda images: computed.append(len(images)))

    with EmbeddingCache(tmp_path / "cache", entries=100) as cache:
        engines = delay_all([of_images(network)], 2)
        found = run(engines, batches, embedding_caches=[cache])
        again = run(engines, batches, embedding_caches=[cache])

    assert found == again == expected
    assert sum(computed) == 7


@pytest.mark.parametrize("fits", [1, 2, 3])
def test_memory_that_runs_out_in_the_second_batch_changes_no_vector(fits: int) -> None:
    sizes: list[int] = []

    def fail_after_first(images: torch.Tensor) -> None:
        sizes.append(len(images))
        if len(sizes) > 1 and len(images) > fits:
            raise torch.OutOfMemoryError("too many images")

    batches = [[picture(seed) for seed in range(11)], [picture(11)]]
    expected = run([of_images()], batches)

    (engine,) = delay_all([of_images(Colours(fail_after_first))], 2)

    assert run([engine], batches) == expected
    assert sizes[:3] == [4, 4, 2]


class Broken(Exception):
    """An error that no part of the pipeline knows."""


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RuntimeError("CUDA error: device-side assert triggered"), SystemicError),
        (torch.OutOfMemoryError("not even one fits"), torch.OutOfMemoryError),
        (Broken(), Broken),
    ],
    ids=["the GPU", "memory", "unknown"],
)
def test_a_failure_that_comes_late_ends_the_run_and_loses_nothing(
    error: Exception, kind: type[Exception]
) -> None:
    passes: list[int] = []

    def fail_in_third(images: torch.Tensor) -> None:
        passes.append(len(images))
        if len(passes) >= 3 and not repaired:
            raise error

    repaired = False
    batches = [[picture(seed)] for seed in range(20)]
    expected = run([of_images()], batches)
    (engine,) = delay_all([of_images(Colours(fail_in_third))], 2)
    found: list[list[tuple[Any, ...]]] = []

    def collect() -> None:
        for outcomes in Pipeline([engine], fetch=fetch, limits=LIMITS).run(batches):
            found.append([tuple(map(simplify, one)) for one in outcomes])

    with pytest.raises(kind):
        collect()

    # The two batches before it are whole; nothing of the third or of a later one came out.
    assert found == expected[:8]
    repaired = True
    # Passes that were in flight leave nothing behind in the engine.
    assert run([engine], batches) == expected


def test_a_run_may_be_closed_with_batches_in_flight() -> None:
    engine, late = delay(of_images(), 3)
    batches = [[picture(seed)] for seed in range(30)]
    outcomes = Pipeline([engine], fetch=fetch, limits=LIMITS).run(batches)
    next(outcomes)
    assert late["image"].unfinished == 2

    outcomes.close()  # type: ignore[attr-defined]

    assert run([engine], batches) == run([of_images()], batches)


def test_a_pass_that_hangs_when_it_is_finished_is_reported() -> None:
    reported = threading.Event()

    class Hangs(LateForward):
        def start(self, arrays: Any) -> Any:
            finish = super().start(arrays)

            def hang() -> Any:
                assert reported.wait(60), "the watchdog did not report it"
                return finish()

            return hang

    engine = of_images()
    late = replace(engine, forwards={"image": Hangs(engine.forwards["image"])}, in_flight=2)
    limits = replace(LIMITS, forward_timeout_s=0.2)

    with Watchdog(lambda reason: reported.set()) as watchdog:
        run([late], [[picture(seed) for seed in range(8)]], limits=limits, watchdog=watchdog)

    assert reported.is_set()


class Counting(Watchdog):
    """Counts the forward passes whose time is limited now."""

    def __init__(self) -> None:
        super().__init__()
        self.passes = 0

    @contextmanager
    def watch(self, work: str, *, timeout_s: float) -> Iterator[None]:
        is_pass = work == "a forward pass"
        self.passes += is_pass
        yield
        self.passes -= is_pass


def test_the_time_limit_does_not_run_while_input_is_awaited() -> None:
    engine, late = delay(of_images(), 2)
    watchdog = Counting()
    unfinished: list[int] = []

    def read() -> Iterator[list[Item]]:
        for seed in range(20):
            unfinished.append(late["image"].unfinished)
            assert watchdog.passes == 0
            yield [picture(seed)]

    limits = replace(LIMITS, rows=1)
    pipeline = Pipeline([engine], fetch=fetch, limits=limits, watchdog=watchdog)

    assert len(list(pipeline.run(read()))) == 20
    assert max(unfinished) == 1


def test_seconds_of_forward_passes_include_the_wait_for_their_end() -> None:
    pause_s = 0.05
    pause = threading.Event()
    record = WorkRecord()
    network = Colours(lambda images: (pause.wait(pause_s), None)[1])
    (engine,) = delay_all([of_images(network)], 2)

    run([engine], [[picture(seed) for seed in range(12)]], record=record)

    # Waits may end a little early by their clock.
    assert record.seconds["forward"] >= 3 * pause_s * 0.9
