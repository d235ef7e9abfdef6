"""One driver for one checkpoint and one table: a claim in both folders keeps a second one out.

A claim names its driver and is renewed every `RENEW_S`. It has ended when its driver has removed
it; when the driver's processes are gone, on the machine where they ran; and elsewhere, when it was
not renewed for `LEASE_S`. A driver whose claim was taken over stops.

What it does not do: two drivers that take over the same ended claim within the same moment can both
start, and one stops at its next renewal; so with an object store that has no conditional writes.
Clocks of machines that share a table must agree to within a minute less `RENEW_S`.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from pyspark.sql import SparkSession

from embedstream.config.sections import StreamConfig
from embedstream.spark.folder import OWN_FOLDER, Folder, UnreadableFile
from embedstream_core.errors import EmbedstreamError, SetupError

__all__ = [
    "LEASE_S",
    "RENEW_S",
    "Claim",
    "ClaimLost",
    "HeldClaim",
    "check_unclaimed",
    "claimed",
    "table_claimed",
]

RENEW_S = 10.0
LEASE_S = 60.0

_FILE = "claim.json"
# A process's start is told on the system's clock, which may be set right while it runs.
_CLOCK_DRIFT_S = 5.0


class ClaimLost(EmbedstreamError):
    """Another driver has taken over: this one stops."""


@dataclass(frozen=True, slots=True)
class Claim:
    """Who drives a table from a checkpoint. `processes` are the driver's, with their starts."""

    id: str
    host: str
    pid: int
    machine: str
    processes: dict[int, float]
    since: float
    renewed: float
    checkpoint: str
    table: str

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.since, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        return (
            f"host {self.host}, pid {self.pid}, since {since}, with the "
            f"checkpoint '{self.checkpoint}' on the table '{self.table}'"
        )

    def ends_in_s(self) -> float | None:
        """The seconds until it ends if it is not renewed; None while its processes are seen."""
        if self.machine == _machine():
            return None if any(_runs(*process) for process in self.processes.items()) else 0.0
        return max(0.0, self.renewed + LEASE_S - time.time())


class HeldClaim:
    """A claim that is ours; it is renewed by a thread of its own until `release`."""

    def __init__(self, folders: tuple[Folder, ...], claim: Claim) -> None:
        self._folders = folders
        self._claim = claim
        self._released = threading.Event()
        self._lost: str | None = None
        self._thread = threading.Thread(target=self._keep, name="claim", daemon=True)

    def take(self) -> None:
        """
        Raises:
            SetupError: another driver holds one of the folders; none is claimed.
        """
        for number, folder in enumerate(self._folders):
            try:
                _take(folder, self._claim)
            except SetupError:
                for taken in self._folders[:number]:
                    _remove(taken, self._claim.id)
                raise
        self._thread.start()

    def verify(self) -> None:
        """
        Raises:
            ClaimLost: another driver has taken over, or the claim could not be renewed.
        """
        if self._lost is not None:
            raise ClaimLost(f"stopped: {self._lost}")

    def release(self) -> None:
        """Give the folders back, but for one that another driver has taken over."""
        self._released.set()
        self._thread.join()
        for folder in self._folders:
            _remove(folder, self._claim.id)

    def _keep(self) -> None:
        renewed = time.monotonic()
        while self._lost is None and not self._released.wait(RENEW_S):
            try:
                self._renew()
                renewed = time.monotonic()
            except Exception as error:
                if time.monotonic() - renewed > LEASE_S:
                    self._lost = f"the claim was not renewed for {LEASE_S:g} s: {error}"

    def _renew(self) -> None:
        for folder in self._folders:
            holder = _read(folder)
            if holder is None:
                self._lost = f"the claim {_path(folder)} was removed"
            elif holder.id != self._claim.id:
                self._lost = f"another driver has taken over: {holder}"
            else:
                folder.replace(_FILE, _text(replace(self._claim, renewed=time.time())))


@contextmanager
def claimed(spark: SparkSession, config: StreamConfig) -> Iterator[HeldClaim]:
    """Claim checkpoint and table, which is there already; the claim is released on leaving.

    Raises:
        SetupError: another driver holds one of them; the message names it.
    """
    with _holding(
        _folders(spark, config), _own(spark, config.table.path, config.checkpoint)
    ) as held:
        yield held


