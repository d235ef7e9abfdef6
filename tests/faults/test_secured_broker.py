"""A broker with TLS and passwords: which clients it accepts, and the errors of the others."""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from kafka.admin import KafkaAdminClient, UserScramCredentialUpsertion
from pyspark.sql import SparkSession

from embedstream.config.sections import StreamConfig
from embedstream.kafka.admin import create_topic, read_end_offsets
from embedstream.kafka.dev_broker import start_broker, stop_broker
from embedstream.kafka.produce import produce
from oracle import Position, check_outcomes
from small import tiny_picture, write_config
from streams import Topic, image, refusal
from streams_by_start import start

pytestmark = [pytest.mark.kafka, pytest.mark.spark]

Configure = Callable[..., StreamConfig]

USER = "embedstream"
PASSWORD = "right-3f9c2a"
WRONG = "wrong-b71e08"


@dataclass(frozen=True)
class SecuredBroker:
    """The address of a broker, and the certificate of the authority that signed its own."""

    servers: str
    authority: Path


def client(authority: Path, mechanism: str = "PLAIN") -> dict[str, Any]:
    """Settings of kafka-python."""
    return {
        "security_protocol": "SASL_SSL",
        "ssl_cafile": str(authority),
        "sasl_mechanism": mechanism,
        "sasl_plain_username": USER,
        "sasl_plain_password": PASSWORD,
    }


def options(authority: Path, mechanism: str = "PLAIN") -> dict[str, str]:
    """Options of Spark's source; the password is in the environment."""
    module = "scram.Scram" if mechanism.startswith("SCRAM") else "plain.Plain"
    return {
        "kafka.security.protocol": "SASL_SSL",
        "kafka.ssl.truststore.type": "PEM",
        "kafka.ssl.truststore.location": str(authority),
        "kafka.sasl.mechanism": mechanism,
        "kafka.sasl.jaas.config": f"org.apache.kafka.common.security.{module}LoginModule "
        f'required username="{USER}" password="${{env:KAFKA_PASSWORD}}";',
    }


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredBroker]:
    folder = tmp_path_factory.mktemp("secured")
    authority = Authority.new("one that is trusted")
    keys, trusted = folder / "broker.pem", folder / "authority.pem"
    keys.write_bytes(authority.signed_for_this_machine())
    trusted.write_bytes(authority.pem())
    plain = "org.apache.kafka.common.security.plain.PlainLoginModule required"
    scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
    properties = {
        "listener.security.protocol.map": "BROKER:SASL_SSL,CONTROLLER:PLAINTEXT",
        "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-512",
        "sasl.mechanism.inter.broker.protocol": "PLAIN",
        "listener.name.broker.plain.sasl.jaas.config": f'{plain} username="{USER}" '
        f'password="{PASSWORD}" user_{USER}="{PASSWORD}";',
        "listener.name.broker.scram-sha-512.sasl.jaas.config": scram,
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(keys),
        # It tries its own certificate before it starts.
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(trusted),
    }
    settings = client(trusted)
    try:
        broker = start_broker(folder, properties=properties, client_settings=settings)
        servers = broker.bootstrap_servers
        with closing(KafkaAdminClient(bootstrap_servers=servers, **settings)) as admin:
            user = UserScramCredentialUpsertion(USER, "SCRAM-SHA-512", PASSWORD)
            admin.alter_user_scram_credentials([user])
        yield SecuredBroker(servers, trusted)
    finally:
        stop_broker(folder)


@dataclass(frozen=True)
class Authority:
    """A certificate authority."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @staticmethod
    def new(name: str) -> Authority:
        key = ec.generate_private_key(ec.SECP256R1())
        issuer = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        builder = _certificate(issuer, issuer, key).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        return Authority(builder.sign(key, hashes.SHA256()), key)

    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def signed_for_this_machine(self) -> bytes:
        """A key and its certificate, as Kafka reads them from one file."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "broker")])
        addresses = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
        certificate = (
            _certificate(subject, self.certificate.subject, key)
            .add_extension(addresses, critical=False)
            .sign(self.key, hashes.SHA256())
        )
        private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return private + certificate.public_bytes(serialization.Encoding.PEM)


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
    )


@pytest.fixture
def topic(secured: SecuredBroker) -> Topic:
    name = f"secured-{uuid.uuid4().hex[:8]}"
    create_topic(secured.servers, name, partitions=1, client_settings=client(secured.authority))
    return Topic(name, secured.servers)


@pytest.fixture(autouse=True)
def password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_PASSWORD", PASSWORD)


def positions(topic: Topic, secured: SecuredBroker) -> set[Position]:
    ends = read_end_offsets(
        topic.bootstrap_servers, topic.name, client_settings=client(secured.authority)
    )
    return {Position(topic.name, 0, offset) for offset in range(ends[0])}


