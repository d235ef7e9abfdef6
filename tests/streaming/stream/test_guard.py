"""Too many failures end a stream in a sentence."""

from __future__ import annotations

from collections import Counter

import pytest

from embedstream.config.sections.monitoring import GuardsConfig
from embedstream.stream.guard import FailureGuard
from embedstream.stream.reports import MicroBatchReport
from embedstream.worker.tally import FailedMessage

REPLAY = "embedstream replay stream.yaml --failures"


def report(
    embeddings: int = 0,
    *,
    deleted: int = 0,
    newest: tuple[str, FailedMessage] | None = None,
    **failures: int,
) -> MicroBatchReport:
    return MicroBatchReport(
        batch_id=0,
        messages=0,
        tombstones=0,
        embeddings=embeddings,
        failures=Counter(failures),
        deleted=deleted,
        duration_s=1.0,
        lag=None,
        newest_failures=dict([newest] if newest else []),
    )


def guard(ratio: float | None = 0.5, window: int = 100) -> FailureGuard:
    return FailureGuard(GuardsConfig(max_failure_ratio=ratio, window_rows=window), replay=REPLAY)


def verdicts(found: FailureGuard, *reports: MicroBatchReport) -> list[bool]:
    """Return whether the stream has to stop, after each micro-batch."""
    stops = []
    for one in reports:
        found.add(one)
        stops.append(found.verdict is not None)
    return stops


def test_the_stream_stops_when_more_of_the_window_failed() -> None:
    good, bad = report(40), report(image_corrupt=40)
    # 0 of 40, 40 of 80; 80 of 120.
    assert verdicts(guard(), good, bad, bad) == [False, False, True]


def test_as_many_failures_as_are_allowed_do_not_stop_it() -> None:
    assert verdicts(guard(), report(50, image_corrupt=50)) == [False]
    assert verdicts(guard(ratio=1.0), report(image_corrupt=500)) == [False]


def test_fewer_rows_than_the_window_do_not_stop_it() -> None:
    assert verdicts(guard(), report(image_corrupt=99), report(image_corrupt=1)) == [False, True]


def test_earlier_rows_leave_the_window() -> None:
    """A thousand embeddings do not excuse the failures after them, nor the other way round."""
    assert verdicts(guard(), report(1000), report(image_corrupt=100)) == [False, True]
    bad, good = report(20, image_corrupt=30), report(60)
    assert verdicts(guard(), bad, good, bad, good, bad, good) == [False] * 6


def test_by_default_it_never_stops() -> None:
    assert verdicts(guard(ratio=None), report(image_corrupt=10_000)) == [False]


def test_deletions_do_not_count() -> None:
    assert verdicts(guard(), report(40, deleted=5000)) == [False]
    assert verdicts(guard(), report(image_corrupt=60, deleted=50), report(30)) == [False, False]
    assert verdicts(guard(), report(image_corrupt=100, deleted=5000)) == [True]


def test_the_sentence_says_what_failed_and_what_to_do() -> None:
    found = guard()
    older = FailedMessage(5.0, "images", 1, 9, "older")
    newest = FailedMessage(9.0, "images", 0, 77, "cut\x1b[2J at 12")
    found.add(report(image_corrupt=10, newest=("image_corrupt", newest)))
    codes = {"image_corrupt": 62, "image_empty": 20, "text_empty": 2, "audio_empty": 1}
    found.add(report(10, newest=("image_empty", older), **codes))
    assert found.verdict == (
        "95 of the last 105 rows failed, more than guards.max_failure_ratio 0.5 allows "
        "(72 image_corrupt, 20 image_empty, 2 text_empty, 1 of other codes); the newest is the "
        "message images-0-77: 'cut\\x1b[2J at 12'; correct what sends the messages and start "
        f"again, and embed what failed with `{REPLAY}` once it can be embedded, or raise "
        "guards.max_failure_ratio"
    )


def test_the_first_verdict_stands() -> None:
    found = guard()
    verdicts(found, report(image_corrupt=100))
    first = found.verdict
    assert verdicts(found, report(image_empty=500), report(5000)) == [True, True]
    assert found.verdict == first


@pytest.mark.parametrize("window", [1, 1000])
def test_memory_is_bounded(window: int) -> None:
    found = guard(window=window)
    verdicts(found, *(report(3) for _ in range(5000)))
    assert len(found._window) <= window // 3 + 2


@pytest.mark.parametrize(("ratio", "embeddings"), [(0.5, 0), (None, 3)])
def test_what_has_no_verdict_is_not_kept(ratio: float | None, embeddings: int) -> None:
    found = guard(ratio)
    verdicts(found, *(report(embeddings, deleted=7) for _ in range(10)))
    assert not found._window
