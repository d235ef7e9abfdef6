"""The viewer's processes: what happens to them touches neither the driver nor later requests."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from config_files import SECRET
from drivers import started, wait_until
from embedstream.config.sections import KafkaConfig, StreamConfig
from embedstream.monitor.viewer import Question, Viewer
from embedstream.monitor.viewing.lane import Lane
from embedstream.monitor.viewing.process import MAX_UPLOAD_BYTES, ViewerLimits, open_viewer
from embedstream.monitor.viewing.wire import read_answer
from embedstream_core.errors import SetupError
from fetch_places import Site, open_site
from outcome_tables import write_table
from viewed_tables import at, made, stream_config

DRIVER = """
import asyncio, sys, time
from embedstream.config.sections import KafkaConfig, StreamConfig
from embedstream.monitor.viewer import RowPosition
from embedstream.monitor.viewing.process import open_viewer
viewer = open_viewer(StreamConfig.model_validate_json(sys.argv[1]))
async def ask():
    await viewer.list_newest()
    await viewer.preview(RowPosition("images", 0, 1))
    await viewer.preview(RowPosition("images", 0, 0))
asyncio.run(ask())
"""
SLOW, QUICK = 0, 1


@pytest.fixture
def site() -> Iterator[Site]:
    """A web server whose page `slow` does not answer."""
    with open_site() as site:
        site.pages["/slow"] = lambda visit: visit.stall()
        site.show("/quick", b"quick")
        yield site


@pytest.fixture
def config(tmp_path: Path, site: Site) -> StreamConfig:
    """A table with a reference to a slow page, one to a quick page, and a file."""
    text = {"type": "text/plain"}
    rows = [
        made(SLOW, uri=f"{site.url}/slow", media=text),
        made(QUICK, uri=f"{site.url}/quick", media=text),
    ]
    return stream_config(
        tmp_path,
        write_table(tmp_path, rows),
        references={
            "schemes": ["http"],
            "hosts": [f"127.0.0.1:{site.port}"],
            "networks": ["127.0.0.1/32"],
        },
    )


@pytest.fixture
def view() -> Iterator[Callable[..., Viewer]]:
    opened: list[Viewer] = []

    def open_(config: StreamConfig, **limits: Any) -> Viewer:
        opened.append(open_viewer(config, limits=ViewerLimits(**limits)))
        return opened[-1]

    yield open_
    for one in opened:
        one.close()
    assert children_of(os.getpid()) == []


def children_of(pid: int) -> list[psutil.Process]:
    """Return the viewer's processes; one that ended and was not waited for is not among them."""
    found = []
    for child in psutil.Process(pid).children():
        try:
            command = child.cmdline()
        except (psutil.ZombieProcess, psutil.NoSuchProcess):
            continue
        if "embedstream.monitor.viewing.child" in command:
            found.append(child)
    return found


def only_child() -> psutil.Process:
    [child] = children_of(os.getpid())
    return child


async def note(viewer: Viewer, offset: int) -> str:
    """Return what a preview says, or the sentence of its error."""
    try:
        preview = await viewer.preview(at(offset))
    except SetupError as error:
        return str(error)
    return preview.text or preview.note


