"""Decode in a child process, in which content may crash, hang or use up the memory.

Run as a module, this is the child: its standard input is a socket, from which it reads its settings
and then, for each content, the modality's name and the bytes. It answers with JSON and the samples'
arrays: a child that a broken file has taken over can send nothing that would run code here. It ends
when the socket is closed.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import KW_ONLY, asdict, dataclass
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from embedstream_core.boundary import attempt
from embedstream_core.errors import (
    Code,
    EmbedstreamError,
    SetupError,
    Stage,
    build_decode_error,
    explain,
)
from embedstream_core.media.modalities import MODALITIES, Inputs
from embedstream_core.media.modality import Array, Sample
from embedstream_core.records import Failure, Media
from embedstream_core.settings import DecodeSettings, Isolation, ModalityName

__all__ = ["SandboxedDecoder"]

_PR_SET_PDEATHSIG = 1


@dataclass
class SandboxedDecoder:
    """Decodes one content at a time in a child process, which is replaced after one that ends it.

    Threads may share it. Unlike decoding in this process, it copies the bytes and the samples.
    `measure` encloses the work on a content, without the wait for a turn.
    """

    inputs: Inputs
    settings: DecodeSettings
    _: KW_ONLY
    isolation: Isolation
    measure: Callable[[], AbstractContextManager[object]] = nullcontext

    def __post_init__(self) -> None:
        self._child: tuple[subprocess.Popen[bytes], Connection] | None = None
        self._lock = threading.Lock()
        # The kernel ends the child with the thread that started it, so that thread stays.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="start-decoder")

    def decode(self, content: bytes, modality: ModalityName) -> list[Sample]:
        """Decode for each preprocessing of the modality.

        Raises:
            ItemError: the content is refused, ends the child, takes too long, or makes the child
                answer with anything but samples.
            SetupError: a package that decodes this modality is missing.
        """
        with self._lock, self.measure():
            self._child = self._child or self._starter.submit(self._start).result()
            answer = self._ask(*self._child, content, modality)
        if isinstance(answer, list):
            return answer
        raise answer

    def _ask(
        self,
        process: subprocess.Popen[bytes],
        connection: Connection,
        content: bytes,
        modality: ModalityName,
    ) -> list[Sample] | EmbedstreamError:
        """Return the child's answer, or an error for what became of it."""
        timeout_s = self.isolation.timeout_s
        started = time.monotonic()
        # Killing the child ends every wait for it: until it reads the content, until it answers,
        # and in the middle of an answer.
        timer = threading.Timer(timeout_s, process.kill)
        timer.start()
        try:
            connection.send_bytes(modality.encode())
            connection.send_bytes(content)
            return _receive_answer(connection)
        except (EOFError, OSError):
            status = self._end_child()
            if time.monotonic() - started >= timeout_s:
                message = f"decoding took longer than {timeout_s:g} s"
                return build_decode_error(Code.DECODER_TIMEOUT, message)
            reason = signal.Signals(-status).name if status < 0 else f"exit status {status}"
            return build_decode_error(Code.DECODER_CRASHED, f"the decoder ended by {reason}")
        except Exception as error:
            # A child that a broken file has taken over may send anything.
            self._end_child()
            message = f"the decoder's answer cannot be read: {explain(error)}"
            return build_decode_error(Code.DECODER_CRASHED, message)
        finally:
            timer.cancel()
            if time.monotonic() - started >= timeout_s:
                # The timer may have killed a child that has just answered.
                self._end_child()

    def close(self) -> None:
        """End the child process, if there is one."""
        self._end_child()
        self._starter.shutdown()

    def _start(self) -> tuple[subprocess.Popen[bytes], Connection]:
        connection, other = Pipe()
        with other:
            process = subprocess.Popen(
                [sys.executable, "-m", "embedstream_core.media.sandbox"],
                stdin=other.fileno(),
                # Whatever a decoder prints goes to standard error.
                stdout=2,
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
            )
        settings = self.inputs, self.settings, self.isolation.memory_bytes
        # If the child has ended already, the first content reports it.
        with suppress(OSError):
            connection.send(settings)
        return process, connection

    def _end_child(self) -> int:
        """Kill the child, unless it has ended by itself, and return its exit status."""
        if self._child is None:
            return 0
        process, connection = self._child
        self._child = None
        connection.close()
        process.kill()
        return process.wait()


def _receive_answer(connection: Connection) -> list[Sample] | EmbedstreamError:
    answer = json.loads(connection.recv_bytes())
    if "setup" in answer:
        return SetupError(answer["setup"])
    if "code" in answer:
        return build_decode_error(Code(answer["code"]), answer["message"])
    return [_receive_sample(connection, one) for one in answer["samples"]]


def _receive_sample(connection: Connection, sample: dict[str, Any]) -> Sample:
    parts: list[Array] = [
        np.frombuffer(connection.recv_bytes(), np.dtype(kind)).reshape(shape)
        for kind, shape in sample["parts"]
    ]
    return Sample(tuple(parts), Media(**sample["media"]))


def _send_samples(connection: Connection, samples: list[Sample]) -> None:
    """Send what `_receive_answer` reads."""
    shapes = [[(part.dtype.str, part.shape) for part in one.parts] for one in samples]
    described = [
        {"media": asdict(one.media), "parts": parts}
        for one, parts in zip(samples, shapes, strict=True)
    ]
    connection.send_bytes(json.dumps({"samples": described}).encode())
    for part in (part for one in samples for part in one.parts):
        connection.send_bytes(np.ascontiguousarray(part).tobytes())


def main(connection: Connection) -> None:
    """Decode until the connection is closed."""
    inputs, settings, memory_bytes = connection.recv()
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        bound = pages * resource.getpagesize() + memory_bytes
        resource.setrlimit(resource.RLIMIT_AS, (bound, bound))
        # The kernel ends this process with its parent, even while it decodes.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # Crashes are expected here and need no core dump.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def decode(content: bytes, name: ModalityName) -> list[Sample]:
        modality = MODALITIES[name]
        header = modality.identify(content, settings)
        return modality.decode(content, header, inputs[name], settings)

    while True:
        try:
            name: Any = connection.recv_bytes().decode()
            content = connection.recv_bytes()
        except (EOFError, OSError):
            return
        try:
            outcome = attempt(partial(decode, content, name), Stage.DECODE)
        except MemoryError:
            message = f"decoding needs more than {memory_bytes} bytes of memory"
            outcome = Failure(Code.DECODER_OUT_OF_MEMORY, Stage.DECODE, message)
        except SetupError as error:
            connection.send_bytes(json.dumps({"setup": str(error)}).encode())
            continue
        if isinstance(outcome, Failure):
            failure = {"code": outcome.code, "message": outcome.message}
            connection.send_bytes(json.dumps(failure).encode())
            continue
        _send_samples(connection, outcome)


if __name__ == "__main__":
    main(Connection(0))
