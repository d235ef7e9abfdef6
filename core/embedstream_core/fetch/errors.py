"""The errors of references: each has its code, and its type says whether to try again."""

from __future__ import annotations

from functools import partial

from embedstream_core.errors import Code, ItemError, Stage, TransientError

__all__ = ["Busy", "Denied", "Internal", "NotFound", "TimedOut", "TryAgain", "Unreadable"]

# The policy does not allow the reference; nothing was opened.
Denied = partial(ItemError, Code.REFERENCE_DENIED, Stage.FETCH)
NotFound = partial(ItemError, Code.REFERENCE_NOT_FOUND, Stage.FETCH)
# The reference is refused, or is not something to read.
Unreadable = partial(ItemError, Code.REFERENCE_UNREADABLE, Stage.FETCH)
# A bug of ours or of a library.
Internal = partial(ItemError, Code.INTERNAL_ERROR, Stage.FETCH)
# The next attempt may succeed.
TryAgain = partial(TransientError, Code.REFERENCE_UNREADABLE, Stage.FETCH)
TimedOut = partial(TransientError, Code.REFERENCE_TIMEOUT, Stage.FETCH)


class Busy(TransientError):
    """The server asks for a pause of `retry_after_s` seconds before the next attempt."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        text = f"{message} and asks for a pause of {retry_after_s:g} s"
        super().__init__(Code.REFERENCE_UNREADABLE, Stage.FETCH, text)
        self.retry_after_s = retry_after_s