@contextmanager
def table_claimed(spark: SparkSession, table: str, *, checkpoint: str = "") -> Iterator[None]:
    """For one who writes to the table beside its stream: where that cannot be, claim the table.

    Delta numbers its commits by files that must not be there yet. Local disks and S3 do not refuse
    a second writer by themselves: one process's commit could replace another's. `checkpoint` is
    that of the stream beside which it works, if there is one.

    Raises:
        SetupError: there, and a driver runs; the message names it.
    """
    folder = Folder(spark, f"{table}/{OWN_FOLDER}")
    if folder.keeps_writers_apart():
        yield
        return
    with _holding((folder,), _own(spark, table, checkpoint)):
        yield


@contextmanager
def _holding(folders: tuple[Folder, ...], claim: Claim) -> Iterator[HeldClaim]:
    held = HeldClaim(folders, claim)
    held.take()
    try:
        yield held
    finally:
        held.release()


def check_unclaimed(spark: SparkSession, config: StreamConfig) -> str:
    """That no other driver holds checkpoint or table; nothing is written.

    Raises:
        SetupError: one does; the message names it.
    """
    ended = [claim for folder in _folders(spark, config) if (claim := _refuse_live(folder))]
    return f"no other; one has ended: {ended[0]}" if ended else "no other"


def _take(folder: Folder, claim: Claim) -> None:
    ended = _refuse_live(folder)
    if ended is not None:
        _remove(folder, ended.id)
    folder.create(_FILE, _text(claim))
    # Read again: someone may have been quicker, or, on some stores, written over ours.
    holder = _read(folder)
    if holder is None or holder.id != claim.id:
        raise _refusal(folder, holder)


def _refuse_live(folder: Folder) -> Claim | None:
    """The claim on a folder, where it has ended."""
    holder = _read(folder)
    if holder is not None and holder.ends_in_s() != 0.0:
        raise _refusal(folder, holder)
    return holder


def _refusal(folder: Folder, holder: Claim | None) -> SetupError:
    if holder is None:
        return SetupError(f"another driver starts just now: it removed {_path(folder)}; try again")
    left = holder.ends_in_s()
    wait = "" if left is None else f"; if it was killed, its claim ends in {left:.0f} s"
    return SetupError(
        f"another driver runs: {holder}; stop it first, or give this one a table and a checkpoint "
        f"of its own{wait}"
    )


def _remove(folder: Folder, claim_id: str) -> None:
    holder = _read(folder)
    if holder is not None and holder.id == claim_id:
        folder.delete(_FILE)


def _read(folder: Folder) -> Claim | None:
    try:
        text = folder.read(_FILE)
        if text is None:
            return None
        fields: dict[str, Any] = json.loads(text)
        processes = {int(pid): float(start) for pid, start in fields.pop("processes").items()}
        return Claim(**fields, processes=processes)
    except (UnreadableFile, ValueError, TypeError, KeyError, AttributeError) as error:
        raise SetupError(
            f"the claim {_path(folder)} cannot be read ({error}); if no other driver runs, delete "
            "the file"
        ) from None


def _text(claim: Claim) -> str:
    return json.dumps(asdict(claim), indent=1)


def _path(folder: Folder) -> str:
    return f"{folder.location}/{_FILE}"


def _folders(spark: SparkSession, config: StreamConfig) -> tuple[Folder, ...]:
    return tuple(
        Folder(spark, f"{location}/{OWN_FOLDER}")
        for location in (config.checkpoint, config.table.path)
    )


def _own(spark: SparkSession, table: str, checkpoint: str) -> Claim:
    jvm: Any = spark.sparkContext._jvm
    # A JVM can outlive the Python process that launched it for a moment, and commit.
    pids = {os.getpid(), int(jvm.java.lang.ProcessHandle.current().pid())}
    now = time.time()
    return Claim(
        id=uuid.uuid4().hex,
        host=socket.gethostname(),
        pid=os.getpid(),
        machine=_machine(),
        processes={pid: psutil.Process(pid).create_time() for pid in sorted(pids)},
        since=now,
        renewed=now,
        checkpoint=checkpoint,
        table=table,
    )


def _machine() -> str:
    """Where a process id means the same process: not in another container, nor after a reboot."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return f"{uuid.getnode():x}"


def _runs(pid: int, start: float) -> bool:
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - start) < _CLOCK_DRIFT_S
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True
