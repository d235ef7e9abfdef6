"""A registry for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from registry_server import RegistryServer, serve_registry


@pytest.fixture
def registry() -> Iterator[RegistryServer]:
    with serve_registry() as server:
        yield server
