"""The ways a reference fails, each with its code; the type says whether to try again."""

from __future__ import annotations

from collections.abc import Iterable

from embedstream_core.errors import Code, ItemError, Stage, TransientError

__all__ = [
    "Busy",
    "busy",
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

    retry_after_s: float = 0.0


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


def try_again(message: str) -> TransientError:
    """Unreadable now; the next attempt may succeed."""
    return TransientError(Code.REFERENCE_UNREADABLE, Stage.FETCH, message)


def busy(message: str, retry_after_s: float | None) -> TransientError:
    """Unreadable now; the next attempt may succeed once these seconds have passed."""
    if retry_after_s is None:
        return try_again(message)
    error = Busy(
        Code.REFERENCE_UNREADABLE,
        Stage.FETCH,
        f"{message} and asks for a pause of {retry_after_s:g} s",
    )
    error.retry_after_s = retry_after_s
    return error


def timed_out(message: str) -> TransientError:
    """Its time is over."""
    return TransientError(Code.REFERENCE_TIMEOUT, Stage.FETCH, message)


def listed(names: Iterable[object]) -> str:
    """The names for a message: `a, b`, or `none`."""
    return ", ".join(str(name) for name in names) or "none"
