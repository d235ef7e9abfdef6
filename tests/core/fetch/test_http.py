"""Hostile servers and names, and ordinary errors."""

from __future__ import annotations

import gc
import gzip
import itertools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from threading import Semaphore

import pytest

from embedstream_core.errors import Code, ItemError, TransientError
from embedstream_core.fetch.fetcher import Fetcher, open_fetcher
from embedstream_core.fetch.http import HttpSource
from embedstream_core.fetch.limits import Deadline
from embedstream_core.fetch.network import resolve
from fetch_places import (
    MAX_BYTES,
    Page,
    Site,
    Visit,
    code_of,
    connections,
    listener,
)

OK = b"HTTP/1.1 200 OK\r\n"


class TestRedirects:
    def test_are_not_followed_unless_allowed(self, site: Site) -> None:
        site.show("/b", b"bytes")
        site.pages["/a"] = lambda visit: visit.answer(302, Location="/b")
        assert code_of(f"{site.url}/a", site.policy) is Code.REFERENCE_DENIED
        assert site.requests == ["/a"]

    def test_are_followed_up_to_max_redirects(self, site: Site) -> None:
        site.show("/c", b"bytes")
        site.pages["/b"] = lambda visit: visit.answer(307, Location=f"{site.url}/c")
        site.pages["/a"] = lambda visit: visit.answer(301, Location="/b")
        with open_fetcher(replace(site.policy, max_redirects=2)) as fetcher:
            assert fetcher.fetch(f"{site.url}/a") == b"bytes"
        one = replace(site.policy, max_redirects=1)
        assert code_of(f"{site.url}/a", one) is Code.REFERENCE_DENIED

    @pytest.mark.parametrize(
        ("location", "target"),
        [
            ("/ø".encode(), "/%C3%B8"),
            ("/ø".encode("latin-1"), "/%F8"),
            (b"/%C3%B8 a", "/%C3%B8%20a"),
        ],
    )
    def test_keep_the_bytes_of_the_location(self, site: Site, location: bytes, target: str) -> None:
        head = b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: " + location + b"\r\n\r\n"
        site.pages["/a"] = lambda visit: visit.raw(head)
        site.pages[target] = lambda visit: visit.answer(200, b"bytes")
        with open_fetcher(replace(site.policy, max_redirects=1)) as fetcher:
            assert fetcher.fetch(f"{site.url}/a") == b"bytes"

    @pytest.mark.parametrize(
        "location",
        [
            "http://169.254.169.254/latest/meta-data/",
            "http://localhost/",
            "//other.test/",
            "file:///etc/passwd",
            "s3://pictures/key",
            "http://user:hunter2@127.0.0.1/",
        ],
    )
    def test_lead_only_where_the_policy_allows(self, site: Site, location: str) -> None:
        site.pages["/a"] = lambda visit: visit.answer(302, Location=location)
        policy = replace(site.policy, max_redirects=5)
        assert code_of(f"{site.url}/a", policy) is Code.REFERENCE_DENIED
        assert len(site.requests) == 1

    @pytest.mark.parametrize("location", ["ftp://images.test/", "file:///etc/passwd", "data:,x"])
    def test_to_another_scheme_are_named(self, site: Site, location: str) -> None:
        site.pages["/a"] = lambda visit: visit.answer(302, Location=location)
        scheme = location.partition(":")[0]
        with (
            open_fetcher(replace(site.policy, max_redirects=5)) as fetcher,
            pytest.raises(ItemError, match=f"a redirect to scheme '{scheme}' is not followed"),
        ):
            fetcher.fetch(f"{site.url}/a")

    def test_to_an_allowed_name_at_a_private_address(self, site: Site) -> None:
        def resolver(host: str, port: int) -> list[str]:
            return ["10.0.0.1" if host == "images.test" else host]

        site.pages["/a"] = lambda visit: visit.answer(302, Location="http://images.test/")
        policy = replace(site.policy, max_redirects=5, hosts=(*site.policy.hosts, "images.test"))
        assert code_of(f"{site.url}/a", policy, resolver) is Code.REFERENCE_DENIED

    def test_from_https_do_not_reach_a_closed_http(self, site: Site) -> None:
        """The source of both schemes checks the scheme itself, because it follows the redirects."""
        policy = replace(site.policy, schemes=("https",))
        assert code_of(f"{site.url}/a", policy, resolve) is Code.REFERENCE_DENIED
        assert site.connections == 0

    def test_to_a_refused_address_make_no_connection(self, site: Site) -> None:
        with listener() as refused:
            port = refused.getsockname()[1]
            location = f"http://inside.test:{port}/"
            site.pages["/a"] = lambda visit: visit.answer(302, Location=location)
            hosts = (*site.policy.hosts, f"inside.test:{port}")
            policy = replace(site.policy, max_redirects=5, hosts=hosts)

            def resolver(host: str, port: int) -> list[str]:
                return ["127.0.0.2" if host == "inside.test" else host]

            assert code_of(f"{site.url}/a", policy, resolver) is Code.REFERENCE_DENIED
            assert connections(refused) == 0

    @pytest.mark.parametrize(
        "location",
        [
            *[
                "http://[",
                "http://a:b/",
                "http://[2024]/",
                "http://[::1%25eth0]/",
                "//[",
                "http://",
            ],
            *[
                "http://a..images.test/",
                "http://.images.test/",
                "http://%00.images.test/",
                "data:,",
            ],
            *["http://a b.images.test/", "http://\u00fc.images.test/", "http:///", "\\\\a", "\x80"],
            *["http://user@a.images.test/", "/" + "a" * 20_000, "http://a.images.test:0x50/"],
        ],
    )
    def test_to_an_invalid_url(self, site: Site, location: str) -> None:
        site.pages["/a"] = lambda visit: visit.answer(302, Location=location)
        policy = replace(site.policy, max_redirects=5, hosts=(*site.policy.hosts, "*.images.test"))
        site.otherwise = lambda visit: visit.answer(403)
        assert code_of(f"{site.url}/a", policy) in (
            Code.REFERENCE_DENIED,
            Code.REFERENCE_UNREADABLE,
        )


