"""Known vulnerabilities fail the audit; an unreachable database does not, but is reported."""

from __future__ import annotations

import importlib.util
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def audit(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script, which asks a database that is not there."""
    path = Path(__file__).parents[1] / "scripts" / "audit.py"
    spec = importlib.util.spec_from_file_location("audit", path)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setenv("OSV_URL", "http://127.0.0.1:1/")
    return script


@contextmanager
def database(monkeypatch: pytest.MonkeyPatch, known: dict[str, list[str]]) -> Iterator[None]:
    """Answers as OSV does, with the ids that are known for packages by name."""

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            queries = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["queries"]
            names = [query["package"]["name"] for query in queries]
            results = [{"vulns": [{"id": each} for each in known.get(name, [])]} for name in names]
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"results": results}).encode())

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Silence."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        monkeypatch.setenv("OSV_URL", f"http://127.0.0.1:{server.server_port}/")
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def test_without_a_network_it_says_so_and_passes(
    audit: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    audit.main()
    assert "dependencies are NOT audited" in capsys.readouterr().out


def test_packages_and_jars_without_a_vulnerability_pass(
    audit: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with database(monkeypatch, {}):
        audit.main()
    assert ", 0 with known vulnerabilities" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["pillow", "org.apache.kafka:kafka-clients"])
def test_a_vulnerability_fails_unless_it_is_ignored_by_its_id(
    audit: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    with database(monkeypatch, {name: ["GHSA-1", "GHSA-2"]}):
        with pytest.raises(SystemExit, match="take a fixed version"):
            audit.main()
        assert "GHSA-1, GHSA-2" in capsys.readouterr().out
        monkeypatch.setitem(audit.IGNORED, "GHSA-1", "a reason")
        monkeypatch.setitem(audit.IGNORED, "GHSA-2", "a reason")
        audit.main()
