"""What is published already, in a file of the table's folder."""

from __future__ import annotations

import logging
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from embedstream.config.publishing import PublishedRows
from embedstream.follow.table_files import TableFiles
from embedstream_core.errors import SetupError, explain

__all__ = ["FullPass", "Partial", "PublishState", "StateFile"]

_LOG = logging.getLogger(__name__)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class Partial(_Part):
    """The part of a version that is published: files, and rows of the next one."""

    version: int
    files_done: int = 0
    rows_done: int = 0


class FullPass(Partial):
    """A pass over a whole version that has begun."""

    commit_sha256: str | None
    reason: str


class PublishState(_Part):
    """How far a table is published.

    All rows up to `version` are in the topic; None until the first full pass has ended.
    """

    format: Literal[1] = 1
    table_id: str
    """Delta's id of the table, which a table has that is created again at the same path."""
    rows: PublishedRows
    version: int | None = None
    commit_sha256: str | None = None
    """Of the log's entry of `version`: a table that was restored from a copy has another one."""
    partial: Partial | None = None
    """The part of the next commit that is in the topic already."""
    full_pass: FullPass | None = None


class StateFile:
    """The file `_embedstream/publish-TOPIC.json` of the table's folder."""

    def __init__(self, files: TableFiles, topic: str) -> None:
        self._files = files
        self._path = f"_embedstream/publish-{topic}.json"

    def read(self) -> PublishState | None:
        """Return the state; None if there is none, or one of another format."""
        content = self._files.read(self._path)
        if content is None:
            return None
        try:
            return PublishState.model_validate_json(content)
        except ValidationError as error:
            _LOG.warning("%s is of another version, or damaged: %s", self._path, error)
            return None

    def write(self, state: PublishState) -> None:
        """Replace the state at once.

        Raises:
            SetupError: the table's folder cannot be written.
        """
        try:
            self._files.replace(self._path, state.model_dump_json().encode())
        except OSError as error:
            raise SetupError(
                f"'{self._path}' in the table's folder, which says what is published, cannot be "
                f"written: {explain(error)}; give this user the right to write there"
            ) from error
