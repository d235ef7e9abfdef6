"""Decoding in a child process, which an image may crash, hang, or use up the memory of.

Run as a module, this is the child: it reads its settings and then images from standard input, and
answers each on standard output. It ends with its standard input.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import struct
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from embedstream_core.boundary import attempt
from embedstream_core.errors import Code, ItemError, Stage
from embedstream_core.media.image.decode import Picture, Preprocessing, open_image, render
from embedstream_core.records import Failure
from embedstream_core.settings import DecodeLimits, Fidelity, Isolation

__all__ = ["IsolatedDecoder"]

_LENGTH = struct.Struct(">Q")
_PR_SET_PDEATHSIG = 1


class IsolatedDecoder:
    """Decodes one image at a time in a child, which is started anew when an image has ended it.

    Threads may share it. Other than decoding in process it costs a copy of the bytes and of the
    pixels, and all images take turns.
    """

    def __init__(
        self,
        preprocessing: Preprocessing,
        limits: DecodeLimits,
        *,
        fidelity: Fidelity,
        isolation: Isolation,
    ) -> None:
        self._isolation = isolation
        self._side = preprocessing.crop_px
        settings = {
            "preprocessing": asdict(preprocessing),
            "limits": asdict(limits),
            "fidelity": fidelity,
            "memory_bytes": isolation.memory_bytes,
        }
        self._settings = json.dumps(settings).encode()
        self._child: subprocess.Popen[bytes] | None = None
        self._turn = threading.Lock()
        # The kernel ends the child with the thread that started it, so that thread stays.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="start-decoder")

    def decode(self, content: bytes) -> Picture:
        """What `open_image` and `render` make of the bytes.

        Raises:
            ItemError: what these raise; or the image ended the child, or took too long.
        """
        with self._turn:
            child = self._child = self._child or self._starter.submit(self._start).result()
            expired = threading.Event()
            timer = threading.Timer(self._isolation.timeout_s, _expire, [child, expired])
            timer.start()
            try:
                return self._ask(child, content)
            except (EOFError, BrokenPipeError):
                self._child = None
                raise self._verdict(child, expired) from None
            finally:
                timer.cancel()

    def close(self) -> None:
        """End the child, if there is one."""
        if self._child is not None:
            self._child.kill()
            _reap(self._child)
            self._child = None
        self._starter.shutdown()

    def _start(self) -> subprocess.Popen[bytes]:
        child = subprocess.Popen(
            [sys.executable, "-m", "embedstream_core.media.sandbox"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )
        # A child that ends before it has read them is told of by the first image.
        with suppress(BrokenPipeError):
            _write(_pipe(child.stdin), self._settings)
        return child

    def _ask(self, child: subprocess.Popen[bytes], content: bytes) -> Picture:
        _write(_pipe(child.stdin), content)
        answer = json.loads(_read(_pipe(child.stdout)))
        if "code" in answer:
            raise ItemError(Code(answer["code"]), Stage.DECODE, answer["message"])
        pixels = np.frombuffer(_read(_pipe(child.stdout)), np.uint8)
        shape = (self._side, self._side, 3)
        return Picture(pixels.reshape(shape), width=answer["width"], height=answer["height"])

    def _verdict(self, child: subprocess.Popen[bytes], expired: threading.Event) -> ItemError:
        child.kill()
        status = _reap(child)
        if expired.is_set():
            message = f"decoding took longer than {self._isolation.timeout_s:g} s"
            return ItemError(Code.DECODER_TIMEOUT, Stage.DECODE, message)
        # The kill came too late to be the reason: the child was gone already.
        reason = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        return ItemError(Code.DECODER_CRASHED, Stage.DECODE, f"the decoder ended by {reason}")


def _expire(child: subprocess.Popen[bytes], expired: threading.Event) -> None:
    expired.set()
    child.kill()


def _reap(child: subprocess.Popen[bytes]) -> int:
    for pipe in (child.stdin, child.stdout):
        with suppress(BrokenPipeError):
            _pipe(pipe).close()
    return child.wait()


def _pipe(pipe: Any) -> BinaryIO:
    found: BinaryIO = pipe
    return found


def _write(pipe: BinaryIO, data: bytes) -> None:
    pipe.write(_LENGTH.pack(len(data)))
    pipe.write(data)
    pipe.flush()


def _read(pipe: BinaryIO) -> bytes:
    (length,) = _LENGTH.unpack(_exactly(pipe, _LENGTH.size))
    return _exactly(pipe, length)


def _exactly(pipe: BinaryIO, length: int) -> bytes:
    data = pipe.read(length)
    if len(data) < length:
        raise EOFError
    return data


def _serve(requests: BinaryIO, answers: BinaryIO) -> None:
    settings = json.loads(_read(requests))
    preprocessing = Preprocessing(**settings["preprocessing"])
    limits = DecodeLimits(**{**settings["limits"], "formats": tuple(settings["limits"]["formats"])})

    def decode(content: bytes) -> Picture:
        opened = open_image(content, limits)
        return render(opened, preprocessing, fidelity=settings["fidelity"])

    _confine(settings["memory_bytes"])
    while True:
        try:
            content = _read(requests)
        except EOFError:
            return
        try:
            outcome = attempt(partial(decode, content), Stage.DECODE)
        except MemoryError:
            message = f"decoding needs more than {settings['memory_bytes']} bytes of memory"
            outcome = Failure(Code.DECODER_OUT_OF_MEMORY, Stage.DECODE, message)
        if isinstance(outcome, Failure):
            _write(answers, json.dumps({"code": outcome.code, "message": outcome.message}).encode())
        else:
            size = {"width": outcome.width, "height": outcome.height}
            _write(answers, json.dumps(size).encode())
            _write(answers, outcome.pixels.tobytes())


def _confine(memory_bytes: int) -> None:
    """Bound this process's memory, and let it end with its parent, also in mid-decode."""
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        bound = pages * resource.getpagesize() + memory_bytes
        resource.setrlimit(resource.RLIMIT_AS, (bound, bound))
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # A crash is expected here, and its memory nobody's concern.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    # Whatever a decoder prints must not look like an answer.
    own = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    _serve(sys.stdin.buffer, own)
