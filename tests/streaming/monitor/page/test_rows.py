"""How the page asks the viewer: seldom, and without waiting for it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from embedstream.monitor.page.feed import Feed
from embedstream.monitor.page.rows import PreviewCache, RecentRows
from embedstream.monitor.viewer import Preview, RowPosition
from embedstream_core.errors import SetupError
from watched import MemoryViewer, make_failures, make_pictures, make_status

FIRST = RowPosition("images", 0, 0)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


async def refresh(rows: RecentRows, **changes: Any) -> bool:
    """Let the rows be read if they want to; return whether they were."""
    task = rows.refresh(make_status(**changes))
    if task is not None:
        await task
    return task is not None


def test_rows_are_read_again_after_a_commit_and_a_pause() -> None:
    async def check() -> None:
        clock, viewer = Clock(), make_pictures(3)
        rows = RecentRows(viewer, PreviewCache(viewer), clock=clock)

        assert await refresh(rows)
        assert not await refresh(rows, micro_batch=1204)
        clock.now += 2
        assert not await refresh(rows)
        assert await refresh(rows, micro_batch=1204)
        clock.now += 29
        assert not await refresh(rows, micro_batch=1204)
        assert viewer.asked["list_newest"] == viewer.asked["list_failures"] == 2
        # The viewer may have answered with what it read before the commit.
        clock.now += 1
        assert await refresh(rows, micro_batch=1204)

    asyncio.run(check())


def test_a_failed_reading_keeps_what_was_read_and_says_so() -> None:
    async def check() -> None:
        clock, viewer = Clock(), make_pictures(3)
        rows = RecentRows(viewer, PreviewCache(viewer), clock=clock)
        await refresh(rows)
        viewer.failure, clock.now = SetupError("the viewer is busy"), clock.now + 2

        assert await refresh(rows, micro_batch=1204)

        assert len(rows.newest.value or ()) == 3
        assert rows.newest.note == "the viewer is busy"

    asyncio.run(check())


def test_a_viewer_that_cannot_answer_is_asked_again_later() -> None:
    async def check() -> None:
        clock, viewer = Clock(), make_pictures(3)
        rows = RecentRows(viewer, PreviewCache(viewer), clock=clock)
        viewer.failure = RuntimeError("<b>secret</b>")

        assert await refresh(rows)
        assert rows.newest.value is None
        assert "secret" not in rows.newest.note
        clock.now += 5
        assert not await refresh(rows)
        viewer.failure, clock.now = None, clock.now + 5
        assert await refresh(rows)
        assert rows.newest.value

    asyncio.run(check())


def test_a_message_with_rows_of_several_models_is_shown_once() -> None:
    async def check() -> None:
        viewer = make_pictures(2)
        viewer.cards += [replace(card, model_id="other") for card in viewer.cards]
        rows = RecentRows(viewer, PreviewCache(viewer))
        await refresh(rows)

        assert [card.image_id for card in rows.newest.value or ()] == [
            viewer.cards[1].image_id,
            viewer.cards[0].image_id,
        ]

    asyncio.run(check())


def test_previews_that_stand_in_the_page_are_made_with_it() -> None:
    async def check() -> None:
        viewer = make_pictures(2)
        make_failures(viewer)
        viewer.cards[0] = replace(viewer.cards[0], media_type="text/plain")
        viewer.contents[FIRST] = Preview("text", text="words")
        previews = PreviewCache(viewer)
        await refresh(RecentRows(viewer, previews))

        found = previews.find(FIRST)
        assert found is not None
        assert found.text == "words"
        assert viewer.asked["preview"] == 1 + 4

    asyncio.run(check())


def test_a_preview_is_made_once_for_all_who_want_it_and_old_ones_are_dropped() -> None:
    async def check() -> None:
        viewer = MemoryViewer(delay_s=0.01)
        positions = [RowPosition("images", 0, offset) for offset in range(4)]
        viewer.contents = {one: Preview("image", bytes(1000), "image/png") for one in positions}
        previews = PreviewCache(viewer, max_bytes=3000)

        await asyncio.gather(*(previews.get(positions[0]) for _ in range(5)))
        assert viewer.asked["preview"] == 1
        for one in positions:
            await previews.get(one)
        assert [previews.find(one) is None for one in positions] == [True, True, False, False]

    asyncio.run(check())


def test_what_cannot_be_shown_is_tried_again_later() -> None:
    async def check() -> None:
        clock, viewer = Clock(), MemoryViewer()
        previews = PreviewCache(viewer, clock=clock)

        assert (await previews.get(FIRST)).note == "the content is gone"
        viewer.contents[FIRST] = Preview("text", text="here")
        assert (await previews.get(FIRST)).kind == "none"
        clock.now += 60
        assert (await previews.get(FIRST)).text == "here"
        clock.now += 600
        assert (await previews.get(FIRST)).text == "here"
        assert viewer.asked["preview"] == 2

    asyncio.run(check())


def test_somebody_who_goes_away_ends_no_other_wait() -> None:
    async def check() -> None:
        viewer = make_pictures(1)
        viewer.delay_s = 0.05
        previews = PreviewCache(viewer)
        first, second = (asyncio.create_task(previews.get(FIRST)) for _ in range(2))
        await asyncio.sleep(0.01)
        first.cancel()

        assert (await second).kind == "image"
        assert viewer.asked["preview"] == 1

    asyncio.run(check())


def test_events_have_what_changed_and_all_listeners_share_a_rendering() -> None:
    async def check() -> None:
        fragments = {"state": "one", "newest": "a\rb\nc"}
        renderings = 0

        def render() -> dict[str, str]:
            nonlocal renderings
            renderings += 1
            return dict(fragments)

        feed = Feed(render, interval_s=0.05)
        first, second = feed.listen(), feed.listen()
        events = [[await anext(one) for _ in range(2)] for one in (first, second)]
        assert events[0] == events[1]
        assert renderings == 1
        assert all(line.startswith("data: ") for line in events[0][1].split("\n") if line)
        fragments["state"] = "two"
        for one in (first, second):
            assert ">two</hx-partial>" in await anext(one)
            await one.aclose()  # type: ignore[attr-defined]
        before = renderings
        await asyncio.sleep(0.2)
        assert renderings <= before + 1

    asyncio.run(check())
