"""`file:///folder/name`: regular files in the allowed folders, or allowed by themselves."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

from embedstream_core.errors import ItemError, SetupError
from embedstream_core.fetch import verdicts
from embedstream_core.fetch.limits import Deadline, read_within
from embedstream_core.fetch.references import split_reference
from embedstream_core.settings import FetchPolicy

__all__ = ["FileSource"]

_CHUNK_BYTES = 1024 * 1024
# Nothing is followed, and opening a FIFO or a device does not block.
_SAFELY = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FILE = os.O_RDONLY | _SAFELY
_FOLDER = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | _SAFELY
_MISSING = {errno.ENOENT, errno.ENOTDIR}
_PASSING = {errno.EAGAIN, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ETIMEDOUT}


class FileSource:
    """Reads regular files. The allowed folders are resolved once, here.

    What is no folder stands for that one file. Raises SetupError for one that is not there.
    """

    def __init__(self, policy: FetchPolicy) -> None:
        self._folders = tuple(_resolved_folder(folder) for folder in policy.folders)
        self._files = {path for path in self._folders if not path.is_dir()}
        self._given = policy.folders
        self._max_bytes = policy.max_bytes

    def fetch(self, uri: str, deadline: Deadline) -> bytes:
        """The bytes of the file; links inside the allowed folders are followed."""
        named = _named_path(uri)
        path = Path(os.path.realpath(named))
        folder = self._folder_of(path, named)
        with _translated(), _opened(folder, path.relative_to(folder).parts) as file:
            return self._read(file, deadline)

    def close(self) -> None:
        """Nothing is kept open."""

    def _folder_of(self, path: Path, named: str) -> Path:
        if path in self._files:
            return path.parent
        for folder in self._folders:
            if path.is_relative_to(folder):
                return folder
        # Nothing is said of where a link leads that is not in an allowed folder itself.
        plain = Path(os.path.normpath(named))
        if any(plain.is_relative_to(folder) for folder in (*self._folders, *self._given)):
            raise verdicts.denied(
                f"it is a link, or behind one, that leads out of the allowed folder to '{path}'; "
                f"allow '{path.parent}' as well if that is meant"
            )
        raise verdicts.denied(
            f"the file is not in an allowed folder; allowed: {verdicts.listed(self._folders)}"
        )

    def _read(self, file: int, deadline: Deadline) -> bytes:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise verdicts.unreadable("not a regular file")
        if status.st_size > self._max_bytes:
            raise verdicts.too_large(self._max_bytes)
        chunks = iter(lambda: os.read(file, _CHUNK_BYTES), b"")
        return read_within(chunks, max_bytes=self._max_bytes, deadline=deadline)


def _resolved_folder(folder: Path) -> Path:
    try:
        return folder.resolve(strict=True)
    except OSError as error:
        raise SetupError(f"allowed folder '{folder}' cannot be used: {error.strerror}") from error


def _named_path(uri: str) -> str:
    parts = split_reference(uri)
    if parts.netloc.lower() not in ("", "localhost"):
        raise verdicts.denied("a file reference names no other host: write file:///folder/name")
    if parts.query or parts.fragment:
        raise verdicts.denied("write '?' as %3F and '#' as %23 in a file reference")
    path = unquote(parts.path, errors="surrogateescape")
    if "\0" in path:
        raise verdicts.denied("a file reference has no %00")
    if not path.startswith("/"):
        raise verdicts.denied("a file reference needs an absolute path: file:///folder/name")
    return path


@contextmanager
def _opened(folder: Path, parts: tuple[str, ...]) -> Iterator[int]:
    """The file below `folder`, opened step by step.

    The path was resolved, so a link on the way was put there since, to lead out: O_NOFOLLOW
    refuses it at every step, which one open() of the whole path would not.
    """
    *folders, name = parts or (".",)
    descriptors = [os.open(folder, _FOLDER)]
    try:
        for step in folders:
            descriptors.append(os.open(step, _FOLDER, dir_fd=descriptors[-1]))
        descriptors.append(os.open(name, _FILE, dir_fd=descriptors[-1]))
        yield descriptors[-1]
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _verdict(error) from error


def _verdict(error: OSError) -> ItemError:
    reason = error.strerror or "the file cannot be read"
    if error.errno in _MISSING:
        return verdicts.not_found(reason)
    if error.errno == errno.ELOOP:
        return verdicts.denied("a link in a circle, or one that appeared while it was opened")
    if error.errno in _PASSING:
        return verdicts.try_again(reason)
    return verdicts.unreadable(reason)
