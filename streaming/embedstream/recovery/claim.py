"""A claim on checkpoint and table: a lease that keeps a second driver out of both.

A claim names its driver, which renews it every `RENEW_S`. It ends when its driver removes it; when
the driver's processes are gone, as seen on the machine where they ran; or, as seen elsewhere, when
it was not renewed for `LEASE_S`. A driver whose claim was taken over stops.

Not guaranteed: two drivers that take over the same ended claim at the same moment can both start;
one of them stops at its next renewal. The same holds for object stores without conditional writes.
The clocks of machines that share a table must agree to within a minute less `RENEW_S`.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from pyspark.sql import SparkSession

from embedstream.config.sections import StreamConfig
from embedstream.logs.events import Event, log_event
from embedstream.recovery.claim_file import LEASE_S, Claim, ClaimFile, ClaimLost, Clock
from embedstream.spark.folder import OWN_FOLDER, Folder

__all__ = [
    "RENEW_S",
    "ClaimLost",
    "HeldClaim",
    "check_unclaimed",
    "claim_stream",
    "claim_table",
    "read_claim",
]

_log = logging.getLogger(__name__)

RENEW_S = 10.0


@dataclass(eq=False)
class HeldClaim:
    """A claim that is held within a `with` block and renewed by a thread of its own."""

    files: Sequence[ClaimFile]
    claim: Claim
    renew_every_s: float = RENEW_S
    monotonic: Clock = time.monotonic
    _renewed_at: float = field(default=0.0, init=False)
    _lost: str | None = field(default=None, init=False)
    _released: threading.Event = field(default_factory=threading.Event, init=False)
    _cleanup: ExitStack = field(default_factory=ExitStack, init=False)

    def __enter__(self) -> Self:
        """Claim all folders.

        Raises:
            SetupError: Another driver holds one of them; none is claimed.
        """
        with ExitStack() as cleanup:
            for file in self.files:
                file.take(self.claim)
                cleanup.callback(file.remove, self.claim)
            self._renewed_at = self.monotonic()
            thread = threading.Thread(target=self._keep_renewing, name="claim", daemon=True)
            thread.start()
            cleanup.callback(thread.join)
            cleanup.callback(self._released.set)
            self._cleanup = cleanup.pop_all()
        claim = self.claim
        log_event(
            _log,
            Event.CLAIM_TAKEN,
            f"this driver holds the table '{claim.table}'",
            claim_id=claim.id,
            table=claim.table,
            checkpoint=claim.checkpoint,
        )
        return self

    def __exit__(self, *raised: object) -> None:
        """Release the folders, except those that another driver has taken over."""
        self._cleanup.close()

    @property
    def loss(self) -> str:
        """Why the claim is not held any more; empty while it is."""
        return self._lost or ""

    def verify(self) -> None:
        """Check that the claim is still held.

        Raises:
            ClaimLost: Another driver has taken over, or the claim could not be renewed.
        """
        if self._lost is not None:
            raise ClaimLost(f"stopped: {self._lost}")

    def renew(self) -> None:
        """Renew the claim in all folders; once it is lost, `verify` raises."""
        try:
            for file in self.files:
                file.renew(self.claim)
            self._renewed_at = self.monotonic()
        except ClaimLost as error:
            self._lose(str(error))
        except Exception as error:
            text = f"the claim was not renewed and will be tried again: {error}"
            self._log(Event.CLAIM_NOT_RENEWED, text, level=logging.WARNING)
            if self.monotonic() - self._renewed_at > LEASE_S:
                self._lose(f"the claim was not renewed for {LEASE_S:g} s: {error}")

    def _lose(self, reason: str) -> None:
        self._lost = reason
        self._log(Event.CLAIM_LOST, f"the claim is lost: {reason}", level=logging.ERROR)

    def _log(self, event: Event, text: str, *, level: int) -> None:
        claim = self.claim
        log_event(_log, event, text, level=level, claim_id=claim.id, table=claim.table)

    def _keep_renewing(self) -> None:
        while self._lost is None and not self._released.wait(self.renew_every_s):
            self.renew()


def claim_stream(spark: SparkSession, config: StreamConfig) -> HeldClaim:
    """Return a claim on checkpoint and table for a `with` block; the table must exist.

    Raises:
        SetupError: On entering, another driver holds one of them; the message names it.
    """
    locations = (config.checkpoint, config.table.path)
    return _hold(spark, locations, table=config.table.path, checkpoint=config.checkpoint)


def claim_table(
    spark: SparkSession,
    table: str,
    *,
    checkpoint: str = "",
    when: Literal["needed", "always"] = "needed",
) -> AbstractContextManager[object]:
    """Return a claim on the table for a writer other than the stream, if the storage needs one.

    Delta numbers its commits by files that must not exist yet. Local disks and S3 do not refuse
    a second writer by themselves, so one process's commit could replace another's. `checkpoint` is
    the one of the table's stream, if there is a stream. `always` claims the table on any storage,
    for a writer that no stream may run beside.

    Raises:
        SetupError: On entering, a driver holds the table; the message names it.
    """
    if when == "needed" and Folder(spark, table).has_exclusive_create():
        return nullcontext()
    return _hold(spark, (table,), table=table, checkpoint=checkpoint)


def read_claim(spark: SparkSession, config: StreamConfig) -> Claim | None:
    """Return the claim of the driver that runs with a checkpoint; None if none runs.

    Raises:
        SetupError: the claim cannot be read.
    """
    (file,) = _claim_files(spark, [config.checkpoint])
    claim = file.read()
    return claim if claim is not None and claim.ends_in_s(file.clock()) != 0.0 else None


def check_unclaimed(spark: SparkSession, config: StreamConfig) -> str:
    """Check that no other driver holds checkpoint or table; write nothing.

    Raises:
        SetupError: Another driver holds one; the message names it.
    """
    files = _claim_files(spark, (config.checkpoint, config.table.path))
    ended = [claim for file in files if (claim := file.read_ended())]
    return f"no other; one has ended: {ended[0]}" if ended else "no other"


def _hold(
    spark: SparkSession, locations: Sequence[str], *, table: str, checkpoint: str
) -> HeldClaim:
    jvm: Any = spark.sparkContext._jvm
    # The JVM can outlive the Python process that launched it for a moment, and commit.
    pids = sorted({os.getpid(), int(jvm.java.lang.ProcessHandle.current().pid())})
    claim = Claim.of_processes(pids, table=table, checkpoint=checkpoint)
    return HeldClaim(_claim_files(spark, locations), claim)


def _claim_files(spark: SparkSession, locations: Sequence[str]) -> list[ClaimFile]:
    return [ClaimFile(Folder(spark, f"{location}/{OWN_FOLDER}")) for location in locations]
