"""`file:///folder/name`: regular files in the allowed folders, or allowed by themselves."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from urllib.parse import unquote

from embedstream_core.errors import SetupError
from embedstream_core.fetch.errors import Denied, NotFound, TryAgain, Unreadable
from embedstream_core.fetch.limits import Deadline, read_within
from embedstream_core.fetch.references import split_reference
from embedstream_core.settings import FetchPolicy

__all__ = ["FileSource"]

_CHUNK_BYTES = 1024 * 1024
# Follows no link, and does not block on a FIFO or a device.
_SAFELY = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FILE = os.O_RDONLY | _SAFELY
_FOLDER = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | _SAFELY
_MISSING = {errno.ENOENT, errno.ENOTDIR}
_RETRIED = {errno.EAGAIN, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ETIMEDOUT}


class FileSource:
    """Reads regular files. An entry of `folders` that is a file allows that one file.

    Raises:
        SetupError: an allowed folder does not exist. The folders are resolved once, here.
    """

    def __init__(self, policy: FetchPolicy) -> None:
        self._folders: tuple[Path, ...] = ()
        for folder in policy.folders:
            try:
                self._folders += (folder.resolve(strict=True),)
            except OSError as error:
                reason = error.strerror
                raise SetupError(f"allowed folder '{folder}' cannot be used: {reason}") from error
        self._files = {path for path in self._folders if not path.is_dir()}
        self._given = policy.folders
        self._max_bytes = policy.max_bytes

    def fetch(self, uri: str, deadline: Deadline) -> bytes:
        """Return the bytes of the file; links inside the allowed folders are followed."""
        try:
            folder, path = self._find(uri)
            *folders, name = path.relative_to(folder).parts or (".",)
            with ExitStack() as opened:
                # The path is resolved, so a link in it is new and may lead out of the folder.
                # O_NOFOLLOW refuses it at every step; one open() of the whole path would follow it.
                file = None
                for step in (str(folder), *folders):
                    file = os.open(step, _FOLDER, dir_fd=file)
                    opened.callback(os.close, file)
                file = os.open(name, _FILE, dir_fd=file)
                opened.callback(os.close, file)
                status = os.fstat(file)
                if not stat.S_ISREG(status.st_mode):
                    raise Unreadable("not a regular file")
                return read_within(
                    iter(partial(os.read, file, _CHUNK_BYTES), b""),
                    declared_bytes=status.st_size,
                    max_bytes=self._max_bytes,
                    deadline=deadline,
                )
        except OSError as error:
            reason = error.strerror or "the file cannot be read"
            if error.errno in _MISSING:
                raise NotFound(reason) from error
            if error.errno == errno.ELOOP:
                reason = "a link in a circle, or one that appeared while it was opened"
                raise Denied(reason) from error
            raise (TryAgain if error.errno in _RETRIED else Unreadable)(reason) from error

    def close(self) -> None:
        """Do nothing: no file is kept open."""

    def _find(self, uri: str) -> tuple[Path, Path]:
        """Return the allowed folder of a file, and the file's path without links."""
        parts = split_reference(uri)
        if parts.netloc.lower() not in ("", "localhost"):
            raise Denied("a file reference must not name a host: write file:///folder/name")
        if parts.query or parts.fragment:
            raise Denied("write '?' as %3F and '#' as %23 in a file reference")
        named = unquote(parts.path, errors="surrogateescape")
        if "\0" in named:
            raise Denied("a file reference must not contain %00")
        if not named.startswith("/"):
            raise Denied("a file reference needs an absolute path: file:///folder/name")
        path = Path(os.path.realpath(named))
        if path in self._files:
            return path.parent, path
        for folder in self._folders:
            if path.is_relative_to(folder):
                return folder, path
        # The target of a link is named only for a link that is in an allowed folder itself.
        plain = Path(os.path.normpath(named))
        if any(plain.is_relative_to(folder) for folder in (*self._folders, *self._given)):
            raise Denied(
                f"it is a link, or behind one, that leads out of the allowed folder to '{path}'; "
                f"allow '{path.parent}' as well if that is meant"
            )
        allowed = ", ".join(map(str, self._folders))
        raise Denied(f"the file is not in an allowed folder; allowed: {allowed}")
