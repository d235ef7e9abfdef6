"""The section of the vector index."""

from __future__ import annotations

import re

from pydantic import PositiveInt, model_validator

from embedstream.config.field_types import Location, PositiveSeconds, Section
from embedstream.config.secrets import SecretReference

__all__ = ["IndexConfig"]


class IndexConfig(Section):
    """A vector index that follows the table; `embedstream index` or the stream itself writes it."""

    kind: str = "lancedb"
    """`lancedb`: files in a folder or a bucket; `pgvector`: PostgreSQL with that extension."""
    path: Location | None = None
    """The folder or bucket of `lancedb`; by default `_embedstream/index` in the table's folder."""
    url: SecretReference | None = None
    """The address of PostgreSQL, `postgresql://user@host/database`; give one with a password as
    `env:NAME` or `file:PATH`."""
    db_schema: str = "embedstream"
    """PostgreSQL's schema, which holds nothing but this index; created if there is none."""
    attributes: tuple[str, ...] = ()
    """Attributes of messages that become columns of the index, for `search --where`."""
    ann_rows: PositiveInt = 50_000
    """From this many rows on, a collection has an approximate index; below, search is exact."""
    follow: bool = False
    """Whether the stream's driver runs the index in a process of its own while it runs."""
    poll_s: PositiveSeconds = 0.2
    """Seconds between two looks at the table's log when the index is followed continuously."""

    @model_validator(mode="after")
    def _check(self) -> IndexConfig:
        if self.kind == "pgvector" and self.url is None:
            raise ValueError("kind pgvector needs url, such as postgresql://user@host/database")
        for kind, key, other in (("lancedb", "url", "path"), ("pgvector", "path", "url")):
            if self.kind == kind and getattr(self, key) is not None:
                raise ValueError(f"kind {kind} has no {key}: give {other}, or another kind")
        if re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", self.db_schema) is None:
            raise ValueError(
                f"db_schema '{self.db_schema}' has to be a name of small letters, digits and _"
            )
        return self
