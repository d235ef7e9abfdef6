"""Faults of a broker: it is killed, or it stands still."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from embedstream.kafka.dev_broker import Broker, find_running_broker, start_broker
from stream_fixtures import run_broker

__all__ = ["broker", "come_back", "kill", "standing_still"]


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A broker that these tests kill and stop; it keeps its port."""
    yield from run_broker(tmp_path_factory.mktemp("broker"))


def process(broker: Broker) -> psutil.Process:
    current = find_running_broker(broker.folder)
    assert current is not None
    return psutil.Process(current.pid)


def kill(broker: Broker) -> None:
    victim = process(broker)
    victim.kill()
    victim.wait(20)


def come_back(broker: Broker) -> None:
    start_broker(broker.folder, port=broker.port)


@contextmanager
def standing_still(broker: Broker) -> Iterator[None]:
    stopped = process(broker)
    stopped.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        stopped.send_signal(signal.SIGCONT)
