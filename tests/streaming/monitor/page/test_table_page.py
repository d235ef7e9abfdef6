"""The page over a table without a stream: the real viewer, in processes of its own, and no JVM."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Callable
from pathlib import Path

import requests
from PIL import Image

from embedstream.monitor.http.site import open_site
from embedstream.monitor.table_status import ObservedTable
from pictures import real_pictures
from viewed_tables import stream_config, write_files

TIMEOUT_S = 120


def test_a_table_is_shown_with_its_pictures_texts_and_failures(tmp_path: Path) -> None:
    table = write_files(
        tmp_path,
        [
            (real_pictures()["coffee.png"], "image/png"),
            (b"A <b>short</b> text.", "text/plain"),
            (b"<html>", None),
        ],
    )
    config = stream_config(tmp_path, table, monitor={"listen": "127.0.0.1:0"})
    with (
        ObservedTable(config) as source,
        open_site(source, config, config_words="conf/a.yaml") as url,
    ):

        def get(path: str) -> requests.Response:
            return requests.get(url + path, timeout=TIMEOUT_S)

        text = wait_for(lambda: get("/").text, "A &lt;b&gt;short&lt;/b&gt; text.")
        assert "Table only" in text
        assert "embedstream replay conf/a.yaml --code image_unsupported" in text
        assert "preview/images/0/0" in text
        picture = get("/preview/images/0/0")
        assert picture.headers["Content-Type"] == "image/png"
        assert max(Image.open(io.BytesIO(picture.content)).size) == 320
        row = get("/rows/images/0/0").text
        assert "id 0" in re.sub(r"<[^>]*>", "", row)
        assert get("/rows/images/0/99").status_code == 404


def wait_for(read: Callable[[], str], part: str) -> str:
    """Ask until the viewer, which starts at the first request, has given a part of the page."""
    deadline = time.monotonic() + TIMEOUT_S
    while part not in (text := read()):
        assert time.monotonic() < deadline, text
        time.sleep(0.2)
    return text
