"""For each test a registry, and a client of either side."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from confluent_kafka.schema_registry import SchemaRegistryClient

from embedstream_core.messages.registry.connection import RegistryConnection
from embedstream_core.messages.registry.schema_registry import SchemaRegistry
from registry_server import RegistryServer, serve_registry


@pytest.fixture
def registry() -> Iterator[RegistryServer]:
    with serve_registry() as server:
        yield server


@pytest.fixture
def decoder(registry: RegistryServer) -> Iterator[SchemaRegistry]:
    made = SchemaRegistry(RegistryConnection(registry.url))
    yield made
    made.close()


@pytest.fixture
def producer(registry: RegistryServer) -> Iterator[SchemaRegistryClient]:
    with SchemaRegistryClient({"url": registry.url}) as client:
        yield client
