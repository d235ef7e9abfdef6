"""A schema registry on loopback that speaks Confluent's API and can misbehave."""

from __future__ import annotations

import base64
import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from uuid import UUID, uuid4

JSON = {"Content-Type": "application/vnd.schemaregistry.v1+json"}


class Answer(Exception):
    """Ends the handling of a request with a status and the registry's error code."""

    def __init__(self, status: int, code: int | None = None) -> None:
        self.status = status
        self.code = code


class Visit(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Otherwise the body waits 40 ms for the acknowledgement of the headers.
    disable_nagle_algorithm = True
    server: RegistryServer

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        self.handle_path(b"")

    def do_POST(self) -> None:
        self.handle_path(self.rfile.read(int(self.headers["Content-Length"])))

    def handle_path(self, body: bytes) -> None:
        server = self.server
        url = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        path = [unquote(part) for part in url.path.strip("/").split("/")]
        try:
            if self.command == "GET" and server.failures:
                status = server.failures.pop(0)
                if status is None:
                    server.closing.wait(20)
                    self.close_connection = True
                    return
                raise Answer(status)
            expected = server.authorization
            if expected is not None and self.headers["Authorization"] != expected:
                raise Answer(401, 40101)
            found = server.find(path, query) if self.command == "GET" else server.post(path, body)
            self.answer(200, found)
        except Answer as answer:
            code = {} if answer.code is None else {"error_code": answer.code, "message": "no"}
            self.answer(answer.status, code)

    def answer(self, status: int, found: object) -> None:
        content = found if isinstance(found, bytes) else json.dumps(found).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Silence."""


class RegistryServer(ThreadingHTTPServer):
    """Ids count from 1. `failures` are the statuses of the next GETs; None lets one wait.

    `requests` has the paths of all GETs. `authorization` is the header to require. Without
    `serializes`, a Protobuf schema is given as text whatever is asked for.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Visit)
        self.schemas: list[dict[str, Any]] = []
        self.guids: list[str] = []
        self.subjects: dict[str, list[int]] = {}
        self.requests: list[str] = []
        self.failures: list[int | None] = []
        self.authorization: str | None = None
        self.serializes = True
        self.closing = threading.Event()
        self.scheme = "http"

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_port}"

    def require_user(self, name: str, password: str) -> None:
        pair = base64.b64encode(f"{name}:{password}".encode()).decode()
        self.authorization = f"Basic {pair}"

    def add(self, subject: str, schema: str, **more: Any) -> int:
        """Register a schema as the API does, and return its id."""
        made = {"schema": schema, **more}
        if made not in self.schemas:
            self.schemas.append(made)
            self.guids.append(str(uuid4()))
        schema_id = self.schemas.index(made) + 1
        versions = self.subjects.setdefault(subject, [])
        if schema_id not in versions:
            versions.append(schema_id)
        return schema_id

    def frame(self, schema_id: int, data: bytes) -> bytes:
        return b"\0" + schema_id.to_bytes(4, "big") + data

    def post(self, path: list[str], body: bytes) -> object:
        given = json.loads(body)
        more = {name: given[name] for name in ("schemaType", "references") if given.get(name)}
        match path:
            case ["subjects", subject, "versions"]:
                return {"id": self.add(subject, given["schema"], **more)} | {
                    "guid": self.guids[self.add(subject, given["schema"], **more) - 1]
                }
            case ["subjects", subject]:
                schema_id = self.schemas.index({"schema": given["schema"], **more}) + 1
                version = self.subjects[subject].index(schema_id) + 1
                return {"subject": subject, "version": version, "id": schema_id, **given}
        raise Answer(404, 404)

    def find(self, path: list[str], query: dict[str, str]) -> object:
        match path:
            case ["subjects"]:
                return sorted(self.subjects)
            case ["schemas", "ids", number]:
                return self.give(int(number), query)
            case ["schemas", "guids", guid] if guid in self.guids:
                return self.give(self.guids.index(str(UUID(guid))) + 1, query)
            case ["schemas", "guids", _]:
                raise Answer(404, 40403)
            case ["subjects", subject, "versions", number]:
                if subject not in self.subjects:
                    raise Answer(404, 40401)
                if int(number) > len(self.subjects[subject]):
                    raise Answer(404, 40402)
                schema_id = self.subjects[subject][int(number) - 1]
                return {"subject": subject, **self.give(schema_id, query)}
        raise Answer(404, 404)

    def give(self, schema_id: int, query: dict[str, str]) -> dict[str, Any]:
        if schema_id > len(self.schemas):
            raise Answer(404, 40403)
        schema = dict(self.schemas[schema_id - 1])
        if schema.get("schemaType") == "PROTOBUF" and not (
            self.serializes and query.get("format") == "serialized"
        ):
            schema["schema"] = 'syntax = "proto3";\nmessage Anything {}\n'
        return schema


@contextmanager
def serve_registry(tls: ssl.SSLContext | None = None) -> Iterator[RegistryServer]:
    """Serve a registry until the block ends."""
    server = RegistryServer()
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
        server.scheme = "https"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()
