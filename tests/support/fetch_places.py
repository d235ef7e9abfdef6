"""A web server that can misbehave, and places to fetch files and pages from."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import pytest

from embedstream_core.errors import Code, ItemError
from embedstream_core.fetch.fetcher import Fetcher, open_fetcher
from embedstream_core.fetch.http import HttpSource
from embedstream_core.fetch.network import Resolver
from embedstream_core.settings import FetchPolicy

MAX_BYTES = 1000
Page = Callable[["Visit"], None]


class Visit(BaseHTTPRequestHandler):
    """One connection to the site; each path is answered by its page."""

    protocol_version = "HTTP/1.1"
    server: Site

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        page = self.server.pages.get(self.path.partition("?")[0], self.server.otherwise)
        page(self)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def answer(self, status: int, content: bytes = b"", **headers: str) -> None:
        """Send a well-formed response; underscores in header names stand for dashes."""
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def raw(self, content: bytes) -> None:
        """Send only these bytes, then close the connection."""
        self.wfile.write(content)
        self.close_connection = True

    def stall(self) -> None:
        """Send nothing until the site closes."""
        self.server.closing.wait(20)
        self.close_connection = True

    def drip(self, parts: Iterator[bytes], pause_s: float) -> None:
        """Send one part at a time, until the site closes or the client is gone."""
        self.close_connection = True
        for part in parts:
            self.wfile.write(part)
            if self.server.closing.wait(pause_s):
                return

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Silence."""


class Site(ThreadingHTTPServer):
    """A server on a free loopback port that counts its connections and requests."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Visit)
        self.pages: dict[str, Page] = {}
        self.otherwise: Page = lambda visit: visit.answer(404)
        self.requests: list[str] = []
        self.connections = 0
        self.closing = threading.Event()

    @property
    def port(self) -> int:
        return self.server_port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def policy(self) -> FetchPolicy:
        """A policy that allows this site."""
        return FetchPolicy(
            schemes=("http", "https"),
            hosts=(f"127.0.0.1:{self.port}",),
            networks=("127.0.0.1/32",),
            max_bytes=MAX_BYTES,
            timeout_s=5,
            backoff_s=0.01,
        )

    def show(self, path: str, content: bytes) -> str:
        """The URL of a new page."""
        self.pages[quote(path)] = lambda visit: visit.answer(200, content)
        return self.url + path

    def get_request(self) -> tuple[socket.socket, Any]:
        accepted = super().get_request()
        self.connections += 1
        return accepted

    def handle_error(self, request: object, client_address: object) -> None:
        """Visitors that leave early are expected."""


@contextmanager
def open_site() -> Iterator[Site]:
    """A site that answers until it is left."""
    with Site() as site:
        thread = threading.Thread(target=site.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield site
        finally:
            site.closing.set()
            site.shutdown()
            thread.join()


def listener() -> socket.socket:
    """A socket at an address that no policy of these tests admits; nothing answers there."""
    return socket.create_server(("127.0.0.2", 0))


def connections(listener: socket.socket) -> int:
    """How many connections wait there."""
    found = 0
    listener.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            listener.accept()[0].close()
            found += 1
    return found


def code_of(uri: str, policy: FetchPolicy, resolver: Resolver | None = None) -> Code:
    """Return the code with which fetching `uri` fails."""
    with fetcher_of(policy, resolver) as fetcher, pytest.raises(ItemError) as caught:
        fetcher.fetch(uri)
    return caught.value.code


def fetcher_of(policy: FetchPolicy, resolver: Resolver | None = None) -> Fetcher:
    """A fetcher, for http with this resolver where one is given."""
    if resolver is None:
        return open_fetcher(policy)
    return Fetcher(policy, {"http": HttpSource(policy, resolver=resolver)})


class Place(Protocol):
    """Where references of one scheme lead in a test."""

    policy: FetchPolicy

    def put(self, name: str, content: bytes) -> str:
        """A reference to new content that is allowed."""

    def missing(self) -> str:
        """An allowed reference to nothing."""

    def outside(self) -> str:
        """A reference to content that is there, and is not allowed."""

    def slow(self) -> tuple[Fetcher, str]:
        """A fetcher that waits half a second, and a reference that takes longer."""

    def connections(self) -> int:
        """The number of connections."""


@dataclass
class FilePlace:
    root: Path
    policy: FetchPolicy = field(init=False)

    def __post_init__(self) -> None:
        self.folder = self.root / "allowed"
        self.folder.mkdir()
        self.policy = FetchPolicy(folders=(self.folder,), max_bytes=MAX_BYTES, backoff_s=0.01)

    def put(self, name: str, content: bytes) -> str:
        (self.folder / name).write_bytes(content)
        return f"file://{self.folder / name}"

    def missing(self) -> str:
        return f"file://{self.folder}/missing"

    def outside(self) -> str:
        (self.root / "outside").write_bytes(b"secret")
        return f"file://{self.root}/outside"

    def slow(self) -> tuple[Fetcher, str]:
        ticks = count()
        fetcher = open_fetcher(replace(self.policy, timeout_s=0.5), clock=lambda: next(ticks))
        return fetcher, self.put("slow", b"late")

    def connections(self) -> int:
        return 0


@dataclass
class HttpPlace:
    site: Site

    @property
    def policy(self) -> FetchPolicy:
        return self.site.policy

    def put(self, name: str, content: bytes) -> str:
        return self.site.show(f"/{name}", content)

    def missing(self) -> str:
        return f"{self.site.url}/missing"

    def outside(self) -> str:
        return f"http://localhost:{self.site.port}/secret"

    def slow(self) -> tuple[Fetcher, str]:
        self.site.pages["/slow"] = Visit.stall
        return open_fetcher(replace(self.policy, timeout_s=0.5)), f"{self.site.url}/slow"

    def connections(self) -> int:
        return self.site.connections
