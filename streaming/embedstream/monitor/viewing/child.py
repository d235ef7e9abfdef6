"""A child process of the viewer; its standard input is a socket to the driver.

It ends when the socket is closed, and with the driver's thread that started it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import traceback
from functools import cached_property
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from embedstream.config.sections import BulkFilesConfig, StreamConfig
from embedstream.monitor.viewing.wire import encode_answer, encode_defect, encode_refusal
from embedstream_core.errors import SetupError

if TYPE_CHECKING:
    from embedstream.monitor.viewing.previews import Previews
    from embedstream.monitor.viewing.questions import Questions
    from embedstream.monitor.viewing.rows import Rows

__all__ = ["main"]

_PR_SET_PDEATHSIG = 1
_NICENESS = 10


class _Services:
    """What answers requests; each part is imported and opened when it is first needed."""

    def __init__(self, config: StreamConfig | BulkFilesConfig, config_words: str) -> None:
        self._config = config
        self._config_words = config_words

    @cached_property
    def _rows(self) -> Rows:
        from embedstream.monitor.viewing.rows import Rows

        return Rows(self._config, config_words=self._config_words)

    @cached_property
    def _previews(self) -> Previews:
        from embedstream.monitor.viewing.previews import Previews

        return Previews(self._config, self._rows)

    @cached_property
    def _questions(self) -> Questions:
        from embedstream.monitor.viewing.questions import Questions

        return Questions(self._config)

    def answer(self, request: str, arguments: tuple[Any, ...]) -> bytes:
        """Return the encoded answer to a request."""
        try:
            match request:
                case "preview":
                    value: object = self._previews.preview(*arguments)
                case "search":
                    value = self._questions.search(*arguments)
                case _:
                    value = getattr(self._rows, request)(*arguments)
            return encode_answer(request, value)
        except SetupError as error:
            return encode_refusal(str(error))
        except Exception:
            return encode_defect(traceback.format_exc())


def main(connection: Connection) -> None:
    """Answer requests until the connection is closed."""
    os.nice(_NICENESS)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        services = _Services(*connection.recv())
        while True:
            connection.send_bytes(services.answer(*connection.recv()))
    except (EOFError, OSError):
        return


if __name__ == "__main__":
    main(Connection(0))
