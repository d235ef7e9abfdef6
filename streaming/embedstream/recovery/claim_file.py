"""The file by which a driver claims a folder: who holds it, and until when."""

from __future__ import annotations

import json
import logging
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import psutil

from embedstream.logs.events import Event, log_event
from embedstream.spark.folder import Folder
from embedstream_core.errors import EmbedstreamError, SetupError

__all__ = ["LEASE_S", "Claim", "ClaimFile", "ClaimLost", "Clock"]

_log = logging.getLogger(__name__)

LEASE_S = 60.0

_FILE = "claim.json"
# A process's start is given by the system's clock, which may be corrected while it runs.
_CLOCK_DRIFT_S = 5.0

Clock = Callable[[], float]


class ClaimLost(EmbedstreamError):
    """Another driver has taken over: this one stops."""


@dataclass(frozen=True, slots=True)
class Claim:
    """Who drives a table from a checkpoint.

    `processes` are the driver's process ids with their starts; times are in seconds since 1970.
    """

    id: str
    host: str
    pid: int
    machine: str
    processes: dict[int, float]
    since: float
    renewed: float
    checkpoint: str
    table: str

    @classmethod
    def of_processes(cls, pids: Iterable[int], *, table: str, checkpoint: str) -> Claim:
        """Return a new claim of a driver on this machine that consists of these processes."""
        now = time.time()
        return cls(
            id=uuid.uuid4().hex,
            host=socket.gethostname(),
            pid=os.getpid(),
            machine=_identify_machine(),
            processes={pid: psutil.Process(pid).create_time() for pid in pids},
            since=now,
            renewed=now,
            checkpoint=checkpoint,
            table=table,
        )

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.since, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        return (
            f"host {self.host}, pid {self.pid}, since {since}, with the "
            f"checkpoint '{self.checkpoint}' on the table '{self.table}'"
        )

    def ends_in_s(self, now: float) -> float | None:
        """Return the seconds until it ends unless renewed; None while its processes run here."""
        if self.machine != _identify_machine():
            return max(0.0, self.renewed + LEASE_S - now)
        for pid, start in self.processes.items():
            try:
                process = psutil.Process(pid)
                is_same = abs(process.create_time() - start) < _CLOCK_DRIFT_S
                if is_same and process.status() != psutil.STATUS_ZOMBIE:
                    return None
            except psutil.NoSuchProcess:
                continue
            except psutil.AccessDenied:
                return None
        return 0.0


@dataclass(frozen=True, slots=True)
class ClaimFile:
    """The file of a claim in a folder, present or not.

    Every method raises SetupError if the file cannot be read.
    """

    folder: Folder
    clock: Clock = time.time

    @property
    def path(self) -> str:
        """The location of the file."""
        return f"{self.folder.location}/{_FILE}"

    def read(self) -> Claim | None:
        """Return the claim; None without a file."""

        def parse(text: str) -> Claim:
            fields: dict[str, Any] = json.loads(text)
            processes = {int(pid): float(start) for pid, start in fields.pop("processes").items()}
            return Claim(**fields, processes=processes)

        remedy = "delete it if no other driver runs"
        return self.folder.parse(_FILE, parse, meaning="the claim of a driver", remedy=remedy)

    def read_ended(self) -> Claim | None:
        """Return a claim that has ended; None without a file.

        Raises:
            SetupError: The claim has not ended; the message names its driver.
        """
        holder = self.read()
        if holder is not None and holder.ends_in_s(self.clock()) != 0.0:
            self._refuse(holder)
        return holder

    def take(self, claim: Claim) -> None:
        """Write a claim if there is none, or only one that has ended.

        Raises:
            SetupError: Another driver holds the folder; the message names it.
        """
        if ended := self.read_ended():
            text = f"taking over a claim that has ended: {ended}"
            log_event(_log, Event.CLAIM_ENDED, text, claim_id=ended.id, holder=str(ended))
            self.remove(ended)
        self.folder.create(_FILE, json.dumps(asdict(claim), indent=1))
        # Read it again: another driver may have been quicker or, in some stores, may have
        # overwritten this claim.
        holder = self.read()
        if holder is None:
            raise SetupError(f"another driver is starting: it removed {self.path}; try again")
        if holder.id != claim.id:
            self._refuse(holder)

    def renew(self, claim: Claim) -> None:
        """Write the claim with the present time.

        Raises:
            ClaimLost: The file is gone, or it is another driver's.
        """
        holder = self.read()
        if holder is None:
            raise ClaimLost(f"the claim {self.path} was removed")
        if holder.id != claim.id:
            raise ClaimLost(f"another driver has taken over: {holder}")
        renewed = replace(claim, renewed=self.clock())
        self.folder.replace(_FILE, json.dumps(asdict(renewed), indent=1))

    def remove(self, claim: Claim) -> None:
        """Delete the file, unless it is another driver's."""
        holder = self.read()
        if holder is not None and holder.id == claim.id:
            self.folder.delete(_FILE)

    def _refuse(self, holder: Claim) -> NoReturn:
        left = holder.ends_in_s(self.clock())
        wait = "" if left is None else f"; if it was killed, its claim ends in {left:.0f} s"
        raise SetupError(
            f"another driver runs: {holder}; stop it first, or give this one a table and a "
            f"checkpoint of its own{wait}"
        )


def _identify_machine() -> str:
    """Return an id of where a process id means the same process.

    It differs in another container, and after a reboot.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return f"{uuid.getnode():x}"
