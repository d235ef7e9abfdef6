"""The addresses that are connected to, for any name, and the certificates that are accepted."""

from __future__ import annotations

import datetime
import ssl
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from embedstream_core.errors import Code, ItemError
from embedstream_core.fetch.http import HttpSource
from embedstream_core.fetch.limits import Deadline
from embedstream_core.settings import FetchPolicy
from fetch_places import Site, code_of, connections, fetcher_of, listener


class TestSpellings:
    @pytest.mark.parametrize(
        "host", ["127.0.0.1", "localhost", "2130706433", "0177.0.0.1", "0x7f000001", "127.1"]
    )
    def test_no_spelling_of_loopback_is_reached(self, site: Site, host: str) -> None:
        uri = f"http://{host}:{site.port}/"
        listed = replace(site.policy, hosts=(f"{host}:{site.port}",), networks=())
        unlisted = replace(site.policy, hosts=("images.test",))
        assert code_of(uri, listed) is Code.REFERENCE_DENIED
        assert code_of(uri, unlisted) is Code.REFERENCE_DENIED
        assert site.connections == 0

    @pytest.mark.parametrize("host", ["[::ffff:127.0.0.1]", "[::1]", "[::]"])
    def test_no_ipv6_spelling_either(self, site: Site, host: str) -> None:
        policy = replace(site.policy, hosts=(f"{host}:{site.port}",), networks=())
        assert code_of(f"http://{host}:{site.port}/", policy) is Code.REFERENCE_DENIED
        assert site.connections == 0


class TestNames:
    def test_every_address_of_a_name_is_checked(self, site: Site) -> None:
        policy = replace(site.policy, hosts=(f"images.test:{site.port}",))
        uri = f"http://images.test:{site.port}/"
        assert (
            code_of(uri, policy, lambda host, port: ["127.0.0.1", "169.254.169.254"])
            is Code.REFERENCE_DENIED
        )
        assert site.connections == 0

    def test_the_checked_address_is_the_one_connected_to(self, site: Site) -> None:
        """The second look-up gives another address, which is refused."""
        answers = iter([["127.0.0.1"], ["169.254.169.254"]])
        policy = replace(site.policy, hosts=(f"images.test:{site.port}",))
        site.pages["/a"] = lambda visit: visit.answer(200, b"bytes", Connection="close")
        uri = f"http://images.test:{site.port}/a"
        with fetcher_of(policy, lambda host, port: next(answers)) as fetcher:
            assert fetcher.fetch(uri) == b"bytes"
            with pytest.raises(ItemError) as caught:
                fetcher.fetch(uri)
        assert caught.value.code is Code.REFERENCE_DENIED
        assert site.connections == 1

    def test_a_changed_address_of_a_name_is_not_connected_to(self, site: Site) -> None:
        with listener() as refused:
            port = refused.getsockname()[1]
            site.show("/a", b"bytes")
            names = (f"images.test:{site.port}", f"images.test:{port}")
            answers = iter([["127.0.0.1"], ["127.0.0.2"], ["127.0.0.1", "127.0.0.2"]])
            policy = replace(site.policy, hosts=names)
            with fetcher_of(policy, lambda host, port: next(answers)) as fetcher:
                assert fetcher.fetch(f"http://images.test:{site.port}/a") == b"bytes"
                for _ in range(2):
                    with pytest.raises(ItemError) as caught:
                        fetcher.fetch(f"http://images.test:{port}/a")
                    assert caught.value.code is Code.REFERENCE_DENIED
            assert connections(refused) == 0

    def test_a_dead_address_is_skipped(self, site: Site) -> None:
        policy = replace(
            site.policy, hosts=(f"images.test:{site.port}",), networks=("127.0.0.0/8",)
        )
        site.show("/a", b"bytes")
        with fetcher_of(policy, lambda host, port: ["127.0.0.9", "127.0.0.1"]) as fetcher:
            assert fetcher.fetch(f"http://images.test:{site.port}/a") == b"bytes"

    def test_a_name_without_an_address_is_retried(self, site: Site) -> None:
        lookups: list[str] = []

        def resolver(host: str, port: int) -> list[str]:
            lookups.append(host)
            raise OSError("no such name")

        policy = replace(site.policy, hosts=("images.test",))
        assert code_of("http://images.test/", policy, resolver) is Code.REFERENCE_UNREADABLE
        assert len(lookups) == 3

    def test_a_slow_look_up_ends_in_time(self, site: Site) -> None:
        def resolver(host: str, port: int) -> list[str]:
            site.closing.wait(1.5)
            return []

        policy = replace(site.policy, hosts=("images.test",), timeout_s=0.3)
        assert code_of("http://images.test/", policy, resolver) is Code.REFERENCE_TIMEOUT

    @pytest.mark.parametrize(
        ("rule", "url", "allowed"),
        [
            ("images.test", "http://images.test/", True),
            ("Images.test", "http://IMAGES.TEST./", True),
            ("images.test", "http://images.test:8080/", False),
            ("images.test:8080", "http://images.test:8080/", True),
            ("images.test:8080", "http://images.test/", False),
            ("images.test", "http://evil-images.test/", False),
            ("images.test", "http://images.test.evil/", False),
            ("*.images.test", "http://a.b.images.test/", True),
            ("*.images.test", "http://images.test/", False),
            ("*.images.test", "http://evilimages.test/", False),
            ("images.test", "http://evil\\images.test/", False),
            ("images.test", "http://evil#images.test/", False),
            ("images.test", "http://evil%2eimages.test/", False),
            ("*.images.test", "http://evil\\.images.test/", False),
        ],
    )
    def test_allowed_hosts(self, rule: str, url: str, allowed: bool) -> None:
        policy = FetchPolicy(schemes=("http",), hosts=(rule,), attempts=1)
        asked: list[str] = []

        def resolver(host: str, port: int) -> list[str]:
            asked.append(host)
            return []

        code_of(url, policy, resolver)
        assert bool(asked) == allowed


def certificate_for(name: str, path: Path) -> Path:
    """A file with a new self-signed certificate and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), 1, now - day, now + day)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM) + private)
    return path


class TestCertificates:
    @pytest.fixture
    def trusting(self, site: Site, tmp_path: Path) -> ssl.SSLContext:
        """Makes the site speak TLS as images.test; a context that trusts its certificate."""
        file = certificate_for("images.test", tmp_path / "certificate.pem")
        speaking = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        speaking.load_cert_chain(file)
        site.socket = speaking.wrap_socket(site.socket, server_side=True)
        site.show("/", b"bytes")
        return ssl.create_default_context(cafile=str(file))

    def fetch(self, site: Site, name: str, tls: ssl.SSLContext | None) -> bytes:
        policy = replace(site.policy, hosts=(f"*.test:{site.port}",))
        source = HttpSource(policy, resolver=lambda host, port: ["127.0.0.1"], tls=tls)
        try:
            return source.fetch(f"https://{name}:{site.port}/", Deadline(5))
        finally:
            source.close()

    def test_are_checked_for_the_name_not_the_address(
        self, site: Site, trusting: ssl.SSLContext
    ) -> None:
        assert self.fetch(site, "images.test", trusting) == b"bytes"
        with pytest.raises(ItemError, match=r"certificate refused.*other\.test"):
            self.fetch(site, "other.test", trusting)

    @pytest.mark.usefixtures("trusting")
    def test_of_unknown_origin_are_refused(self, site: Site) -> None:
        with pytest.raises(ItemError, match="certificate refused") as caught:
            self.fetch(site, "images.test", None)
        assert caught.value.code is Code.REFERENCE_UNREADABLE
