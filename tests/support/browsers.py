"""Chromium without a window, for tests of the live page."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

__all__ = ["opened", "start_browser", "watch_problems"]

# Nothing asks the network, and nothing needs a graphics card.
SWITCHES = [
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--no-first-run",
]


@contextmanager
def start_browser() -> Iterator[Browser]:
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    assert path is not None, "`make programs` installs chromium"
    as_root = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=SWITCHES + as_root)
        yield browser
        browser.close()


@contextmanager
def opened(browser: Browser, **options: Any) -> Iterator[BrowserContext]:
    """A profile of its own."""
    context = browser.new_context(**options)
    context.set_default_timeout(15_000)
    try:
        yield context
    finally:
        context.close()


def watch_problems(page: Page) -> list[str]:
    """Return a list that gets what scripts raise and what the content policy refuses."""
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))

    def note(text: str) -> None:
        # An outage is an error of htmx, too.
        if "Content Security Policy" in text or ("htmx" in text and "sse:error" not in text):
            problems.append(text)

    page.on("console", lambda message: note(message.text))
    return problems
