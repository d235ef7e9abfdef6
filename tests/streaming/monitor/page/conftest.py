from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from browsers import start_browser
from page_server import PageServer
from watched import SettableSource, make_failures, make_pictures


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Of a module, since no event loop can run in its thread meanwhile."""
    with start_browser() as browser:
        yield browser


@pytest.fixture
def served() -> Iterator[PageServer]:
    """A page of a busy stream with pictures and some failures."""
    viewer = make_pictures(12)
    make_failures(viewer)
    server = PageServer(SettableSource(), viewer)
    server.start()
    yield server
    server.stop()