def endless(start: bytes, part: bytes) -> Iterator[bytes]:
    return itertools.chain([start], itertools.repeat(part))


class TestHostileBodies:
    @pytest.mark.parametrize(
        "parts",
        [
            endless(b"", b"H"),
            endless(OK, b"X-Y: z\r\n"),
            endless(OK + b"Content-Length: 900\r\n\r\n", b"."),
            endless(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n.\r\n"),
            endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        ],
        ids=["status", "headers", "body", "chunks", "informational"],
    )
    def test_dripping_ends_in_time(self, site: Site, parts: Iterator[bytes]) -> None:
        site.pages["/a"] = lambda visit: visit.drip(parts, 0.1)
        started = time.monotonic()
        policy = replace(site.policy, timeout_s=0.5)
        assert code_of(f"{site.url}/a", policy) is Code.REFERENCE_TIMEOUT
        assert time.monotonic() - started < 1

    @pytest.mark.parametrize(
        ("start", "part"),
        [
            (OK + b"\r\n", b"." * 500),
            (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1f4\r\n" + b"." * 500 + b"\r\n"),
        ],
        ids=["no length", "chunks"],
    )
    def test_endless_ends_at_the_limit(self, site: Site, start: bytes, part: bytes) -> None:
        site.pages["/a"] = lambda visit: visit.drip(endless(start, part), 0.001)
        assert code_of(f"{site.url}/a", site.policy) is Code.REFERENCE_TOO_LARGE

    def test_a_large_length_is_refused_before_reading(self, site: Site) -> None:
        head = OK + b"Content-Length: %d\r\n\r\n" % (MAX_BYTES + 1)
        site.pages["/a"] = lambda visit: visit.drip(iter([head, b"."]), 5)
        started = time.monotonic()
        assert code_of(f"{site.url}/a", site.policy) is Code.REFERENCE_TOO_LARGE
        assert time.monotonic() - started < 1

    @pytest.mark.parametrize(
        "raw",
        [
            b"",
            OK + b"Content-Length: 100\r\n\r\nshort",
            OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nshort",
            OK + b"Content-Length: -1\r\n\r\n",
            OK + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n",
            OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
            b"no HTTP at all\r\n\r\n",
            OK + b"X: " + b"y" * 200_000,
        ],
        ids=["nothing", "short", "cut", "negative", "digits", "two", "words", "header"],
    )
    def test_a_broken_response_is_retried(self, site: Site, raw: bytes) -> None:
        site.pages["/a"] = lambda visit: visit.raw(raw)
        assert code_of(f"{site.url}/a", site.policy) is Code.REFERENCE_UNREADABLE
        assert len(site.requests) == 3

    def test_a_reset_is_retried(self, site: Site) -> None:
        def reset_once(visit: Visit) -> None:
            if len(site.requests) > 1:
                return visit.answer(200, b"bytes")
            visit.raw(OK + b"Content-Length: 100\r\n\r\nshort")
            linger = (1).to_bytes(4, "little") + bytes(4)
            visit.connection.setsockopt(1, 13, linger)
            visit.connection.close()
            return None

        site.pages["/a"] = reset_once
        with open_fetcher(site.policy) as fetcher:
            assert fetcher.fetch(f"{site.url}/a") == b"bytes"

    def test_a_bomb_ends_at_the_limit(self, site: Site) -> None:
        bomb = gzip.compress(bytes(MAX_BYTES * 100))
        site.pages["/a"] = lambda visit: visit.answer(200, bomb, Content_Encoding="gzip")
        assert code_of(f"{site.url}/a", site.policy) is Code.REFERENCE_TOO_LARGE

    @pytest.mark.parametrize("second", ["identity", "gzip"])
    def test_two_headers_are_one_list(self, site: Site, second: str) -> None:
        lines = b"".join(b"Content-Encoding: %s\r\n" % name for name in (b"gzip", second.encode()))
        body = gzip.compress(b"bytes")
        head = OK + lines + b"Content-Length: %d\r\n\r\n" % len(body)
        site.pages["/a"] = lambda visit: visit.raw(head + body)
        if second == "gzip":
            assert code_of(f"{site.url}/a", site.policy) is Code.REFERENCE_UNREADABLE
            return
        with open_fetcher(site.policy) as fetcher:
            assert fetcher.fetch(f"{site.url}/a") == b"bytes"

    @pytest.mark.parametrize("encoding", ["aws-chunked", "UTF-8", "aws-chunked,", "image/jpeg", ""])
    def test_an_encoding_that_only_sounds_compressed_is_read(
        self, site: Site, encoding: str
    ) -> None:
        site.pages["/a"] = lambda visit: visit.answer(200, b"bytes", Content_Encoding=encoding)
        with open_fetcher(site.policy) as fetcher:
            assert fetcher.fetch(f"{site.url}/a") == b"bytes"


def busy_once(status: int, retry_after: str, visits: list[float]) -> Page:
    def page(visit: Visit) -> None:
        visits.append(time.monotonic())
        if len(visits) > 1:
            return visit.answer(200, b"bytes")
        return visit.answer(status, Retry_After=retry_after)

    return page


def in_seconds(seconds: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


class TestRetryAfter:
    @pytest.mark.parametrize(
        ("status", "retry_after"),
        [(429, "1"), (503, "1"), (500, " 1 "), (429, in_seconds), (503, in_seconds)],
    )
    def test_is_waited_for(
        self, site: Site, status: int, retry_after: str | Callable[[float], str]
    ) -> None:
        asked = retry_after if isinstance(retry_after, str) else retry_after(2)
        visits: list[float] = []
        site.pages["/a"] = busy_once(status, asked, visits)
        pauses: list[float] = []
        sources = {"http": HttpSource(site.policy)}
        with Fetcher(site.policy, sources, sleep=pauses.append) as fetcher:
            assert fetcher.fetch(f"{site.url}/a") == b"bytes"
        (pause_s,) = pauses
        assert 1 <= pause_s < 3
        assert len(visits) == 2

    @pytest.mark.parametrize("retry_after", ["-1", "soon", "9" * 40, "", "1.5"])
    def test_that_is_invalid_changes_nothing(self, site: Site, retry_after: str) -> None:
        visits: list[float] = []
        site.pages["/a"] = busy_once(429, retry_after, visits)
        with open_fetcher(site.policy) as fetcher:
            assert fetcher.fetch(f"{site.url}/a") == b"bytes"
        assert visits[1] - visits[0] < 0.5

    def test_beyond_the_deadline_fails_at_once(self, site: Site) -> None:
        site.pages["/a"] = lambda visit: visit.answer(429, Retry_After="3600")
        with (
            open_fetcher(site.policy) as fetcher,
            pytest.raises(TransientError, match=r"answered 429 and asks for a pause of 3600 s; "),
        ):
            fetcher.fetch(f"{site.url}/a")
        assert len(site.requests) == 1


def failing_once(status: int) -> Page:
    answers = iter([status, 200])
    return lambda visit: visit.answer(next(answers), b"bytes")


class TestOrdinaryErrors:
    @pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
    def test_transient_responses_are_retried(self, site: Site, status: int) -> None:
        site.pages["/a"] = failing_once(status)
        with open_fetcher(site.policy) as fetcher:
            assert fetcher.fetch(f"{site.url}/a") == b"bytes"

    @pytest.mark.parametrize(
        ("status", "code"),
        [
            (204, Code.REFERENCE_UNREADABLE),
            (206, Code.REFERENCE_UNREADABLE),
            (304, Code.REFERENCE_UNREADABLE),
            (401, Code.REFERENCE_UNREADABLE),
            (403, Code.REFERENCE_UNREADABLE),
            (404, Code.REFERENCE_NOT_FOUND),
            (410, Code.REFERENCE_NOT_FOUND),
        ],
    )
    def test_final_responses(self, site: Site, status: int, code: Code) -> None:
        site.pages["/a"] = lambda visit: visit.answer(status)
        assert code_of(f"{site.url}/a", site.policy) is code
        assert len(site.requests) == 1

    def test_credentials_make_no_connection(self, site: Site) -> None:
        uri = f"http://user:hunter2@127.0.0.1:{site.port}/a"
        assert code_of(uri, site.policy) is Code.REFERENCE_DENIED
        assert site.connections == 0

    def test_a_full_host_does_not_block_others_and_waiting_ends_in_time(self, site: Site) -> None:
        site.pages["/stalled"] = Visit.stall
        site.show("/a", b"bytes")
        hosts = (*site.policy.hosts, f"localhost:{site.port}")
        policy = replace(site.policy, hosts=hosts, connections_per_host=1)
        source = HttpSource(policy, resolver=lambda host, port: ["127.0.0.1"])
        with closing(source), ThreadPoolExecutor(1) as pool:
            stalled = pool.submit(source.fetch, f"{site.url}/stalled", Deadline(20))
            while not site.requests:
                time.sleep(0.01)
            assert source.fetch(f"http://localhost:{site.port}/a", Deadline(5)) == b"bytes"
            with pytest.raises(ItemError) as caught:
                source.fetch(f"{site.url}/a", Deadline(0.2))
            assert caught.value.code is Code.REFERENCE_TIMEOUT
            site.closing.set()
            assert isinstance(stalled.exception(), ItemError)
        assert site.requests == ["/stalled", "/a"]

    def test_hosts_of_a_wildcard_leave_nothing_behind(self, site: Site) -> None:
        site.show("/a", b"bytes")
        policy = replace(site.policy, hosts=(f"*.images.test:{site.port}",))
        source = HttpSource(policy, resolver=lambda host, port: ["127.0.0.1"])
        with closing(source):
            for number in range(20):
                source.fetch(f"http://{number}.images.test:{site.port}/a", Deadline(5))
            gc.collect()
            semaphores = [one for one in gc.get_objects() if type(one) is Semaphore]
        assert len(semaphores) < 20

    def test_a_port_without_a_server_is_unreadable(self, site: Site) -> None:
        policy = replace(site.policy, hosts=("127.0.0.1:1",))
        assert code_of("http://127.0.0.1:1/", policy) is Code.REFERENCE_UNREADABLE

    def test_connections_are_kept(self, site: Site) -> None:
        uri = site.show("/a", b"bytes")
        with open_fetcher(site.policy) as fetcher:
            assert {fetcher.fetch(uri) for _ in range(5)} == {b"bytes"}
        assert site.connections == 1

    def test_path_and_query_arrive(self, site: Site) -> None:
        site.show("/a b/ü.jpg", b"bytes")
        with open_fetcher(site.policy) as fetcher:
            fetcher.fetch(f"{site.url}/a b/ü.jpg?x=1&y=%2F#part")
        assert site.requests == ["/a%20b/%C3%BC.jpg?x=1&y=%2F"]


@pytest.mark.parametrize("around", [" {}", "{} ", "\r\n\t{}\n"])
def test_spaces_around_an_address_are_ignored(site: Site, around: str) -> None:
    site.show("/a", b"bytes")
    with open_fetcher(site.policy) as fetcher:
        assert fetcher.fetch(around.format(f"{site.url}/a")) == b"bytes"
