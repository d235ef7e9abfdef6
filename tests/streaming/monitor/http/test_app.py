"""What the driver answers over HTTP, and to whom."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

import psutil
import pytest
import requests
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open
from prometheus_client.parser import text_string_to_metric_families as parse_text
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from embedstream.config.sections.monitoring import MonitorConfig
from embedstream.monitor.http.app import build_app
from embedstream.monitor.http.gate import SECURITY_HEADERS
from embedstream.monitor.http.server import open_server
from embedstream.monitor.metrics import METRICS
from embedstream.monitor.status import IndexStatus, ModelStatus, PartitionStatus, Status
from embedstream_core.errors import MissingExtra, SetupError

Serve = Callable[..., str]

PATHS = ["/metrics", "/livez", "/readyz", "/api/status", "/nowhere"]
TOKEN = "a-token-that-nobody-guesses"


def get(url: str, **arguments: Any) -> requests.Response:
    return requests.get(url, timeout=10, **arguments)


def test_prometheus_can_read_what_is_served(serve: Serve, source: Any) -> None:
    hostile = 'a"b\\c\n{}'
    source.change(
        partitions=(PartitionStatus(topic=hostile, partition=3, read=1, end=5, lag=4, margin=1),),
        models=(ModelStatus(model_id=hostile, name="one"),),
        index=IndexStatus(address="there", version=3),
        lag_s=1.5,
    )
    url = serve()
    parsed = list(parse_text(get(f"{url}/metrics").text))
    values = {one.name: one for family in parsed for one in family.samples}
    assert values["embedstream_lag_messages"].labels == {"topic": hostile, "partition": "3"}
    assert values["embedstream_lag_messages"].value == 4
    assert values["embedstream_lag_seconds"].value == 1.5
    # What tells a restart.
    assert values["process_start_time_seconds"].value == pytest.approx(time.time(), abs=7200)
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
    answer = get(f"{url}/metrics", headers=accept)
    assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
    declared = {one.name for one in METRICS}
    families = parse_open(answer.text)  # type: ignore[no-untyped-call]
    names = {one.name for family in families for one in family.samples}
    assert {one for one in names if one.startswith("embedstream")} <= declared


def test_the_status_is_served_as_json(serve: Serve, source: Any) -> None:
    answer = get(f"{serve()}/api/status")
    assert answer.headers["Content-Type"] == "application/json"
    assert Status.model_validate_json(answer.content) == source.status


def test_health_says_why_not(serve: Serve, source: Any) -> None:
    url = serve()
    assert [get(url + path).status_code for path in ("/livez", "/readyz")] == [200, 200]
    source.is_ready = False
    source.change(state="failed", reason="the disk is full")
    answer = get(f"{url}/readyz")
    assert (answer.status_code, answer.text) == (503, "failed: the disk is full\n")
    assert get(f"{url}/livez").status_code == 200
    source.is_alive = False
    assert get(f"{url}/livez").status_code == 503


def test_without_the_token_nobody_learns_why_it_is_not_ready(serve: Serve, source: Any) -> None:
    """A reason may quote paths, hosts and messages."""
    source.is_ready = False
    source.change(state="failed", reason="images-0-77: 'what a user wrote'")
    answer = get(f"{serve(token=TOKEN)}/readyz")
    assert (answer.status_code, answer.text) == (503, "failed\n")


def test_every_answer_has_the_security_headers(serve: Serve) -> None:
    url = serve(token=TOKEN)
    for path in PATHS:
        for answer in (
            get(url + path),
            get(url + path, headers={"Authorization": f"Bearer {TOKEN}"}),
            get(url + path, headers={"Host": "evil.example.com"}),
            requests.put(url + path, timeout=10),
        ):
            assert answer.headers.items() >= SECURITY_HEADERS.items()
            assert "server" not in answer.headers


def test_nothing_can_be_changed(serve: Serve) -> None:
    url = serve()
    for path in PATHS:
        for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
            assert requests.request(method, url + path, timeout=10).status_code == 405
    for path in PATHS[:4]:
        assert requests.post(url + path, timeout=10).status_code == 405
        assert requests.head(url + path, timeout=10).status_code == 200


def test_a_token_is_asked_for_except_by_probes(serve: Serve) -> None:
    url = serve(token=TOKEN)
    for path in PATHS:
        expected = 200 if path in ("/livez", "/readyz") else 401
        assert get(url + path).status_code == expected
    assert get(f"{url}/metrics").headers["WWW-Authenticate"].startswith("Basic ")
    given: list[tuple[dict[str, Any], int]] = [
        ({"headers": {"Authorization": f"Bearer {TOKEN}"}}, 200),
        ({"headers": {"Authorization": f"bearer {TOKEN}"}}, 200),
        ({"auth": ("anybody", TOKEN)}, 200),
        ({"auth": ("", TOKEN)}, 200),
        ({"auth": (TOKEN, "")}, 401),
        ({"auth": ("anybody", TOKEN[:-1])}, 401),
        ({"headers": {"Authorization": "Bearer "}}, 401),
        ({"headers": {"Authorization": f"Bearer {TOKEN}x"}}, 401),
        ({"headers": {"Authorization": "Basic ***"}}, 401),
        ({"headers": {"Authorization": b"Bearer \xff\xfe"}}, 401),
        ({"headers": {"Authorization": TOKEN}}, 401),
        ({"params": {"token": TOKEN}}, 401),
    ]
    for arguments, expected in given:
        assert get(f"{url}/metrics", **arguments).status_code == expected, arguments


def test_only_names_of_this_machine_reach_a_loopback_address(serve: Serve) -> None:
    url = serve()
    for host, expected in (
        ("localhost:1234", 200),
        ("127.0.0.1", 200),
        ("127.1.2.3:80", 200),
        ("[::1]:9464", 200),
        ("evil.example.com", 421),
        ("127.0.0.1.evil.example.com", 421),
        ("localhost.evil.example.com:9464", 421),
        ("[::1", 421),
        ("", 421),
    ):
        answer = get(f"{url}/api/status", headers={"Host": host})
        assert answer.status_code == expected, host


def test_other_sites_cannot_post(serve: Serve) -> None:
    async def search(request: Request) -> Response:
        return PlainTextResponse("found")

    url = serve(page=[Route("/search", search, methods=["POST"])])
    given: list[tuple[dict[str, str], int]] = [
        ({}, 200),
        ({"Origin": url}, 200),
        ({"Origin": "https://evil.example.com"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://[evil"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "https://behind.a.proxy"}, 200),
    ]
    for headers, expected in given:
        answer = requests.post(f"{url}/search", headers=headers, timeout=10)
        assert answer.status_code == expected, headers


def test_other_sites_can_link_here_and_load_nothing(serve: Serve) -> None:
    url = serve()
    for site, mode, expected in (
        ("cross-site", "no-cors", 403),
        ("same-site", "cors", 403),
        ("cross-site", "navigate", 200),
        ("same-origin", "no-cors", 200),
        ("same-origin", "cors", 200),
        ("none", "navigate", 200),
    ):
        headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode}
        assert get(f"{url}/api/status", headers=headers).status_code == expected, headers


def test_an_exception_is_an_answer_and_a_log_record(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(request: Request) -> Response:
        raise RuntimeError("a bug of the page")

    url = serve(page=[Route("/", fail)])
    answer = get(f"{url}/")
    assert answer.status_code == 500
    assert "a bug" not in answer.text
    assert answer.headers.items() >= SECURITY_HEADERS.items()
    # It is logged when the answer has been sent.
    deadline = time.monotonic() + 10
    while "a request of '/' failed" not in caplog.text:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert get(f"{url}/livez").status_code == 200


def test_an_upload_that_is_given_up_is_not_logged(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    ended = threading.Event()

    async def take(request: Request) -> Response:
        try:
            await request.body()
        finally:
            ended.set()
        return PlainTextResponse("taken")

    url = serve(page=[Route("/search", take, methods=["POST"])])
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as client:
        client.sendall(
            f"POST /search HTTP/1.1\r\nHost: {host}\r\nContent-Length: 9\r\n\r\n1".encode()
        )
    assert ended.wait(10)
    assert get(f"{url}/livez").status_code == 200
    assert not caplog.records


def test_the_end_takes_less_than_a_second_with_open_streams(source: Any) -> None:
    """An event stream ends only when its client goes; a slow answer holds up nothing either."""
    ended: list[str] = []

    async def count(request: Request) -> Response:
        async def events() -> Any:
            import asyncio

            try:
                while True:
                    yield "data: 1\n\n"
                    await asyncio.sleep(0.05)
            finally:
                ended.append("events")

        return StreamingResponse(events(), media_type="text/event-stream")

    def sleep(request: Request) -> Response:
        time.sleep(3)
        return PlainTextResponse("late")

    config = MonitorConfig(listen="127.0.0.1:0")
    page = [Route("/events", count), Route("/slow", sleep)]
    with open_server(config, build_app(source, config, page=page)) as url:
        streams = [get(f"{url}/events", stream=True) for _ in range(3)]
        assert all(next(one.iter_lines()) == b"data: 1" for one in streams)
        host, port = url.removeprefix("http://").split(":")
        slow = socket.create_connection((host, int(port)))
        slow.sendall(f"GET /slow HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        idle = socket.create_connection((host, int(port)))
        time.sleep(0.1)
        began = time.monotonic()
    assert time.monotonic() - began < 1
    slow.close()
    idle.close()
    for one in streams:
        one.close()
    assert ended == ["events"] * 3
    with pytest.raises(requests.ConnectionError):
        get(f"{url}/livez")


def test_idle_connections_take_neither_file_descriptors_nor_the_place_of_a_probe(
    serve: Serve,
) -> None:
    """A driver whose liveness probe gets no answer is restarted."""
    url = serve()
    host, port = url.removeprefix("http://").split(":")
    process = psutil.Process()
    # The server's event loop, which has descriptors too, runs once it has answered.
    get(f"{url}/livez")
    before = process.num_fds()
    with ExitStack() as opened:
        idle = [
            opened.enter_context(socket.create_connection((host, int(port)))) for _ in range(150)
        ]
        for one in idle[::2]:
            # It may be cut off already.
            with suppress(OSError):
                one.sendall(b"GET /livez HT")
        assert [get(f"{url}/livez").status_code for _ in range(3)] == [200] * 3
        # The event loop has a few of its own.
        assert process.num_fds() - before - len(idle) < 110


def test_a_taken_port_is_an_error_at_the_start(serve: Serve, source: Any) -> None:
    url = serve()
    config = MonitorConfig(listen=url.removeprefix("http://"))
    port = url.rpartition(":")[2]
    with (
        pytest.raises(SetupError, match=rf"monitor\.listen .*port {port}; give another port"),
        open_server(config, build_app(source, config)),
    ):
        pass


def test_an_address_of_another_machine_is_an_error_at_the_start(source: Any) -> None:
    config = MonitorConfig.model_validate({"listen": "192.0.2.1:9464", "token": TOKEN})
    with (
        pytest.raises(SetupError, match="no address of this machine"),
        open_server(config, build_app(source, config)),
    ):
        pass


def test_ipv6_is_served(source: Any) -> None:
    config = MonitorConfig(listen="[::1]:0")
    with open_server(config, build_app(source, config)) as url:
        assert url.startswith("http://[::1]:")
        assert get(f"{url}/livez").text == "alive\n"


@pytest.mark.parametrize(
    "package", ["uvicorn", "starlette.applications", "prometheus_client.exposition"]
)
def test_a_missing_extra_is_named_at_the_start(
    source: Any, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    config = MonitorConfig(listen="127.0.0.1:0")
    with (
        pytest.raises(MissingExtra, match=r"monitor\.listen needs .*embedstream\[monitor\]"),
        open_server(config, build_app(source, config)),
    ):
        pass


def test_an_empty_token_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMPTY_TOKEN", "")
    with pytest.raises(ValueError, match="token is empty"):
        MonitorConfig.model_validate({"listen": "127.0.0.1:0", "token": "env:EMPTY_TOKEN"})
