"""Topics created and looked up through kafka-python, without Spark."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from typing import Any

from embedstream.kafka.login import check_login
from embedstream_core.errors import SetupError

__all__ = ["create_topic", "is_answering", "read_end_offsets"]

_CONNECT_TIMEOUT_S = 5.0
_TIMEOUTS = {"bootstrap_timeout_ms": 10_000, "request_timeout_ms": 30_000}

# Arguments give the address, and a delivery is guaranteed only with `acks=all`.
_FIXED_SETTINGS = {"acks", "bootstrap_servers"}


def create_topic(
    bootstrap_servers: str,
    topic: str,
    *,
    partitions: int,
    client_settings: Mapping[str, Any] | None = None,
) -> None:
    """Create `topic`; an existing one stays as it is. Replication is the broker's default.

    Raises:
        SetupError: no broker answers, or it refuses the topic.
    """
    from kafka.admin import NewTopic
    from kafka.errors import TopicAlreadyExistsError

    with (
        _open_admin(bootstrap_servers, client_settings) as admin,
        suppress(TopicAlreadyExistsError),
    ):
        admin.create_topics([NewTopic(topic, partitions, -1)], wait_for_metadata=True)


def read_end_offsets(
    bootstrap_servers: str, topic: str, *, client_settings: Mapping[str, Any] | None = None
) -> dict[int, int]:
    """Return the offset that the next message of each partition gets: {partition: offset}.

    Raises:
        SetupError: no broker answers, or the topic does not exist.
    """
    from kafka import OffsetSpec, TopicPartition

    with _open_admin(bootstrap_servers, client_settings) as admin:
        if topic not in admin.list_topics():
            raise SetupError(f"no topic {topic!r} at {bootstrap_servers}; create it first")
        (description,) = admin.describe_topics([topic])
        numbers = sorted(one["partition_index"] for one in description["partitions"])
        wanted = {TopicPartition(topic, number): OffsetSpec.LATEST for number in numbers}
        found = admin.list_partition_offsets(wanted)
    return {partition.partition: int(found[partition].offset) for partition in wanted}


def is_answering(
    bootstrap_servers: str, *, client_settings: Mapping[str, Any] | None = None
) -> bool:
    """Return whether a broker answers at the address."""
    try:
        with _open_admin(bootstrap_servers, client_settings) as admin:
            return bool(admin.describe_cluster()["brokers"])
    except SetupError:
        return False


@contextmanager
def _open_admin(bootstrap_servers: str, settings: Mapping[str, Any] | None) -> Iterator[Any]:
    """Open an admin client with those of a producer's settings that it takes too."""
    from kafka import KafkaProducer
    from kafka.admin import KafkaAdminClient
    from kafka.errors import KafkaError

    servers = [server for server in bootstrap_servers.split(",") if _accepts_connections(server)]
    if not servers:
        raise SetupError(
            f"nothing listens at {bootstrap_servers}; check the address, or start a broker with "
            "`embedstream broker start`"
        )
    settings = settings or {}
    known = KafkaProducer.DEFAULT_CONFIG.keys() - _FIXED_SETTINGS
    if unknown := sorted(settings.keys() - known):
        raise SetupError(
            f"client settings that cannot be given: {', '.join(unknown)}; known: "
            f"{', '.join(sorted(known))}"
        )
    check_login(settings)
    shared = {name: settings[name] for name in settings.keys() & KafkaAdminClient.DEFAULT_CONFIG}
    try:
        with closing(
            KafkaAdminClient(bootstrap_servers=servers, **{**_TIMEOUTS, **shared})
        ) as admin:
            yield admin
    except KafkaError as error:
        raise SetupError(
            f"Kafka at {bootstrap_servers} did not complete the request: {error}; check the "
            "address and the client settings, such as security_protocol, ssl_cafile, "
            "sasl_mechanism and sasl_plain_password"
        ) from error


def _accepts_connections(server: str) -> bool:
    """Try to connect: kafka-python takes long to give up, and leaks the socket."""
    host, _, port = server.strip().rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), port), timeout=_CONNECT_TIMEOUT_S):
            return True
    # For a name that DNS does not allow, such as `a..b`, Python raises UnicodeError.
    except (OSError, UnicodeError):
        return False
