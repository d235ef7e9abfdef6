"""The reports of what publishes a table."""

from __future__ import annotations

from typing import ClassVar, Literal

from embedstream.follow.process import Follower
from embedstream.follow.reports import Advance, FollowReport, Started, Trouble, build_reader

__all__ = [
    "PUBLISH",
    "FullPassBegun",
    "FullPassEnded",
    "PublishReport",
    "PublishStarted",
    "Sent",
    "Skipped",
]


class PublishStarted(Started):
    """The topic was reached; `version` is that of the table which is published."""

    def to_text(self) -> str:
        """Return a line for people."""
        if self.version is None:
            return f"nothing of the table is in {self.address} yet"
        return f"version {self.version} of the table is in {self.address}"


class FullPassBegun(FollowReport):
    """A pass over all rows of a version begins or continues."""

    kind: Literal["full pass begun"] = "full pass begun"
    reason: str
    version: int

    def to_text(self) -> str:
        """Return a line for people."""
        return f"a full pass publishes all rows of version {self.version}: {self.reason}"


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
            f"the full pass over version {self.version} has ended: {self.messages:,} messages in "
            f"{self.duration_s:.1f} s"
        )


class Sent(Advance):
    """Commits up to `version` are in the topic; `behind` is the number of those that follow."""

    counted: ClassVar[tuple[str, ...]] = ("messages", "removed")

    kind: Literal["sent"] = "sent"
    messages: int
    removed: int
    """Messages without a value: the keys of rows that are gone."""

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


PublishReport = PublishStarted | FullPassBegun | FullPassEnded | Sent | Skipped | Trouble

PUBLISH = Follower(name="publish", holds="has published", read_report=build_reader(PublishReport))
"""`embedstream publish`, for a `FollowerProcess`."""