def test_processes_start_with_the_first_request_at_a_low_priority(
    config: StreamConfig, view: Callable[..., Viewer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PASSWORD", SECRET)
    options = {"kafka.ssl.key.password": "env:PASSWORD"}
    given = {**config.kafka.model_dump(exclude_defaults=True), "options": options}
    kafka = KafkaConfig.model_validate(given)
    monkeypatch.delenv("PASSWORD")
    viewer = view(config.model_copy(update={"kafka": kafka}))
    assert children_of(os.getpid()) == []

    cards = asyncio.run(viewer.list_newest())

    assert [card.position for card in cards] == [at(QUICK), at(SLOW)]
    child = only_child()
    assert child.nice() == min(19, psutil.Process().nice() + 10)
    # Workers may share the machine, and its GPU is theirs.
    environment = child.environ()
    assert environment["OMP_NUM_THREADS"] == "1"
    assert environment["CUDA_VISIBLE_DEVICES"] == ""
    assert SECRET not in " ".join([*child.cmdline(), *environment.values()])
    # Another event loop, and the same process.
    assert asyncio.run(viewer.find_card(at(QUICK))).image_id == "id 1"
    assert only_child() == child


def test_a_killed_process_costs_one_request(
    config: StreamConfig, site: Site, view: Callable[..., Viewer]
) -> None:
    viewer = view(config)

    async def ask() -> None:
        slow = asyncio.create_task(note(viewer, SLOW))
        waiting = asyncio.create_task(note(viewer, QUICK))
        while "/slow" not in site.requests:
            await asyncio.sleep(0.02)
        only_child().kill()
        assert await slow == "the viewer's process ended by SIGKILL; try it again"
        assert await waiting == "quick"

    asyncio.run(ask())


def test_a_request_that_takes_too_long_ends_and_holds_up_only_its_lane(
    config: StreamConfig, site: Site, view: Callable[..., Viewer]
) -> None:
    viewer = view(config, request_s=3.0)

    async def ask() -> None:
        # A process may take as long to start, on a machine that has other work.
        while await note(viewer, QUICK) != "quick":
            pass
        with suppress(SetupError):
            await viewer.list_newest()
        slow = asyncio.create_task(note(viewer, SLOW))
        while "/slow" not in site.requests:
            await asyncio.sleep(0.02)
        await viewer.list_newest()
        assert not slow.done()
        assert await slow == "this took longer than 3 s and was ended; try it again later"
        while await note(viewer, QUICK) != "quick":
            pass

    asyncio.run(ask())


def test_few_requests_wait_and_one_that_is_given_up_is_not_begun(
    config: StreamConfig, site: Site, view: Callable[..., Viewer]
) -> None:
    viewer = view(config, waiting=2)

    async def ask() -> None:
        slow = asyncio.create_task(note(viewer, SLOW))
        while "/slow" not in site.requests:
            await asyncio.sleep(0.02)
        first, second = (asyncio.create_task(note(viewer, QUICK)) for _ in range(2))
        await asyncio.sleep(0)
        refused = "the viewer is busy with other requests; try it again in a moment"
        assert await note(viewer, QUICK) == refused
        second.cancel()
        site.closing.set()
        assert await first == "quick"
        assert "reference" in await slow
        assert site.requests.count("/quick") == 1

    asyncio.run(ask())


def test_an_idle_process_ends_and_the_next_request_starts_another(
    config: StreamConfig, view: Callable[..., Viewer]
) -> None:
    viewer = view(config, idle_s=0.5)
    asyncio.run(viewer.list_newest())
    wait_until(lambda: not children_of(os.getpid()), timeout_s=20)
    assert len(asyncio.run(viewer.list_newest())) == 2


def test_a_closed_viewer_answers_with_a_sentence(
    config: StreamConfig, site: Site, view: Callable[..., Viewer]
) -> None:
    viewer = view(config)

    async def ask() -> None:
        slow = asyncio.create_task(note(viewer, SLOW))
        while "/slow" not in site.requests:
            await asyncio.sleep(0.02)
        waiting = asyncio.create_task(note(viewer, QUICK))
        await asyncio.sleep(0)
        await asyncio.to_thread(viewer.close)
        assert "ended by SIGKILL" in await slow
        assert "the viewer is closed" in await waiting
        assert "the viewer is closed" in await note(viewer, QUICK)

    asyncio.run(ask())


def test_processes_end_with_a_driver_that_is_killed(config: StreamConfig, site: Site) -> None:
    """One waits for requests, one for a page."""
    given = json.dumps(config.model_dump(mode="json"))
    with started([sys.executable, "-c", DRIVER, given]) as driver:
        wait_until(lambda: "/slow" in site.requests, driver=driver, timeout_s=60)
        children = children_of(driver.pid)
        assert len(children) == 2
        driver.kill()
        driver.wait()
        wait_until(lambda: not any(map(psutil.Process.is_running, children)), timeout_s=10)


@pytest.mark.parametrize(
    ("question", "sentence"),
    [
        (Question(upload=b"x" * (MAX_UPLOAD_BYTES + 1)), "has 20971521 bytes, and a search takes"),
        (Question(words="x" * 10_001), "words has 10001 characters"),
        (Question(words="x", where="x" * 10_001), "where has 10001 characters"),
    ],
)
def test_what_is_too_large_is_refused_without_a_process(
    config: StreamConfig, view: Callable[..., Viewer], question: Question, sentence: str
) -> None:
    with pytest.raises(SetupError, match=sentence):
        asyncio.run(view(config).search(question))
    assert children_of(os.getpid()) == []


@pytest.mark.parametrize(
    "answer", [b"", b"=", b"={}", b'=[{"kind": "image"}]', b"?Traceback\nValueError: broken", b"x"]
)
def test_an_answer_that_is_none_is_a_sentence(
    answer: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(SetupError, match=r"the viewer cannot answer this: .*driver's log"):
        read_answer("list_newest", answer)
    assert "the viewer's process failed at list_newest" in caplog.text


@pytest.mark.parametrize("kind", [b"!", b"?Traceback\nOSError: "])
def test_a_sentence_is_without_secrets(kind: bytes) -> None:
    with pytest.raises(SetupError, match=r"https://\[redacted\]@host"):
        read_answer("list_newest", kind + b"cannot open https://user:secret@host")


def test_an_answer_that_is_too_long_ends_the_process(
    config: StreamConfig, view: Callable[..., Viewer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not read into the driver's memory."""
    monkeypatch.setattr("embedstream.monitor.viewing.lane._ANSWER_BYTES", 100)
    viewer = view(config)
    with pytest.raises(SetupError, match="the viewer's process ended by SIGKILL"):
        asyncio.run(viewer.list_newest())
    assert children_of(os.getpid()) == []


def test_a_defect_in_a_process_is_logged_and_the_process_goes_on(
    config: StreamConfig, caplog: pytest.LogCaptureFixture
) -> None:
    lane = Lane(config, config_words="CONFIG", limit_s=30, waiting=2, idle_s=60)
    try:
        with pytest.raises(SetupError, match="cannot answer this: AttributeError: 'Rows' object"):
            asyncio.run(lane.ask("unheard_of"))
        assert "Traceback" in caplog.text
        child = only_child()
        start = time.monotonic()
        assert len(asyncio.run(lane.ask("list_newest", 5))) == 2
        assert time.monotonic() - start < 20
        assert only_child() == child
    finally:
        lane.close()
