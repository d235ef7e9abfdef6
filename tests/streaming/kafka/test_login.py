"""Logins of kafka-python: those that it cannot make are refused with the reason."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from embedstream.kafka.admin import read_end_offsets
from embedstream.kafka.login import check_login
from embedstream.search.contents import KafkaReader
from embedstream_core.errors import SetupError

IAM = {"security_protocol": "SASL_SSL", "sasl_mechanism": "AWS_MSK_IAM"}


@pytest.fixture(autouse=True)
def nothing_of_aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_DEFAULT_REGION", "AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "absent"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def listening() -> Iterator[str]:
    """The address of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("mechanism", [None, "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "GSSAPI"])
def test_a_login_of_kafka_python_passes(mechanism: str | None) -> None:
    check_login({"sasl_mechanism": mechanism})


@pytest.mark.parametrize("mechanism", ["OAUTHBEARER", "NTLM"])
def test_a_login_of_the_java_client_alone_is_refused(mechanism: str, listening: str) -> None:
    settings = {"security_protocol": "SASL_SSL", "sasl_mechanism": mechanism}
    message = f"the SASL mechanism {mechanism}: outside of Spark .* what the stream reads"

    with pytest.raises(SetupError, match=message):
        KafkaReader(listening, settings).read("images", 0, 0)
    with pytest.raises(SetupError, match=message):
        read_end_offsets(listening, "images", client_settings=settings)


def test_iam_needs_a_region_and_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SetupError, match="set AWS_DEFAULT_REGION"):
        check_login(IAM)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    with pytest.raises(SetupError, match="finds no AWS credentials"):
        check_login(IAM)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    check_login(IAM)
