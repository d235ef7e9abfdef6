"""Sending files to a topic from the command line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from embedstream.cli import console
from embedstream.config.secrets import resolve_options, reveal
from embedstream.config.yaml import read_yaml
from embedstream.kafka.admin import create_topic
from embedstream.kafka.dev_broker import find_running_broker
from embedstream.kafka.produce import OutgoingMessage, build_messages, find_files, produce
from embedstream_core.errors import SetupError

__all__ = ["find_embedded_servers", "read_client_settings", "send_files"]


def find_embedded_servers(folder: Path) -> str:
    """Return the address of the broker that runs in a folder."""
    if (broker := find_running_broker(folder)) is None:
        raise SetupError(
            f"no broker runs in {folder}; start it with 'embedstream broker start', or give "
            "--bootstrap-servers"
        )
    return broker.bootstrap_servers


def read_client_settings(pairs: Iterable[str]) -> dict[str, Any]:
    """Read NAME=VALUE settings of kafka-python."""
    settings: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise SetupError(f"--client takes NAME=VALUE, as security_protocol=SSL; not '{pair}'")
        settings[name] = read_yaml(value, f"the value of {name}", typed=True)
    texts = reveal(resolve_options(settings))
    # Kafka's client for Python, unlike the one for Java, takes numbers and booleans as such.
    return settings | {
        name: text for name, text in texts.items() if isinstance(settings[name], str)
    }


def send_files(
    paths: list[Path],
    topic: str,
    *,
    servers: str,
    form: Literal["bytes", "reference"],
    partitions: int | None,
    settings: dict[str, Any],
) -> bool:
    """Send files and print those, and those lines, that were not sent; return whether all were."""
    files = find_files(paths)
    if partitions is not None:
        create_topic(servers, topic, partitions=partitions, client_settings=settings)
    unsent: list[str] = []
    read = 0

    def count(messages: Iterable[OutgoingMessage]) -> Iterator[OutgoingMessage]:
        nonlocal read
        for message in messages:
            read += 1
            yield message

    messages = build_messages(
        console.track_sending(files),
        form=form,
        on_unreadable=lambda name, reason: unsent.append(f"{name}: {reason}"),
    )
    failed = produce(
        count(messages), bootstrap_servers=servers, topic=topic, client_settings=settings
    )
    sent, total = read - len(failed), read + len(unsent)
    for line in (*unsent, *(f"{key}: {reason}" for key, reason in failed)):
        console.print_error(f"not sent: {line}")
    console.print_text(f"{sent} of {total} messages are in topic '{topic}'")
    return sent == total
