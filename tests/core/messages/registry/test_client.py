"""What a registry's answers mean: for one message, for the whole micro-batch, for the set-up."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import ssl
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from embedstream_core.errors import SetupError, SystemicError
from embedstream_core.messages.registry.client import RegistryClient
from embedstream_core.messages.registry.connection import RegistryConnection
from registry_server import RegistryServer, serve_registry


class Clock:
    """A time that only `sleep` moves."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, pause_s: float) -> None:
        self.now_s += pause_s


@contextlib.contextmanager
def ask(url: str, **given: Any) -> Iterator[RegistryClient]:
    clock = Clock()
    client = RegistryClient(RegistryConnection(url, **given), clock=clock, sleep=clock.sleep)
    with contextlib.closing(client):
        yield client


def test_references_come_before_what_needs_them(registry: RegistryServer) -> None:
    def refer(*subjects: str) -> list[dict[str, Any]]:
        return [{"name": f"n.{one}", "subject": one, "version": 1} for one in subjects]

    registry.add("a/b", '"a"')
    registry.add("c", '"c"', references=refer("a/b"))
    root = registry.add("root", '"root"', references=refer("c", "a/b"))

    with ask(registry.url) as client:
        found = client.find_schema(f"ids/{root}")

    assert (found.kind, found.text) == ("AVRO", '"root"')
    assert found.references == (("n.a/b", '"a"'), ("n.c", '"c"'))
    assert len(registry.requests) == 3


def test_references_that_lead_back_end(registry: RegistryServer) -> None:
    for one, other in (("a", "b"), ("b", "a")):
        references = [{"name": other, "subject": other, "version": 1}]
        registry.add(one, f'"{one}"', references=references)

    with ask(registry.url) as client:
        found = client.find_schema("ids/1")

    assert [name for name, _ in found.references] == ["a", "b"]


def test_no_schema_has_endless_references(registry: RegistryServer) -> None:
    for number in range(300):
        references = [{"name": "n", "subject": f"s{number + 1}", "version": 1}]
        registry.add(f"s{number}", f'"{number}"', references=references)

    with ask(registry.url) as client, pytest.raises(ValueError, match="more than 200 references"):
        client.find_schema("ids/1")


def test_references_may_be_anything(registry: RegistryServer) -> None:
    for number, references in enumerate(("abc", [1], [{"subject": "a"}], [{"version": 1}], 7)):
        schema_id = registry.add("own", f'"{number}"', references=references)
        with ask(registry.url) as client, pytest.raises(ValueError, match=r"well formed|without a"):
            client.find_schema(f"ids/{schema_id}")


@pytest.mark.parametrize(
    "reference", [{"subject": "gone", "version": 1}, {"subject": "own", "version": 2}]
)
def test_a_missing_reference_is_the_schema_s_fault(
    registry: RegistryServer, reference: dict[str, Any]
) -> None:
    registry.add("own", '"a"', references=[{"name": "n", **reference}])

    with ask(registry.url) as client, pytest.raises(ValueError, match="does not hold it"):
        client.find_schema("ids/1")


@pytest.mark.parametrize("path", ["ids/1", "guids/12345678-1234-5678-1234-567812345678"])
def test_an_unknown_schema_is_the_message_s_fault(registry: RegistryServer, path: str) -> None:
    with ask(registry.url) as client, pytest.raises(ValueError, match="does not hold it"):
        client.find_schema(path)


def test_a_registry_that_knows_no_uuids_ends_no_stream(registry: RegistryServer) -> None:
    """Whoever writes a message chooses its header, and older registries answer without a code."""
    path = "guids/12345678-1234-5678-1234-567812345678"
    for status in (404, 405, 400):
        registry.failures = [status]
        with ask(registry.url) as client, pytest.raises(ValueError, match="by UUID"):
            client.find_schema(path)


def test_a_404_of_another_server_is_not(registry: RegistryServer) -> None:
    with ask(f"{registry.url}/api") as client, pytest.raises(SystemicError, match=r"\.url"):
        client.find_schema("ids/1")


@pytest.mark.parametrize("status", [500, 502, 503, 429, 408])
def test_what_passes_is_asked_again(registry: RegistryServer, status: int) -> None:
    registry.add("a", '"a"')
    registry.failures = [status, status]

    with ask(registry.url) as client:
        assert client.find_schema("ids/1").text == '"a"'


@pytest.mark.parametrize("status", [500, 503])
def test_an_outage_is_no_message_s_fault(registry: RegistryServer, status: int) -> None:
    registry.failures = [status] * 9

    with ask(registry.url) as client, pytest.raises(SystemicError) as caught:
        client.find_schema("ids/1")

    assert str(caught.value).endswith(f"cannot be asked: it answered {status}")
    assert len(registry.requests) == 3


def test_a_registry_that_is_down_is_an_outage() -> None:
    with serve_registry() as server:
        url = server.url

    with ask(url) as client, pytest.raises(SystemicError, match="the connection failed"):
        client.find_schema("ids/1")


def test_a_registry_that_does_not_answer_is_an_outage(registry: RegistryServer) -> None:
    registry.failures = [None] * 9

    with ask(registry.url, timeout_s=0.3) as client, pytest.raises(SystemicError, match="in time"):
        client.find_schema("ids/1")


