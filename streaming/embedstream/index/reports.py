"""What the index tells of its work while it follows a table."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, TypeAdapter

from embedstream.follow.process import Follower
from embedstream.follow.reports import FollowReport, Trouble
from embedstream.index.state import Ann

__all__ = [
    "INDEX",
    "AnnBegun",
    "AnnBuilt",
    "Applied",
    "FullPassBegun",
    "FullPassEnded",
    "FullPassGoesOn",
    "Report",
    "Started",
    "Trouble",
    "read_report",
]


class Started(FollowReport):
    """The index is open; `version` is that of the table which it holds."""

    logged: ClassVar[Literal["never"]] = "never"
    is_progress: ClassVar[bool] = False

    kind: Literal["started"] = "started"
    table: str
    address: str
    version: int | None

    @property
    def held(self) -> int | None:
        """The version that the index holds now."""
        return self.version

    def to_text(self) -> str:
        """Return a line for people."""
        if self.version is None:
            return f"the index at {self.address} is empty"
        return f"the index at {self.address} holds version {self.version} of the table"


class FullPassBegun(FollowReport):
    """A pass over the whole table begins, or goes on."""

    kind: Literal["full pass begun"] = "full pass begun"
    reason: str
    version: int
    files_done: int
    files: int | None
    """None if it cannot be resumed."""

    def to_text(self) -> str:
        """Return a line for people."""
        files = "" if self.files is None else f", {self.files} files"
        if self.files_done:
            files = f", from file {self.files_done} of {self.files} on"
        return f"full pass over version {self.version}{files}: {self.reason}"


class FullPassGoesOn(FollowReport):
    """A part of the table is in the new collections."""

    logged: ClassVar[Literal["sometimes"]] = "sometimes"

    kind: Literal["full pass goes on"] = "full pass goes on"
    rows: int
    files_done: int
    files: int | None
    rows_per_s: float

    def to_text(self) -> str:
        """Return a line for people."""
        files = "" if self.files is None else f"  {self.files_done} of {self.files} files"
        return f"full pass  {self.rows:,} rows{files}  {self.rows_per_s:,.0f} rows/s"


class FullPassEnded(FollowReport):
    """The index holds a version of the table."""

    kind: Literal["full pass ended"] = "full pass ended"
    version: int
    rows: int
    duration_s: float

    @property
    def held(self) -> int | None:
        """The version that the index holds now."""
        return self.version

    def to_text(self) -> str:
        """Return a line for people."""
        took = f"{self.rows:,} rows in {self.duration_s:.1f} s"
        return f"full pass  {took}; the index holds version {self.version}"


class Applied(FollowReport):
    """Commits up to `version` are in the index; `behind` is the number of those that follow."""

    logged: ClassVar[Literal["never"]] = "never"

    kind: Literal["applied"] = "applied"
    version: int
    commits: int
    added: int
    replaced: int
    deleted: int
    tombstones: int
    behind: int

    @property
    def held(self) -> int | None:
        """The version that the index holds now."""
        return self.version

    def followed_by(self, later: Applied) -> Applied:
        """Return both reports as one."""
        sums = {
            name: getattr(self, name) + getattr(later, name)
            for name in ("commits", "added", "replaced", "deleted", "tombstones")
        }
        return later.model_copy(update=sums)

    def to_text(self) -> str:
        """Return a line for people."""
        tombstones = f"  {self.tombstones} tombstones" if self.tombstones else ""
        return (
            f"version {self.version:<6} {self.added:>6} added  {self.replaced:>6} replaced  "
            f"{self.deleted:>6} deleted{tombstones}  {self.behind} behind"
        )


class AnnBegun(FollowReport):
    """The approximate index of a model's rows is being built; the index waits."""

    kind: Literal["ann begun"] = "ann begun"
    model_id: str
    rows: int

    def to_text(self) -> str:
        """Return a line for people."""
        return f"building the approximate index of {self.model_id}: {self.rows:,} rows"


class AnnBuilt(FollowReport):
    """The approximate index of a model's rows was built."""

    kind: Literal["ann built"] = "ann built"
    model_id: str
    ann: Ann

    def to_text(self) -> str:
        """Return a line for people."""
        return (
            f"approximate index of {self.model_id}: {self.ann.kind} over {self.ann.rows:,} rows in "
            f"{self.ann.build_s:.1f} s, recall@10 {self.ann.recall:.3f}"
        )


Report = (
    Started
    | FullPassBegun
    | FullPassGoesOn
    | FullPassEnded
    | Applied
    | AnnBegun
    | AnnBuilt
    | Trouble
)

_ADAPTER: TypeAdapter[Report] = TypeAdapter(Annotated[Report, Field(discriminator="kind")])


def read_report(line: str) -> Report:
    """Return the report that `model_dump_json` wrote.

    Raises:
        ValidationError: the line is none.
    """
    return _ADAPTER.validate_json(line)


INDEX = Follower(name="index", holds="holds", read_report=read_report)
"""`embedstream index`, for a `FollowerProcess`."""
