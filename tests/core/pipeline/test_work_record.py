"""The seconds of each stage and the cache hits are those of the work."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from PIL import Image

from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.pipeline.embedding_cache import EmbeddingCache
from embedstream_core.pipeline.pipeline import Pipeline
from embedstream_core.pipeline.work_record import WorkRecord
from embedstream_core.records import Entry, Item
from embedstream_core.settings import Isolation, PipelineLimits
from engines import MeanColour, run_only, start_engine
from probe_format import PROBE_SETTINGS, Decoding, probe, use_probes

__all__ = ["use_probes"]

PREPROCESSING = ImagePreprocessing(4, 4, "nearest", mean=(0, 0, 0), std=(1, 1, 1))
PAUSE_S = 0.05


def png(red: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (red, 100, 200)).save(file, "PNG")
    return file.getvalue()


def items(*reds: int) -> list[Item]:
    return [Item(str(red), content=png(red)) for red in reds]


class SlowColour(MeanColour):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        time.sleep(PAUSE_S)
        return super().forward(images)


def fetch_slowly(uri: str) -> bytes:
    time.sleep(PAUSE_S)
    if uri == "broken":
        raise RuntimeError("no such thing")
    return png(int(uri))


def pipeline(**options: object) -> Pipeline:
    engine = start_engine(SlowColour(), PREPROCESSING, batch_size=2, model_id="mean/colour/0")
    defaults = {"fetch": fetch_slowly, "limits": PipelineLimits(decode_threads=1)}
    return Pipeline([engine], **{**defaults, **options})  # type: ignore[arg-type]


def run(work: Pipeline, *batches: Sequence[Entry]) -> WorkRecord:
    assert len(list(run_only(work, batches))) == len(batches)
    return work.record


def test_fetch_and_forward_are_measured_over_all_threads() -> None:
    entries = [Item(uri, uri=uri) for uri in ("1", "2", "3", "broken")]

    record = run(pipeline(), entries)

    # Four fetches at a time; two forward passes, one after the other.
    assert record.seconds["fetch"] >= 4 * PAUSE_S
    assert record.seconds["forward"] >= 2 * PAUSE_S
    assert record.seconds["wait"] > 0
    assert record.seconds["decode"] > 0
    assert record.cache_hits == 0


def test_input_is_waited_for() -> None:
    def come_late() -> Iterator[Sequence[Entry]]:
        for red in (1, 2):
            time.sleep(PAUSE_S)
            yield items(red)

    work = pipeline()
    list(run_only(work, come_late()))
    assert work.record.seconds["wait"] >= 2 * PAUSE_S
    assert "fetch" not in work.record.seconds


def test_the_wait_for_a_turn_to_decode_is_not_decoding(
    use_probes: Callable[[Decoding], None],
) -> None:
    """Eight threads of which one decodes at a time; a decode of the probe takes 30 ms."""
    use_probes(Decoding())
    started = time.perf_counter()
    record = run(pipeline(decode_settings=PROBE_SETTINGS), [probe(4, 4 + n) for n in range(8)])
    passed = time.perf_counter() - started
    assert 8 * 0.03 <= record.seconds["decode"] <= passed * 1.1


def test_the_sandbox_is_measured() -> None:
    record = run(pipeline(isolation=Isolation()), items(1, 2, 3))
    # The start of the child alone takes so long.
    assert record.seconds["decode"] > 0.05


@pytest.mark.parametrize("careful", [False, True])
def test_embeddings_that_are_not_computed_are_cache_hits(tmp_path: Path, careful: bool) -> None:
    with EmbeddingCache(tmp_path / "embeddings.sqlite3", entries=100) as cache:
        work = pipeline(embedding_caches=[cache], isolation=Isolation() if careful else None)
        bad = Item("bad", content=b"no image")
        # Two repetitions in progress; a failure that is shared is no embedding.
        record = run(work, [*items(1, 1, 2, 1), bad, bad])
        assert record.cache_hits == 2
        # All from the cache.
        run(work, items(1, 2))
        assert record.cache_hits == 4


def test_threads_share_a_record() -> None:
    record = WorkRecord()
    ready = threading.Barrier(8)

    def work(_: int) -> None:
        ready.wait()
        for _ in range(2000):
            record.add_seconds("decode", 1.0)
            record.add_cache_hits(1)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert record.seconds == {"decode": 16_000.0}
    assert record.cache_hits == 16_000
