"""Failures of work that is repeated, each logged once."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

__all__ = ["OutageLog"]


@dataclass(slots=True)
class OutageLog:
    """Logs the first of several failures of one type, and when the work succeeds again.

    `sentence` says what does not work, as in "the topics cannot be read".
    """

    log: logging.Logger
    sentence: str
    _kind: type[Exception] | None = field(default=None, init=False)

    def begin(self, error: Exception) -> None:
        """Log a failure, unless the one before was of the same type."""
        if self._kind is not type(error):
            self._kind = type(error)
            self.log.warning("%s, and it is tried again: %s", self.sentence, error)

    def end(self) -> None:
        """Note a success."""
        if self._kind is not None:
            self._kind = None
            self.log.warning("%s: this is over", self.sentence)
