"""What the publishing of a table tells of its work."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, TypeAdapter

from embedstream.follow.process import Follower
from embedstream.follow.reports import FollowReport, Trouble

__all__ = [
    "PUBLISH",
    "FullPassBegun",
    "FullPassEnded",
    "PublishReport",
    "Sent",
    "Skipped",
    "Started",
    "read_report",
]


class Started(FollowReport):
    """The topic was reached; `version` is that of the table which is published."""

    logged: ClassVar[Literal["never"]] = "never"
    is_progress: ClassVar[bool] = False

    kind: Literal["started"] = "started"
    address: str
    version: int | None

    @property
    def held(self) -> int | None:
        """The version that is published."""
        return self.version

    def to_text(self) -> str:
        """Return a line for people."""
        if self.version is None:
            return f"nothing of the table is in {self.address} yet"
        return f"version {self.version} of the table is in {self.address}"


class FullPassBegun(FollowReport):
    """All rows of a version are published, or the pass over them goes on."""

    kind: Literal["full pass begun"] = "full pass begun"
    reason: str
    version: int

    def to_text(self) -> str:
        """Return a line for people."""
        return f"all rows of version {self.version} are published: {self.reason}"


class FullPassEnded(FollowReport):
    """All rows of a version are in the topic."""

    kind: Literal["full pass ended"] = "full pass ended"
    version: int
    messages: int
    duration_s: float

    @property
    def held(self) -> int | None:
        """The version that is published now."""
        return self.version

    def to_text(self) -> str:
        """Return a line for people."""
        return (
            f"all rows of version {self.version} are published: {self.messages:,} messages in "
            f"{self.duration_s:.1f} s"
        )


class Sent(FollowReport):
    """Commits up to `version` are in the topic; `behind` is the number of those that follow."""

    logged: ClassVar[Literal["never"]] = "never"

    kind: Literal["sent"] = "sent"
    version: int
    commits: int = 1
    messages: int
    removed: int
    """Messages without a value: the keys of rows that are gone."""
    behind: int

    @property
    def held(self) -> int | None:
        """The version that is published now."""
        return self.version

    def followed_by(self, later: Sent) -> Sent:
        """Return both reports as one."""
        sums = {
            name: getattr(self, name) + getattr(later, name)
            for name in ("commits", "messages", "removed")
        }
        return later.model_copy(update=sums)

    def to_text(self) -> str:
        """Return a line for people."""
        removed = f"  {self.removed} removed" if self.removed else ""
        return (
            f"version {self.version:<6} {self.messages:>6} messages{removed}  {self.behind} behind"
        )


class Skipped(FollowReport):
    """Messages that Kafka does not take because of their size; `keys` are the first of them."""

    event: ClassVar[Literal["skipped"]] = "skipped"

    kind: Literal["skipped"] = "skipped"
    messages: int
    keys: tuple[str, ...]
    largest_bytes: int

    def to_text(self) -> str:
        """Return a line for people."""
        more = ", …" if self.messages > len(self.keys) else ""
        return (
            f"left out: {self.messages} messages of up to {self.largest_bytes:,} bytes, more than "
            f"the topic takes (max.message.bytes): {', '.join(self.keys)}{more}"
        )


PublishReport = Started | FullPassBegun | FullPassEnded | Sent | Skipped | Trouble

_ADAPTER: TypeAdapter[PublishReport] = TypeAdapter(
    Annotated[PublishReport, Field(discriminator="kind")]
)


def read_report(line: str) -> PublishReport:
    """Return the report that `model_dump_json` wrote.

    Raises:
        ValidationError: the line is none.
    """
    return _ADAPTER.validate_json(line)


PUBLISH = Follower(name="publish", holds="has published", read_report=read_report)
"""`embedstream publish`, for a `FollowerProcess`."""
