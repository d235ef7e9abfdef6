"""The page in a real browser: Chromium, without a window."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from browsers import opened, watch_problems
from drivers import wait_until
from embedstream.monitor.viewer import Card, Preview, RowPosition
from page_server import PageServer
from watched import MODEL_ID, NOW, MemoryViewer, SettableSource, make_status

HOSTILE = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
SVG = "<svg xmlns='http://www.w3.org/2000/svg' onload=\"document.title='owned'\"><script/></svg>"
RIGHT_TO_LEFT = "תמונה של חתול \u202e drawkcab"

expect.set_options(timeout=15_000)

WIDTHS = {"desktop": (1440, 900), "phone": (360, 740)}


@pytest.fixture
def page(browser: Browser, served: PageServer) -> Iterator[Page]:
    """The stream's page, opened. No script may fail, and the policy may refuse nothing."""
    with opened(browser) as context:
        page = context.new_page()
        problems = watch_problems(page)
        page.goto(served.url)
        yield page
        assert problems == []


def change(server: PageServer, **changes: Any) -> None:
    """Let the stream go on."""
    assert isinstance(server.source, SettableSource)
    server.source.status = make_status(**changes)


def memory(server: PageServer) -> MemoryViewer:
    assert isinstance(server.viewer, MemoryViewer)
    return server.viewer


def fail(server: PageServer, **changes: Any) -> Card:
    """Commit a failure."""
    fields: dict[str, Any] = {
        "position": RowPosition("images", 3, 777), "image_id": "fresh.jpg",
        "media_type": "image/jpeg", "code": "decoder_timeout", "stage": "decode",
        "message": "decoding took longer than 10 s", "processed_at": NOW,
    }  # fmt: skip
    card = Card(**{**fields, **changes})
    memory(server).cards.append(card)
    change(server, micro_batch=1204)
    return card


def test_a_watched_stream_changes_by_itself(page: Page, served: PageServer) -> None:
    expect(page.get_by_role("heading", name="Running")).to_be_visible()

    change(served, rows_per_s=77.7, state="failed", reason="Kafka has deleted messages.")

    expect(page.get_by_role("heading", name="Failed")).to_be_visible()
    expect(page.locator("#state")).to_contain_text("Kafka has deleted messages.")
    expect(page.locator("#numbers")).to_contain_text("77.7")


def test_a_failure_appears_and_is_opened(page: Page, served: PageServer) -> None:
    fail(served)

    group = page.locator("details.group", has_text="decoder_timeout")
    expect(group).to_be_visible()
    group.locator("summary").click()
    expect(group).to_contain_text("Decoding took longer than decode.timeout_s.")
    expect(group).to_contain_text("embedstream replay CONFIG --code decoder_timeout")
    group.get_by_role("link", name="images · 3 · 777").click()

    expect(page.get_by_role("heading", name="fresh.jpg")).to_be_visible()
    expect(page.get_by_label("Failure")).to_contain_text("decoding took longer than 10 s")
    expect(page.get_by_label("Failure")).to_contain_text("--offsets images:3:777-777")


def test_what_is_open_and_focused_stays_so_when_the_page_changes(
    page: Page, served: PageServer
) -> None:
    summary = page.locator("details.group", has_text="message_malformed").locator("summary")
    summary.focus()
    page.keyboard.press("Enter")
    page.locator("#kafka-partitions summary").click()
    summary.focus()

    fail(served)

    expect(page.locator("details.group", has_text="decoder_timeout")).to_be_visible()
    expect(page.locator("details.group", has_text="message_malformed")).to_have_attribute(
        "open", ""
    )
    expect(page.locator("#kafka-partitions")).to_have_attribute("open", "")
    expect(summary).to_be_focused()


def test_new_rows_appear_and_a_click_shows_the_neighbours(page: Page, served: PageServer) -> None:
    viewer = memory(served)
    position = RowPosition("images", 0, 5000)
    viewer.contents[position] = viewer.contents[viewer.cards[0].position]
    viewer.cards.append(replace(viewer.cards[0], position=position, image_id="coins-9999.jpg"))
    change(served, micro_batch=1204)

    link = page.locator("#newest .tile a").first
    expect(link).to_have_attribute("title", "coins-9999.jpg")
    assert link.locator("img").evaluate("image => image.decode().then(() => image.naturalWidth)")
    link.click()

    expect(page).to_have_url(f"{served.url}/rows/images/0/5000")
    expect(page.locator("#neighbours .tile a").first).to_have_attribute("title", "coins-0004.jpg")
    expect(page.locator("#neighbours")).to_contain_text("1 version behind the table")


def test_slow_neighbours_come_later(page: Page, served: PageServer) -> None:
    memory(served).search_delay_s = 3
    page.goto(f"{served.url}/rows/images/0/0")

    expect(page.locator("#neighbours")).to_contain_text("has not answered yet")
    expect(page.locator("#neighbours .tile")).to_have_count(11)


