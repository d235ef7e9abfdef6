"""The whole way: a topic, a running stream, its table, the viewer's processes, and a browser."""

from __future__ import annotations

import re
import signal
import subprocess
import threading
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from browsers import opened, watch_problems
from drivers import running
from embedstream.kafka.produce import OutgoingMessage
from pictures import real_pictures
from small import shrink, write_config
from streams import Topic, image

SCENES = ["chelsea.png", "coffee.png", "rocket.jpg", "flower.jpg"]
TEXTS = {
    "recipe": "Whisk the eggs with sugar and bake the cake for half an hour.",
    "engine": "The engine of the old motorcycle would not start in the cold.",
    "rates": "The central bank raised interest rates to slow inflation.",
}
HOSTILE = "<img src=x onerror=alert(1)>"
# A start, and the first search, which loads torch and a model, on a machine with other work.
PATIENCE_MS = 120_000


@pytest.mark.timeout(400)
def test_a_running_stream_is_watched_and_searched(
    browser: Browser, topic: Topic, tmp_path: Path
) -> None:
    config = write_config(
        topic,
        tmp_path,
        monitor={"listen": "127.0.0.1:0"},
        encoders=[{"name": "efficientnet_lite0"}, {"name": "minilm"}],
    )
    topic.send(image(name, real_pictures()[name], note=HOSTILE) for name in SCENES)
    topic.send(OutgoingMessage(name, text.encode()) for name, text in TEXTS.items())
    with running(config) as driver, opened(browser, viewport={"width": 1440, "height": 900}) as one:
        one.set_default_timeout(PATIENCE_MS)
        page = one.new_page()
        problems = watch_problems(page)
        url = find_url(driver)
        page.goto(url)
        tiles = page.locator("#newest .tile")
        expect(tiles).to_have_count(7, timeout=PATIENCE_MS)
        expect(page.locator("#state")).to_contain_text(re.compile("Running|Idle"))
        expect(page.locator("#flow")).to_contain_text(topic.name)

        # A failure appears while the page is open, and is opened.
        topic.send([image("cut.jpg", real_pictures()["rocket.jpg"][:4000])])
        link = page.locator("#failures-image_corrupt .position")
        expect(link).to_be_visible(timeout=PATIENCE_MS)
        expect(page.locator("#failures")).to_contain_text(f"embedstream replay {config}")
        link.click()
        expect(page.get_by_role("heading", name="cut.jpg")).to_be_visible()

        # A picture that was never sent finds the scene; words find the text.
        page.goto(f"{url}/search")
        crop = shrink(real_pictures()["coffee.png"])
        file = {"name": "mine.jpg", "mimeType": "image/jpeg", "buffer": crop}
        page.get_by_label("File, at most 20 MiB").set_input_files(file)  # type: ignore[arg-type]
        page.get_by_role("button", name="Search by the file").click()
        first = page.locator(".sheet .tile a").first
        expect(first).to_have_attribute("title", "coffee.png", timeout=PATIENCE_MS)
        expect(page.locator(".legend")).to_contain_text("compared all rows of the table")
        page.goto(f"{url}/search?words=how+to+make+a+dessert")
        expect(first).to_have_attribute("title", "recipe", timeout=PATIENCE_MS)

        # A row: its content, its attributes as text, its neighbours.
        page.goto(f"{url}/")
        page.locator("#newest .tile a[title='chelsea.png']").click()
        expect(page.locator("dd.value").filter(has_text=HOSTILE)).to_be_visible()
        assert page.locator(".content img").evaluate("one => one.decode().then(() => one.width)")
        expect(page.locator("#neighbours .tile")).to_have_count(3, timeout=PATIENCE_MS)
        assert problems == []
        driver.send_signal(signal.SIGTERM)
        assert driver.wait(90) == 0


def find_url(driver: subprocess.Popen[str]) -> str:
    """Read the address from what the driver prints; read on, so that it can print."""
    assert driver.stdout is not None
    lines = []
    for line in driver.stdout:
        lines.append(line)
        found = re.search(r"monitor: (http://\S+)", line)
        if found is not None:
            threading.Thread(target=driver.stdout.read, daemon=True).start()
            return found[1]
    raise AssertionError("".join(lines))
