"""The ways a reference fails, each with its code; the type says whether to try again."""

from __future__ import annotations

from collections.abc import Iterable

from embedstream_core.errors import Code, ItemError, Stage, TransientError

__all__ = [
    "Busy",
    "denied",
    "listed",
    "not_found",
    "timed_out",
    "too_large",
    "try_again",
    "unreadable",
]


class Busy(TransientError):
    """Unreadable until `retry_after_s` seconds have passed: the server said so."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        said = f"{message} and asks for a pause of {retry_after_s:g} s"
        super().__init__(Code.REFERENCE_UNREADABLE, Stage.FETCH, said)
        self.retry_after_s = retry_after_s


def denied(message: str) -> ItemError:
    """The policy does not allow it; nothing was opened."""
    return ItemError(Code.REFERENCE_DENIED, Stage.FETCH, message)


def not_found(message: str) -> ItemError:
    """There is nothing at that place."""
    return ItemError(Code.REFERENCE_NOT_FOUND, Stage.FETCH, message)


def unreadable(message: str) -> ItemError:
    """It is refused, or not something to read."""
    return ItemError(Code.REFERENCE_UNREADABLE, Stage.FETCH, message)


def too_large(max_bytes: int) -> ItemError:
    """It has more than `max_bytes`."""
    return ItemError(Code.IMAGE_TOO_LARGE, Stage.FETCH, f"more than {max_bytes} bytes")


def try_again(message: str, *, retry_after_s: float | None = None) -> TransientError:
    """Unreadable now; the next attempt may succeed, after these seconds where they are known."""
    if retry_after_s is not None:
        return Busy(message, retry_after_s)
    return TransientError(Code.REFERENCE_UNREADABLE, Stage.FETCH, message)


def timed_out(message: str) -> TransientError:
    """Its time is over."""
    return TransientError(Code.REFERENCE_TIMEOUT, Stage.FETCH, message)


def listed(names: Iterable[object]) -> str:
    """The names for a message: `a, b`, or `none`."""
    return ", ".join(str(name) for name in names) or "none"
