"""A folder in memory that obeys the contract of `embedstream.spark.folder.Folder`.

`tests/streaming/spark/test_folder_contract.py` runs the same tests on both.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import cast

from pyspark.sql import SparkSession

from embedstream.spark.folder import Folder, UnreadableFile

__all__ = ["MemoryFolder"]

_LOCK = threading.Lock()


@dataclass(frozen=True, eq=False)
class MemoryFolder(Folder):
    """Files by their full paths; folders within one another share them."""

    spark: SparkSession = field(default=cast(SparkSession, None), repr=False)
    location: str = "memory:/folder"
    files: dict[str, bytes] = field(default_factory=dict)

    def check_reachable(self) -> None:
        pass

    def get_folder(self, name: str) -> MemoryFolder:
        return MemoryFolder(location=f"{self.location}/{name}", files=self.files)

    def has_exclusive_create(self) -> bool:
        return True

    def make_private(self) -> None:
        pass

    def list_sizes(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for path, content in self._within(self.location).items():
            name, *inner = path.split("/")
            if not name.startswith("."):
                found[name] = 0 if inner else len(content)
        return found

    def read(self, name: str) -> str | None:
        path = f"{self.location}/{name}"
        if self._within(path):
            raise UnreadableFile("it is a folder")
        try:
            return self.files[path].decode() if path in self.files else None
        except UnicodeDecodeError:
            raise UnreadableFile("it is not UTF-8 text") from None

    def create(self, name: str, text: str) -> bool:
        path = f"{self.location}/{name}"
        with _LOCK:
            if path in self.files:
                return False
            self.files[path] = text.encode()
        return True

    def replace(self, name: str, text: str) -> None:
        self.files[f"{self.location}/{name}"] = text.encode()

    def delete(self, name: str) -> None:
        self.files.pop(f"{self.location}/{name}", None)

    def remove_if_empty(self) -> None:
        if not self.list_sizes():
            for name in self._within(self.location):
                self.delete(name)

    def _within(self, location: str) -> dict[str, bytes]:
        start = f"{location}/"
        files = self.files.items()
        return {path[len(start) :]: text for path, text in files if path.startswith(start)}