def test_search_by_words_and_by_a_file(page: Page, served: PageServer) -> None:
    page.get_by_label("Words to search for").fill("flower")
    page.keyboard.press("Enter")

    expect(page).to_have_url(f"{served.url}/search?words=flower")
    expect(page.locator(".sheet .tile a").first).to_have_attribute("title", "flower-0007.jpg")

    file = {"name": "a.jpg", "mimeType": "image/jpeg", "buffer": b"rocket"}
    page.get_by_label("File, at most 20 MiB").set_input_files(file)  # type: ignore[arg-type]
    page.get_by_role("button", name="Search by the file").click()

    expect(page.get_by_role("heading", name="Nearest rows to a.jpg")).to_be_visible()
    expect(page.locator(".sheet .tile a").first).to_have_attribute("title", "rocket-0011.jpg")


def test_a_file_that_is_too_large_is_refused_in_a_sentence(
    page: Page, served: PageServer, tmp_path: Path
) -> None:
    file = tmp_path / "large.png"
    file.write_bytes(bytes(21 * 2**20))
    page.goto(f"{served.url}/search")
    page.get_by_label("File, at most 20 MiB").set_input_files(file)
    page.get_by_role("button", name="Search by the file").click()

    expect(page.get_by_role("alert")).to_have_text("The file is too large: at most 20 MiB.")


def test_hostile_texts_are_shown_as_texts(page: Page, served: PageServer) -> None:
    viewer = memory(served)
    text, picture = RowPosition("images", 0, 6000), RowPosition("images", 0, 6001)
    hostile = {HOSTILE: HOSTILE, "svg": SVG, "rtl": RIGHT_TO_LEFT, "null": "a\x00b"}
    viewer.contents[text] = Preview("text", text=SVG + HOSTILE)
    viewer.cards.append(
        replace(
            viewer.cards[0], position=text, image_id=HOSTILE, uri=f"javascript:{HOSTILE}",
            media_type="text/plain", attributes=hostile,
        )
    )  # fmt: skip
    viewer.cards.append(
        replace(viewer.cards[0], position=picture, image_id=SVG, media_type="image/svg+xml")
    )
    fail(served, image_id=HOSTILE, message=SVG + HOSTILE, code="image_corrupt")

    expect(page.locator("#newest")).to_contain_text(HOSTILE.rpartition("/")[2])
    expect(page.locator("#newest .excerpt")).to_contain_text(SVG)
    expect(page.locator("#failures .reason").first).to_have_text(SVG + HOSTILE)
    page.goto(f"{served.url}/rows/images/0/6000")
    for value in (HOSTILE, SVG, "a\\x00b", "\\u202e drawkcab"):
        expect(page.locator("dd.value").filter(has_text=value).first).to_be_visible()
    expect(page.locator(".excerpt-long")).to_have_text(SVG + HOSTILE)
    assert page.locator("a[href^='javascript']").count() == 0
    assert page.title() != "owned"
    assert page.locator("main svg[onload], main img[onerror]").count() == 0


def test_a_search_for_markup_shows_it(page: Page, served: PageServer) -> None:
    page.get_by_label("Words to search for").fill(HOSTILE)
    page.keyboard.press("Enter")

    expect(page.locator("q")).to_have_text(HOSTILE)
    assert "owned" not in page.title().removeprefix(HOSTILE[:60])


def test_the_page_reconnects_after_an_outage(page: Page, served: PageServer) -> None:
    notice = page.locator("#connection")
    expect(page.locator("#state")).to_contain_text("Running")
    wait_for(lambda: memory(served).asked["list_newest"] > 0)
    expect(notice).to_be_hidden()

    served.stop()
    expect(notice).to_be_visible()
    expect(notice).to_contain_text("Not connected, retrying")
    time.sleep(1)
    change(served, state="stopping")
    served.start()

    expect(page.get_by_role("heading", name="Stopping")).to_be_visible()
    expect(notice).to_be_hidden()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_it_works_without_a_script(browser: Browser, served: PageServer) -> None:
    fail(served)
    with opened(browser, java_script_enabled=False) as context:
        page = context.new_page()
        page.goto(served.url)
        expect(page.get_by_text("Without JavaScript this page does not update")).to_be_visible()
        expect(page.get_by_role("button", name="Copy")).to_have_count(0)
        change(served, state="stopped")
        page.get_by_role("link", name="Reload it").click()
        expect(page.get_by_role("heading", name="Stopped")).to_be_visible()
        page.locator("#newest .tile a").first.click()
        expect(page.locator("#neighbours .tile")).to_have_count(11)
        page.get_by_label("Words to search for").fill("moon")
        page.keyboard.press("Enter")
        expect(page.locator(".sheet .tile a").first).to_have_attribute("title", "moon-0002.jpg")


