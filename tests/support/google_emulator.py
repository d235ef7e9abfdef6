"""An emulator of Google Cloud Storage, and a key for its users."""

from __future__ import annotations

import json
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

__all__ = ["create_private_key", "open_google_emulator"]


@contextmanager
def open_google_emulator(*buckets: str) -> Iterator[str]:
    """The address of an emulator with these buckets, all in memory."""
    with warnings.catch_warnings():
        # The library that keeps its files imports pkg_resources.
        warnings.simplefilter("ignore")
        from gcp_storage_emulator.server import create_server

    server = create_server("127.0.0.1", 0, in_memory=True)
    server.start()
    url = f"http://127.0.0.1:{server._api._httpd.server_port}"
    try:
        for bucket in buckets:
            made = urllib.request.Request(
                f"{url}/storage/v1/b?project=tests",
                json.dumps({"name": bucket}).encode(),
                {"Content-Type": "application/json"},
            )
            urllib.request.urlopen(made, timeout=20).close()
        yield url
    finally:
        server.stop()


def create_private_key() -> str:
    """A new private key, as a service account's key file has it."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()
