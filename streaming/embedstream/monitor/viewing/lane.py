"""A child process that answers requests one after the other."""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import IO, Any

from embedstream.config.sections import BulkFilesConfig, StreamConfig
from embedstream.monitor.viewing.wire import read_answer
from embedstream_core.errors import SetupError

__all__ = ["Lane"]

_log = logging.getLogger(__name__)

_SAID_BYTES = 2000
# A list of 200 rows has at most 20 MB. A child that some content has taken over may send anything,
# and what is longer ends it.
_ANSWER_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class _Job:
    request: str
    arguments: tuple[Any, ...]
    answer: Future[Any] = field(default_factory=Future)


@dataclass(frozen=True, slots=True)
class _Child:
    process: subprocess.Popen[bytes]
    connection: Connection
    said: IO[bytes]
    """What it prints."""


class Lane:
    """Requests that wait for one child process, which starts with the first one.

    The child is killed when a request takes longer than `limit_s`, and when there was none for
    `idle_s`; the next request starts another one. At most `waiting` requests wait for their turn.
    """

    def __init__(
        self,
        config: StreamConfig | BulkFilesConfig,
        *,
        config_words: str,
        limit_s: float,
        waiting: int,
        idle_s: float,
    ) -> None:
        self._settings = config, config_words
        self._limit_s = limit_s
        self._idle_s = idle_s
        self._jobs: queue.Queue[_Job | None] = queue.Queue(waiting)
        self._child: _Child | None = None
        self._lock = threading.Lock()
        # A daemon: an answer that nobody waits for must not delay the end of the driver. The kernel
        # ends the child with the thread that started it, so there is one thread for the whole time.
        self._thread = threading.Thread(target=self._work, name="viewer", daemon=True)
        self._is_closed = False

    async def ask(self, request: str, *arguments: object) -> Any:
        """Return the child's answer.

        Raises:
            SetupError: the request is refused, too many others wait, or it took too long.
        """
        job = _Job(request, arguments)
        with self._lock:
            if self._is_closed:
                raise _refuse_closed()
            try:
                self._jobs.put_nowait(job)
            except queue.Full:
                raise _refuse_busy() from None
            if not self._thread.ident:
                self._thread.start()
        try:
            # Requests before this one may take their own time, and then this one does.
            async with asyncio.timeout(2 * self._limit_s):
                return await asyncio.wrap_future(job.answer)
        except TimeoutError:
            raise _refuse_busy() from None

    def close(self) -> None:
        """Kill the child; requests in progress fail."""
        with self._lock:
            self._is_closed = True
            with suppress(queue.Empty):
                while (job := self._jobs.get_nowait()) is not None:
                    # Cancelling it would cancel the task that waits for it.
                    if job.answer.set_running_or_notify_cancel():
                        job.answer.set_exception(_refuse_closed())
            self._jobs.put_nowait(None)
            if self._child is not None:
                self._child.process.kill()
        if self._thread.ident:
            self._thread.join(self._limit_s)

    def _work(self) -> None:
        """Answer the requests in order, until the lane is closed."""
        while True:
            try:
                job = self._jobs.get(timeout=self._idle_s if self._child else None)
            except queue.Empty:
                self._end_child()
                continue
            if job is None:
                self._end_child()
                return
            # Nobody waits for an answer that was cancelled.
            if job.answer.set_running_or_notify_cancel():
                try:
                    job.answer.set_result(self._answer(job))
                except BaseException as error:
                    job.answer.set_exception(error)
            # It may hold an upload, and the next one may be far away.
            del job

    def _answer(self, job: _Job) -> Any:
        try:
            child = self._child or self._start()
        except OSError as error:
            raise SetupError(f"the viewer's process cannot be started: {error}") from None
        started = time.monotonic()
        # Killing the child ends every wait for it: until it reads, until it answers, and in the
        # middle of an answer.
        timer = threading.Timer(self._limit_s, child.process.kill)
        timer.daemon = True
        timer.start()
        try:
            child.connection.send((job.request, job.arguments))
            answer = child.connection.recv_bytes(_ANSWER_BYTES)
        except (EOFError, OSError):
            end = self._end_child()
            if time.monotonic() - started >= self._limit_s:
                raise SetupError(
                    f"this took longer than {self._limit_s:g} s and was ended; try it again later"
                ) from None
            raise SetupError(f"the viewer's process ended by {end}; try it again") from None
        finally:
            timer.cancel()
            if time.monotonic() - started >= self._limit_s:
                # The timer may have killed a child that has just answered.
                self._end_child()
        return read_answer(job.request, answer)

    def _start(self) -> _Child:
        connection, other = Pipe()
        said = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the child
        with other:
            process = subprocess.Popen(
                [sys.executable, "-m", "embedstream.monitor.viewing.child"],
                stdin=other.fileno(),
                stdout=said,
                stderr=said,
                env={**os.environ, **self._list_variables()},
                # Ctrl-C is the driver's.
                process_group=0,
            )
        child = _Child(process, connection, said)
        with self._lock:
            self._child = child
            if self._is_closed:
                process.kill()
        # Through the pipe, as other users of the machine see command lines. If the child has ended
        # already, the request reports it.
        with suppress(OSError):
            connection.send(self._settings)
        return child

    def _list_variables(self) -> dict[str, str]:
        """Return what keeps the child away from the stream's processors and its GPU."""
        config, _ = self._settings
        master = config.spark.master or "local"
        threads = {"OMP_NUM_THREADS": "1"} if master.startswith("local") else {}
        return {"CUDA_VISIBLE_DEVICES": "", "OPENBLAS_NUM_THREADS": "1", **threads}

    def _end_child(self) -> str:
        """Kill the child, unless it has ended by itself; return how it ended."""
        with self._lock:
            child, self._child = self._child, None
        if child is None:
            return ""
        child.connection.close()
        is_expected = child.process.poll() is None
        child.process.kill()
        status = child.process.wait()
        with child.said as said:
            said.seek(max(0, said.seek(0, os.SEEK_END) - _SAID_BYTES))
            text = said.read().decode("utf-8", "backslashreplace").strip()
        end = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        if not is_expected and not self._is_closed:
            _log.warning("the viewer's process ended by %s%s", end, f":\n{text}" if text else "")
        return end


def _refuse_busy() -> SetupError:
    return SetupError("the viewer is busy with other requests; try it again in a moment")


def _refuse_closed() -> SetupError:
    return SetupError("the viewer is closed, as its stream ends; start that again")