def test_a_keyboard_reaches_everything_in_the_order_of_reading(page: Page) -> None:
    seen = []
    for _ in range(60):
        page.keyboard.press("Tab")
        seen.append(
            page.evaluate(
                "(() => { const e = document.activeElement;"
                " const outline = getComputedStyle(e).outlineStyle;"
                " return [e.className || e.tagName, outline, e.getBoundingClientRect().top]; })()"
            )
        )
        if seen[-1][0] == "BODY":
            break
    names = [name for name, _, _ in seen]

    assert names[0] == "skip"
    assert names.index("brand") < names.index("INPUT") < names.index("link-search")
    assert names.count("SUMMARY") >= 3
    assert "position" in names
    assert "copy" in names
    assert all(outline != "none" for name, outline, _ in seen if name != "BODY")


def test_the_skip_link_leads_to_the_content(page: Page) -> None:
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")

    assert page.evaluate("document.activeElement.closest('main') !== null")


def test_a_command_is_copied(browser: Browser, served: PageServer) -> None:
    with opened(browser, permissions=["clipboard-read", "clipboard-write"]) as context:
        page = context.new_page()
        page.goto(served.url)
        page.get_by_role("button", name="Copy the command").first.click()
        # The button says so for a moment only, too short for a busy machine.
        wait_until(
            lambda: (
                page.evaluate("navigator.clipboard.readText()")
                == "embedstream replay CONFIG --code image_corrupt"
            )
        )


def test_the_charts_say_their_values_under_the_pointer(page: Page) -> None:
    slot = page.locator(".slot").nth(60)
    slot.hover()

    expect(page.locator("[data-readout]")).to_contain_text("UTC: ")
    assert page.locator("[data-readout]").text_content() == slot.locator("title").text_content()


def make_odd(server: PageServer) -> None:
    """Add what is hard to lay out: texts, sounds, long names, several models."""
    viewer = memory(server)
    long = "quite-long-name-" * 30
    for offset, (media_type, preview) in enumerate(
        [
            ("text/plain", Preview("text", text="The quick brown fox jumps over the dog. " * 9)),
            ("text/plain", Preview("text", text=RIGHT_TO_LEFT * 9)),
            ("audio/wav", Preview("audio", b"RIFF", "audio/wav")),
        ]
    ):
        position = RowPosition(long[:200], 0, offset)
        viewer.contents[position] = preview
        card = replace(viewer.cards[0], position=position, image_id=long, attributes={long: long})
        viewer.cards.append(replace(card, media_type=media_type, duration_s=3.5))
    model = make_status().models[0]
    models = (model, model.model_copy(update={"model_id": long, "name": "clip"}))
    change(server, models=models, micro_batch=1205, reason=long)


@pytest.mark.parametrize(("scheme", "width"), [("light", "desktop"), ("dark", "phone")])
def test_it_is_accessible(browser: Browser, served: PageServer, width: str, scheme: Any) -> None:
    make_odd(served)
    size = dict(zip(("width", "height"), WIDTHS[width], strict=True))
    text = next(card for card in memory(served).cards if card.media_type == "text/plain")
    row = f"/rows/{text.position.topic}/0/0"
    with opened(browser, viewport=size, color_scheme=scheme) as context:
        page = context.new_page()
        for path in ("/", row, "/rows/images/0/91100", "/search?words=flower", "/rows/none/0/0"):
            page.goto(served.url + path)
            page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
            found = Axe().run(page)
            assert found.violations_count == 0, found.generate_report()
            overflow = page.evaluate(
                "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            )
            assert overflow == 0, path


@pytest.mark.parametrize(
    "changes",
    [
        {"state": "starting", "history": (), "partitions": (), "models": (), "index": None,
         "append_to_commit": None, "micro_batch": None, "last_micro_batch": None, "lag_s": None},
        {"state": "unwatched", "history": (), "partitions": (), "started_at": None},
        {"state": "stopped", "reason": "The stream was stopped by SIGTERM."},
    ],
    ids=lambda changes: changes["state"],
)  # fmt: skip
def test_other_states_are_accessible(
    browser: Browser, served: PageServer, changes: dict[str, Any]
) -> None:
    memory(served).cards.clear()
    change(served, **changes)
    with opened(browser) as context:
        page = context.new_page()
        page.goto(served.url)
        found = Axe().run(page)
        assert found.violations_count == 0, found.generate_report()
        assert page.locator("#history").count() == (changes["state"] != "unwatched")


def test_two_models_can_be_chosen(page: Page, served: PageServer) -> None:
    make_odd(served)
    page.goto(f"{served.url}/rows/images/0/0")
    page.get_by_role("link", name="efficientnet_lite0").click()

    expect(page.locator("#neighbours .tile").first).to_be_visible()
    assert memory(served).questions[-1].model_id == MODEL_ID
