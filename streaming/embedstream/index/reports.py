"""What the index tells of its work while it follows a table."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from embedstream.index.state import Ann

__all__ = [
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


class _Report(BaseModel):
    model_config = ConfigDict(frozen=True)


class Started(_Report):
    """The index is open; `version` is that of the table which it holds."""

    kind: Literal["started"] = "started"
    table: str
    address: str
    version: int | None


class FullPassBegun(_Report):
    """A pass over the whole table begins, or goes on."""

    kind: Literal["full pass begun"] = "full pass begun"
    reason: str
    version: int
    files_done: int
    files: int | None
    """None if it cannot be resumed."""


class FullPassGoesOn(_Report):
    """A part of the table is in the new collections."""

    kind: Literal["full pass goes on"] = "full pass goes on"
    rows: int
    files_done: int
    files: int | None
    rows_per_s: float


class FullPassEnded(_Report):
    """The index holds a version of the table."""

    kind: Literal["full pass ended"] = "full pass ended"
    version: int
    rows: int
    duration_s: float


class Applied(_Report):
    """Commits up to `version` are in the index; `behind` is the number of those that follow."""

    kind: Literal["applied"] = "applied"
    version: int
    commits: int
    added: int
    replaced: int
    deleted: int
    tombstones: int
    behind: int


class AnnBegun(_Report):
    """The approximate index of a model's rows is being built; the index waits."""

    kind: Literal["ann begun"] = "ann begun"
    model_id: str
    rows: int


class AnnBuilt(_Report):
    """The approximate index of a model's rows was built."""

    kind: Literal["ann built"] = "ann built"
    model_id: str
    ann: Ann


class Trouble(_Report):
    """The index does not follow at the moment; it tries again after `retry_s`."""

    kind: Literal["trouble"] = "trouble"
    reason: str
    retry_s: float


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
