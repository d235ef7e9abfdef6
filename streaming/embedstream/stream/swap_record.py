"""The record of a stream's last swap, which the driver's threads advance."""

from __future__ import annotations

import logging
import threading
from dataclasses import replace

from embedstream.logs.events import Event, log_event
from embedstream.recovery.claim import HeldClaim
from embedstream.recovery.swap_files import Phase, Swap, SwapFiles
from embedstream_core.errors import EmbedstreamError

__all__ = ["RecordClosed", "SwapRecord"]

_log = logging.getLogger(__name__)


class RecordClosed(EmbedstreamError):
    """The stream ends: nothing more is recorded."""


class SwapRecord:
    """The record in its file, as long as the driver holds its claim.

    Every method that writes raises ClaimLost if another driver has taken over.
    """

    def __init__(self, files: SwapFiles, *, claim: HeldClaim) -> None:
        """Read the record of an earlier driver.

        Raises:
            SetupError: the file cannot be read.
        """
        self._files = files
        self._claim = claim
        self._lock = threading.Lock()
        self._is_closed = False
        self.swap = files.read_swap()

    def begin(self, swap: Swap) -> None:
        """Replace the record by that of another swap, which keeps the answer to this one."""
        with self._lock:
            earlier = self.swap.find_answer(self.swap.id) if self.swap else None
            self._write(replace(swap, earlier=earlier))

    def advance(self, phase: Phase, line: str) -> None:
        """Add a line, and log it; raise RecordClosed after `close`."""
        with self._lock:
            if self.swap is not None:
                level = logging.WARNING if phase == "failed" else logging.INFO
                text = f"swap: {line}"
                log_event(_log, Event.SWAP, text, level=level, swap_id=self.swap.id, phase=phase)
                self._write(self.swap.advance(phase, line))

    def close(self, line: str) -> None:
        """Record nothing more; a swap that is still in preparation has failed, says the line."""
        with self._lock:
            try:
                if self.swap is not None and self.swap.phase == "preparing":
                    self._write(self.swap.advance("failed", line))
            except Exception:
                # What ends the stream may be the loss of its claim or of its storage.
                _log.info("the end of the swap was not recorded", exc_info=True)
            self._is_closed = True

    def _write(self, swap: Swap) -> None:
        if self._is_closed:
            raise RecordClosed
        self._claim.verify()
        self._files.write_swap(swap)
        self.swap = swap