@pytest.mark.long
@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-512"])
def test_messages_are_sent_and_read_with_a_password_over_tls(
    spark: SparkSession,
    secured: SecuredBroker,
    topic: Topic,
    configure: Configure,
    mechanism: str,
) -> None:
    failed = produce(
        [image("cat", tiny_picture())],
        bootstrap_servers=topic.bootstrap_servers,
        topic=topic.name,
        client_settings=client(secured.authority, mechanism),
    )
    assert failed == []
    config = configure(kafka={"options": options(secured.authority, mechanism)})

    start(spark, config)

    rows = check_outcomes(Path(config.table.path), positions(topic, secured))
    assert len(rows) == 1


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-512"])
def test_the_error_for_a_wrong_password_names_the_setting_but_not_the_password(
    spark: SparkSession,
    secured: SecuredBroker,
    configure: Configure,
    monkeypatch: pytest.MonkeyPatch,
    mechanism: str,
) -> None:
    monkeypatch.setenv("KAFKA_PASSWORD", WRONG)
    config = configure(kafka={"options": options(secured.authority, mechanism)})

    message = refusal(spark, config, "topics")

    assert "refuses the credentials" in message
    assert "kafka.sasl.jaas.config" in message
    assert WRONG not in message


def test_the_error_for_a_malformed_password_setting_does_not_contain_it(
    spark: SparkSession,
    secured: SecuredBroker,
    configure: Configure,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KAFKA_PASSWORD", f'half" {WRONG}')
    config = configure(kafka={"options": options(secured.authority)})

    message = refusal(spark, config, "topics")

    assert "Kafka cannot read kafka.sasl.jaas.config" in message
    assert WRONG not in message


def test_the_error_for_an_untrusted_certificate_names_the_setting(
    spark: SparkSession, secured: SecuredBroker, configure: Configure, tmp_path: Path
) -> None:
    other = tmp_path / "other.pem"
    other.write_bytes(Authority.new("another").pem())
    changed = {**options(secured.authority), "kafka.ssl.truststore.location": str(other)}
    config = configure(kafka={"options": changed})

    message = refusal(spark, config, "topics")

    assert "no trusted TLS connection" in message
    assert "kafka.ssl.truststore" in message


def test_a_missing_truststore_is_named(
    spark: SparkSession, secured: SecuredBroker, configure: Configure
) -> None:
    changed = {
        **options(secured.authority),
        "kafka.ssl.truststore.location": "/nowhere/authority.pem",
    }
    config = configure(kafka={"options": changed})

    assert "/nowhere/authority.pem" in refusal(spark, config, "topics")


@pytest.mark.long
def test_the_error_for_a_client_without_tls_names_the_options(
    spark: SparkSession, topic: Topic, configure: Configure
) -> None:
    assert "kafka.options" in refusal(spark, configure(), "topics")


@pytest.mark.parametrize("wrong", ["sasl_plain_password", "ssl_cafile"])
def test_the_error_for_a_refused_producer_names_the_setting(
    secured: SecuredBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    authority = secured.authority
    if wrong == "ssl_cafile":
        authority = tmp_path / "other.pem"
        authority.write_bytes(Authority.new("another").pem())
    else:
        monkeypatch.setenv("KAFKA_PASSWORD", WRONG)

    refused = embedstream(*sending(tmp_path, "images", SecuredBroker(secured.servers, authority)))

    assert refused.returncode == 2, refused.stdout
    assert wrong in refused.stdout.splitlines()[-1]
    assert WRONG not in refused.stdout


@pytest.mark.long
def test_the_commands_print_no_password(
    secured: SecuredBroker, topic: Topic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(topic, tmp_path)
    tree = yaml.safe_load(config.read_text())
    tree["kafka"]["options"] = options(secured.authority)
    config.write_text(yaml.safe_dump(tree))

    sent = embedstream(*sending(tmp_path, topic.name, secured))
    ran = embedstream("run", str(config), "--available-now")
    monkeypatch.setenv("KAFKA_PASSWORD", WRONG)
    refused = embedstream("check", str(config))

    assert sent.returncode == 0, sent.stdout
    assert ran.returncode == 0, ran.stdout
    check_outcomes(tmp_path / "table", positions(topic, secured))
    assert refused.returncode == 1, refused.stdout
    assert "FAIL topics" in refused.stdout
    printed = [sent.stdout, ran.stdout, refused.stdout]
    kept = [path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file()]
    for secret in (PASSWORD, WRONG):
        assert not [text for text in printed + kept if secret in text]


def sending(folder: Path, topic: str, to: SecuredBroker) -> list[str]:
    """The arguments that send an image; the password is in the environment."""
    picture = folder / "cat.jpg"
    picture.write_bytes(tiny_picture())
    settings = {
        **client(to.authority),
        "sasl_plain_password": "env:KAFKA_PASSWORD",
        "bootstrap_timeout_ms": 4000,
    }
    given = [f"--client={name}={value}" for name, value in settings.items()]
    return ["produce", str(picture), "--topic", topic, "--bootstrap-servers", to.servers, *given]


def embedstream(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "embedstream", *arguments]
    return subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=200,
    )