def test_retries_end_with_the_deadline(registry: RegistryServer) -> None:
    registry.add("a", '"a"')
    registry.failures = [503]
    clock = Clock()
    client = RegistryClient(
        RegistryConnection(registry.url), clock=clock, sleep=lambda _: clock.sleep(60)
    )

    with contextlib.closing(client), pytest.raises(SystemicError, match="in time"):
        client.find_schema("ids/1")


def test_credentials_are_sent_and_their_refusal_is_told(registry: RegistryServer) -> None:
    registry.add("a", '"a"')
    registry.require_user("grüner", "s:cret")

    with ask(registry.url, username="grüner", password="s:cret") as client:
        assert client.find_schema("ids/1").text == '"a"'
    with ask(registry.url, username="grüner", password="wr0ng") as client:
        with pytest.raises(SystemicError, match=r"refuses the credentials \(401\)") as caught:
            client.find_schema("ids/1")
        assert "wr0ng" not in str(caught.value)
    registry.authorization = "Bearer t0ken"
    with ask(registry.url, token="t0ken") as client:
        assert client.find_schema("ids/1").text == '"a"'


def test_a_forbidden_schema_stops_the_micro_batch(registry: RegistryServer) -> None:
    registry.failures = [403]

    with ask(registry.url) as client, pytest.raises(SystemicError, match=r"\(403\)"):
        client.find_schema("ids/1")


@pytest.mark.parametrize("answer", [b"<html>", b"[]", b"[" * 100_000])
def test_an_answer_that_is_no_schema_stops_the_micro_batch(
    registry: RegistryServer, answer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "find", lambda *_: answer)

    with ask(registry.url) as client, pytest.raises(SystemicError):
        client.find_schema("ids/1")


def test_a_schema_without_text_and_a_huge_one_are_refused(registry: RegistryServer) -> None:
    registry.schemas = [{"id": 1}, {"schema": "a" * 2**23}]

    with ask(registry.url) as client:
        with pytest.raises(ValueError, match="without a 'schema'"):
            client.find_schema("ids/1")
        with pytest.raises(ValueError, match="more than 8388608 bytes"):
            client.find_schema("ids/2")


def test_the_check_needs_an_answer_like_a_registry_s(registry: RegistryServer) -> None:
    with ask(registry.url) as client:
        assert client.check() == "it answers"
        registry.failures = [403]
        assert client.check() == "it answers, and does not list its subjects"
        registry.failures = [401]
        with pytest.raises(SystemicError, match="401"):
            client.check()
    with ask(f"{registry.url}/elsewhere") as client, pytest.raises(SystemicError, match=r"\.url"):
        client.check()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A certificate of 127.0.0.1 that is its own authority: a file of both, and both as texts."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "registry")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()
    public = made.public_bytes(serialization.Encoding.PEM).decode()
    file = tmp_path_factory.mktemp("tls") / "both.pem"
    file.write_text(private + public)
    return file, public, private


def test_certificates_are_checked_and_shown(certificate: tuple[Path, str, str]) -> None:
    file, public, private = certificate
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cadata=public)
    tls.load_cert_chain(file)
    tls.verify_mode = ssl.CERT_REQUIRED

    with serve_registry(tls) as server:
        server.add("a", '"a"')
        own = {"tls_certificate": public, "tls_key": private}
        with ask(server.url, tls_ca=public, **own) as client:
            assert client.find_schema("ids/1").text == '"a"'
        with ask(server.url, **own) as client, pytest.raises(SystemicError) as caught:
            client.find_schema("ids/1")
        assert "its certificate is refused" in str(caught.value)
        assert "message.registry.tls_ca" in str(caught.value)
        with ask(server.url, tls_ca=public) as client, pytest.raises(SystemicError):
            client.find_schema("ids/1")


@pytest.mark.parametrize("given", [{"tls_ca": "/etc/ca.pem"}, {"tls_certificate": "nothing"}])
def test_what_is_no_certificate_is_refused(given: dict[str, Any]) -> None:
    connection = replace(RegistryConnection("https://registry"), **given)

    with pytest.raises(SetupError, match="are texts in PEM"):
        RegistryClient(connection)


@pytest.mark.parametrize(
    "given",
    [
        {"url": "registry:8081"},
        {"url": "ftp://registry"},
        {"url": "https://user:pass@registry"},
        {"url": "https://registry?key=1"},
        {"url": "https://"},
        {"url": "https://registry:99999"},
        {"url": "https://registry", "username": "a", "token": "b"},
        {"url": "https://registry", "password": "a"},
        {"url": "https://registry", "token": "pass@\n"},
        {"url": "https://registrü"},
        {"url": "https://registry", "tls_key": "a"},
        {"url": "https://registry", "timeout_s": 0},
    ],
)
def test_settings_that_cannot_work_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(SetupError, match=r"url|token|username|tls_key|timeout_s") as caught:
        RegistryConnection(**given)

    assert "pass@" not in str(caught.value)


def test_no_secret_is_shown() -> None:
    secrets: dict[str, Any] = dict.fromkeys(
        ("password", "tls_ca", "tls_certificate", "tls_key"), "s3cret"
    )
    connections = [
        RegistryConnection("https://registry", username="a", **secrets),
        RegistryConnection("https://registry", token="s3cret"),
    ]

    assert "s3cret" not in repr(connections)
