"""Take the two pictures of the live page that the README shows.

Start a stream with a page, such as `make demo KEEP=1`, and give the page's address.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
from pathlib import Path
from typing import Literal

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

FOLDER = Path(__file__).parents[1] / "docs"
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")


def main(url: str) -> None:
    """Write docs/page-light.png and docs/page-dark.png."""
    switches = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=switches
        )
        for scheme in SCHEMES:
            path = FOLDER / f"page-{scheme}.png"
            path.write_bytes(take(browser, url, scheme=scheme))
            print(f"{path}: {path.stat().st_size // 1000} kB")
        browser.close()


def take(browser: Browser, url: str, *, scheme: Literal["light", "dark"]) -> bytes:
    """Return a PNG of the page's first screen, with at most 256 colours."""
    page = browser.new_page(viewport={"width": 1440, "height": 960}, color_scheme=scheme)
    page.goto(url)
    page.wait_for_selector("#newest img")
    page.evaluate("Promise.all([...document.images].map(image => image.decode()))")
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    page.close()
    data = io.BytesIO()
    picture.quantize(256, dither=Image.Dither.NONE).save(data, "PNG", optimize=True)
    return data.getvalue()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python scripts/take_screenshots.py URL")
    main(sys.argv[1])
