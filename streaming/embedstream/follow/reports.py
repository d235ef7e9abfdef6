"""What a process that follows the table tells of its work; the kinds that all of them have."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict

__all__ = ["FollowReport", "Trouble"]


class FollowReport(BaseModel):
    """A report, which a child process prints as JSON and its driver logs.

    `logged` says how often the driver logs its kind, and `event` as what. `is_progress` is False
    for what comes before the first step.
    """

    model_config = ConfigDict(frozen=True)

    logged: ClassVar[Literal["always", "sometimes", "never"]] = "always"
    event: ClassVar[Literal["progress", "skipped"]] = "progress"
    is_progress: ClassVar[bool] = True

    @property
    def held(self) -> int | None:
        """The table's version that the follower has reached; None if the report is not about it."""
        return None

    def to_text(self) -> str:
        """Return a line for people."""
        raise NotImplementedError


class Trouble(FollowReport):
    """The follower cannot go on at the moment; it tries again after `retry_s`."""

    is_progress: ClassVar[bool] = False

    kind: Literal["trouble"] = "trouble"
    reason: str
    retry_s: float

    def to_text(self) -> str:
        """Return a line for people."""
        return f"{self.reason}; next attempt in {self.retry_s:.0f} s"
