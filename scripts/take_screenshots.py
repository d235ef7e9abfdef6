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
    """Return a PNG of the page's first screen; its photos have at most 256 colours."""
    page = browser.new_page(viewport={"width": 1440, "height": 960}, color_scheme=scheme)
    page.goto(url)
    page.wait_for_selector("#newest img")
    loaded = "[...document.querySelectorAll('#newest img')].every(image => image.complete)"
    # The page's policy refuses what wait_for_function does; rows may be replaced at any time.
    for _ in range(100):
        if page.evaluate(loaded):
            break
        page.wait_for_timeout(100)
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    box = page.locator("#newest").bounding_box()
    page.close()
    assert box is not None
    place = int(box["x"]), int(box["y"])
    end = int(box["x"] + box["width"]), min(int(box["y"] + box["height"]), picture.height)
    photos = picture.crop((*place, *end)).quantize(256, dither=Image.Dither.NONE)
    picture.paste(photos.convert("RGB"), place)
    data = io.BytesIO()
    picture.save(data, "PNG", optimize=True)
    return data.getvalue()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python scripts/take_screenshots.py URL")
    main(sys.argv[1])
