"""Rows as the page shows them: the newest, the failures, previews, and what a search finds."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import ClassVar, Literal, Protocol

from pydantic import ConfigDict

__all__ = [
    "Card",
    "FailureGroup",
    "Found",
    "Preview",
    "Question",
    "RowPosition",
    "Viewer",
]


@dataclass(frozen=True, slots=True)
class RowPosition:
    """The message of a row; `topic` is '' for a row of `embedstream batch`, which has none."""

    topic: str
    partition: int
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A row of the table without its embedding. All texts come from users and may be hostile."""

    position: RowPosition
    image_id: str
    model_id: str | None = None
    uri: str | None = None
    media_type: str | None = None
    width: int | None = None
    height: int | None = None
    duration_s: float | None = None
    characters: int | None = None
    attributes: dict[str, str] = field(default_factory=dict)
    timestamp: datetime | None = None
    processed_at: datetime | None = None
    similarity: float | None = None
    """The cosine to the question; None if it is not the answer to one."""
    code: str | None = None
    stage: str | None = None
    message: str | None = None
    """Code, stage and message of the error; None for an embedding."""
    replay: str = ""
    """The command that tries the message again; of a failure that was found by its position."""


@dataclass(frozen=True, slots=True)
class FailureGroup:
    """The failures of a code: how many the table has, and the newest of them."""

    code: str
    count: int
    newest: tuple[Card, ...]
    replay: str
    """The command that tries all of them again; '' for a table without a stream."""


@dataclass(frozen=True, slots=True)
class Preview:
    """The content of a row, to be shown.

    `image`: a PNG, at most 320 pixels wide and high, encoded from decoded pixels. `audio`: a WAV of
    the first seconds, encoded from decoded samples. `text`: the first characters, without control
    characters. `none`: there is nothing to show. `note` says why, or why content that could not be
    decoded is shown as text. `duration_s` is the duration of the whole sound.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(
        ser_json_bytes="base64", val_json_bytes="base64"
    )

    kind: Literal["image", "audio", "text", "none"]
    content: bytes = b""
    media_type: str = ""
    text: str = ""
    note: str = ""
    duration_s: float | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """A search: exactly one of a row, the bytes of an upload, and words."""

    like: RowPosition | None = None
    upload: bytes | None = None
    words: str | None = None
    model_id: str | None = None
    where: str | None = None
    k: int = 12


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found, the nearest first; `source` says in what, and how new that is."""

    cards: tuple[Card, ...]
    model_id: str
    source: str


class Viewer(Protocol):
    """Reads rows for the page in other processes. Each method waits at most for its time limit.

    Raises (all methods):
        SetupError: a sentence that says what is wrong and what to do; it may be shown.
    """

    async def list_newest(self, *, count: int = 24) -> list[Card]:
        """Return the newest embeddings, the newest first."""
        ...

    async def list_failures(self, *, newest: int = 6) -> list[FailureGroup]:
        """Return the failures by code, the most frequent first."""
        ...

    async def find_card(self, position: RowPosition) -> Card:
        """Return the row of a message; an embedding if it has one."""
        ...

    async def preview(self, position: RowPosition) -> Preview:
        """Return the content of a row, fetched as the stream fetches and decoded in a sandbox."""
        ...

    async def search(self, question: Question) -> Found:
        """Return the nearest rows."""
        ...

    def close(self) -> None:
        """End the processes; requests in progress fail."""
        ...
