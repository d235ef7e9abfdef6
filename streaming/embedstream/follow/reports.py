"""The reports of a process that follows the table: the kinds that every follower makes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

__all__ = ["Advance", "FollowReport", "Started", "Trouble", "build_reader"]


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


class Started(FollowReport):
    """What the follower writes is open; `version` is that of the table which it has reached."""

    logged: ClassVar[Literal["never"]] = "never"
    is_progress: ClassVar[bool] = False

    kind: Literal["started"] = "started"
    address: str
    version: int | None

    @property
    def held(self) -> int | None:
        """The version that the follower has reached."""
        return self.version


class Advance(FollowReport):
    """Commits up to `version` are followed; `behind` is the number of those that come after it.

    `counted` names the fields that are sums over the commits.
    """

    logged: ClassVar[Literal["never"]] = "never"
    counted: ClassVar[tuple[str, ...]] = ()

    version: int
    commits: int = 1
    behind: int

    @property
    def held(self) -> int | None:
        """The version that the follower has reached."""
        return self.version

    def followed_by(self, later: Self) -> Self:
        """Return both reports as one."""
        names = ("commits", *self.counted)
        sums = {name: getattr(self, name) + getattr(later, name) for name in names}
        return later.model_copy(update=sums)


class Trouble(FollowReport):
    """The follower cannot continue now; it tries again after `retry_s`."""

    is_progress: ClassVar[bool] = False

    kind: Literal["trouble"] = "trouble"
    reason: str
    retry_s: float

    def to_text(self) -> str:
        """Return a line for people."""
        return f"{self.reason}; next attempt in {self.retry_s:.0f} s"


def build_reader(reports: Any) -> Callable[[str], FollowReport]:
    """Return the function that reads the line that `model_dump_json` wrote.

    `reports` is the union of the kinds; the function raises ValidationError for any other line.
    """
    return TypeAdapter(Annotated[reports, Field(discriminator="kind")]).validate_json
