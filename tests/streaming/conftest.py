"""What the streaming tests share: one broker for the session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from embedstream.broker import Broker, start_broker, stop_broker


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A broker on a free port; it has no topic yet."""
    folder = tmp_path_factory.mktemp("broker")
    try:
        yield start_broker(folder)
    finally:
        stop_broker(folder)
