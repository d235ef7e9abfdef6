"""What the page answers over HTTP."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace
from urllib.parse import quote

import pytest
import requests

from embedstream.config.sections import BulkFilesConfig
from embedstream.monitor.viewer import Preview, Question, RowPosition
from embedstream_core.errors import SetupError
from page_server import PageServer
from watched import MODEL_ID, MemoryViewer

TIMEOUT_S = 30


def get(server: PageServer, path: str) -> requests.Response:
    return requests.get(server.url + path, timeout=TIMEOUT_S)


def memory(server: PageServer) -> MemoryViewer:
    assert isinstance(server.viewer, MemoryViewer)
    return server.viewer


def test_the_page_has_everything_without_a_script(served: PageServer) -> None:
    answer = get(served, "/")

    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "no-store"
    for text in ("Running", "31.6", "most work", "coins-", "image_corrupt", MODEL_ID):
        assert text in answer.text


def test_a_slow_viewer_leaves_placeholders(served: PageServer) -> None:
    memory(served).delay_s = 30
    started = time.monotonic()

    answer = get(served, "/")

    assert time.monotonic() - started < 10
    assert "The newest rows are being read." in answer.text
    # The counts of the stream are there.
    assert "reference_not_found" in answer.text


def test_a_slow_search_leaves_a_placeholder_that_asks_again(served: PageServer) -> None:
    memory(served).search_delay_s = 3

    answer = get(served, "/rows/images/0/0")

    assert answer.status_code == 200
    assert 'hx-get="../../../fragments/neighbours/images/0/0"' in answer.text
    found = get(served, "/fragments/neighbours/images/0/0")
    assert found.text.count('class="tile"') == 11
    assert 'href="../../../rows/' in found.text


def test_a_row_that_is_not_there_says_so(served: PageServer) -> None:
    answer = get(served, "/rows/images/0/999")

    assert answer.status_code == 404
    assert "the table has no row at images, offset 999" in answer.text
    assert get(served, f"/rows/images/0/{2**63}").status_code == 404


def test_a_slash_in_a_topic_is_part_of_its_name(served: PageServer) -> None:
    viewer, position = memory(served), RowPosition("a/b c", 0, 5)
    viewer.cards.append(replace(viewer.cards[0], position=position, image_id="odd"))
    path = f"/rows/{quote('a/b c', safe='')}/0/5"

    assert path.removeprefix("/") in get(served, "/").text
    answer = get(served, path)
    assert answer.status_code == 200
    # The address has four steps, however many slashes the name has.
    assert 'href="../../../static/page.css' in answer.text


def test_previews(served: PageServer) -> None:
    viewer = memory(served)
    viewer.contents[RowPosition("images", 9, 1)] = Preview("text", text="<b>bold</b> \ud800")
    viewer.contents[RowPosition("images", 9, 2)] = Preview("audio", b"RIFF", "audio/wav")

    picture, text, sound, none = (
        get(served, f"/preview/images/{at}") for at in ("0/0", "9/1", "9/2", "9/3")
    )

    assert (picture.headers["Content-Type"], picture.content[:4]) == ("image/png", b"\x89PNG")
    assert text.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert text.text == "<b>bold</b> ?"
    assert (sound.headers["Content-Type"], sound.content) == ("audio/wav", b"RIFF")
    assert (none.status_code, none.text) == (404, "the content is gone")


def test_a_search_passes_on_what_was_chosen(served: PageServer) -> None:
    address = "/search?words=chelsea&model=other%2Fmodel&where=topic+%3D+%27images%27"

    answer = get(served, address)

    assert memory(served).questions == [
        Question(words="chelsea", model_id="other/model", where="topic = 'images'", k=24)
    ]
    assert "1 version behind the table" in answer.text
    assert answer.text.index("chelsea-") < answer.text.index("coins-")


def test_a_refused_search_shows_the_sentence(served: PageServer) -> None:
    memory(served).failure = SetupError("no model of this table takes words")

    assert "no model of this table takes words" in get(served, "/search?words=a").text


def upload(server: PageServer, content: bytes) -> requests.Response:
    files = {"upload": ("cat.jpg", content, "image/jpeg")}
    return requests.post(f"{server.url}/search", files=files, timeout=TIMEOUT_S)


def test_an_upload_is_searched_for(served: PageServer) -> None:
    answer = upload(served, b"chelsea")

    assert answer.status_code == 200
    assert memory(served).questions[0].upload == b"chelsea"
    assert "cat.jpg" in answer.text


@pytest.mark.parametrize(
    ("size", "code", "sentence"),
    [(21 * 2**20, 413, "The file is too large: at most 20 MiB."), (0, 400, "Choose a picture")],
)
def test_an_upload_that_cannot_be_taken(
    served: PageServer, size: int, code: int, sentence: str
) -> None:
    answer = upload(served, bytes(size))

    assert answer.status_code == code
    assert sentence in answer.text
    assert memory(served).questions == []


def test_a_broken_form_is_refused(served: PageServer) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = requests.post(
        f"{served.url}/search", data=b"--b\r\nnonsense", headers=headers, timeout=TIMEOUT_S
    )

    assert answer.status_code == 400


def test_nothing_changes_by_a_request(served: PageServer) -> None:
    for path in ("/", "/rows/images/0/0", "/preview/images/0/0", "/events"):
        for method in ("POST", "PUT", "DELETE", "PATCH"):
            answer = requests.request(method, served.url + path, timeout=TIMEOUT_S)
            assert answer.status_code == 405, (method, path)


def test_a_table_of_files_offers_no_replay(served: PageServer) -> None:
    served.stop()
    served.config = BulkFilesConfig.model_validate({"table": {"path": "/srv/files"}})
    served.start()

    assert "embedstream replay" not in get(served, "/").text
    assert "/srv/files" in get(served, "/").text


def test_a_probe_gets_through_however_many_browsers_listen(served: PageServer) -> None:
    with ExitStack() as opened:
        listening = [
            opened.enter_context(
                requests.get(f"{served.url}/events", stream=True, timeout=TIMEOUT_S)
            ).status_code
            for _ in range(60)
        ]
        assert listening == [200] * 50 + [503] * 10
        assert get(served, "/livez").status_code == 200


def test_rows_are_read_only_while_somebody_looks(served: PageServer) -> None:
    time.sleep(1.5)
    assert not memory(served).asked
    with requests.get(f"{served.url}/events", stream=True, timeout=TIMEOUT_S) as events:
        line = next(events.iter_lines())
        assert line.startswith(b"data: <hx-partial")
    assert memory(served).asked["list_newest"] == 1
