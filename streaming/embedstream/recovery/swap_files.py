"""The files by which a running stream is asked for other models, and by which it answers.

Both lie in the checkpoint's own folder. `embedstream swap` writes the request, and the driver
deletes it when it takes it. The driver alone writes the record of the last swap: the encoders, how
far it is, and what happened. The record stays: while it is `accepted` or `switched`, a driver that
was killed in the middle of the swap may start again with either configuration.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from pyspark.sql import SparkSession

from embedstream.config.sections import EncoderConfig, StreamConfig
from embedstream.spark.folder import OWN_FOLDER, Folder

__all__ = ["Answer", "Encoders", "Phase", "Swap", "SwapFiles", "SwapRequest", "find_differences"]

_REQUEST = "swap-request.json"
_RECORD = "swap.json"
# How a stream is watched changes no row, and `run --listen` is not in its file.
_LEFT_OUT = {"encoder", "encoders", "log", "monitor"}

Encoders = tuple[EncoderConfig, ...]

Phase = Literal["preparing", "accepted", "switched", "done", "failed"]
"""How far a swap is.

`preparing`: the old models work, and the new ones are checked. `accepted`: the table's property and
the query change. `switched`: the new models' query runs and has had no message yet. `done`: their
first micro-batch is committed. `failed`: the old models go on.
"""


@dataclass(frozen=True, slots=True)
class SwapRequest:
    """A wish for other models, addressed to the driver of a claim.

    `settings` are those of the requesting configuration apart from its encoders, without secrets.
    """

    id: str
    driver: str
    encoders: Encoders
    settings: Mapping[str, Any]

    @classmethod
    def of(cls, config: StreamConfig, *, id: str, driver: str) -> SwapRequest:  # noqa: A002
        """Return the wish for the encoders of a configuration."""
        return cls(id, driver, config.all_encoders, _dump_settings(config))


@dataclass(frozen=True, slots=True)
class Answer:
    """How far the swap of a request is; `lines` say what happened so far."""

    id: str
    phase: Phase
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Swap:
    """The last swap of a stream, as its driver records it, and the answer to the one before.

    Another swap may follow before the command has read the end of its own.
    """

    id: str
    driver: str
    old: Encoders
    new: Encoders
    phase: Phase = "preparing"
    lines: tuple[str, ...] = ()
    earlier: Answer | None = None

    def find_answer(self, request_id: str) -> Answer | None:
        """Return the answer to a request, if it is one of the last two."""
        answers = (Answer(self.id, self.phase, self.lines), self.earlier)
        return next((one for one in answers if one and one.id == request_id), None)

    @property
    def is_open(self) -> bool:
        """Whether the table names the new models, or is about to, and they may have no row yet."""
        return self.phase in ("accepted", "switched")

    def allows(self, encoders: Encoders) -> bool:
        """Return whether a start with these encoders goes on with the swap, or goes back."""
        return self.is_open and encoders in (self.old, self.new)

    def advance(self, phase: Phase, *lines: str) -> Swap:
        """Return the record of a later moment."""
        return replace(self, phase=phase, lines=(*self.lines, *lines))


@dataclass(frozen=True, slots=True)
class SwapFiles:
    """The request and the record of a checkpoint, each of which may be absent.

    Every method raises SetupError if a file cannot be read.
    """

    folder: Folder

    @classmethod
    def of(cls, spark: SparkSession, config: StreamConfig) -> SwapFiles:
        """Return the files of a stream."""
        return cls(Folder(spark, f"{config.checkpoint}/{OWN_FOLDER}"))

    def create_request(self, request: SwapRequest) -> bool:
        """Write a request; return False if there is one already."""
        return self.folder.create(_REQUEST, _dump(request))

    def read_request(self) -> SwapRequest | None:
        """Return the request that no driver has taken yet."""

        def parse(text: str) -> SwapRequest:
            fields = json.loads(text)
            return SwapRequest(**{**fields, "encoders": _parse_encoders(fields["encoders"])})

        remedy = "delete it, and run `embedstream swap` again"
        return self.folder.parse(_REQUEST, parse, meaning="the request of a swap", remedy=remedy)

    def delete_request(self) -> None:
        """Remove the request."""
        self.folder.delete(_REQUEST)

    def read_swap(self) -> Swap | None:
        """Return the record of the last swap."""

        def parse(text: str) -> Swap:
            fields = json.loads(text)
            encoders = {name: _parse_encoders(fields.pop(name)) for name in ("old", "new")}
            lines, earlier = tuple(fields["lines"]), fields["earlier"]
            if earlier is not None:
                earlier = Answer(**{**earlier, "lines": tuple(earlier["lines"])})
            return Swap(**{**fields, **encoders, "lines": lines, "earlier": earlier})

        meaning = "which records the last swap of models"
        remedy = "delete it; if the table names other models then, add --allow-model-change once"
        return self.folder.parse(_RECORD, parse, meaning=meaning, remedy=remedy)

    def write_swap(self, swap: Swap) -> None:
        """Replace the record."""
        self.folder.replace(_RECORD, _dump(swap))


def find_differences(config: StreamConfig, settings: Mapping[str, Any]) -> list[str]:
    """Return the dotted keys, encoders apart, in which settings differ from a configuration.

    Secrets are not compared: a request does not hold them.
    """
    ours, theirs = dict(_flatten(_dump_settings(config))), dict(_flatten(settings))
    return sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))


def _dump_settings(config: StreamConfig) -> dict[str, Any]:
    """Return a configuration without its encoders as JSON has it, with stars for secrets."""
    dumped: dict[str, Any] = json.loads(config.model_dump_json(exclude=_LEFT_OUT))
    return dumped


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in tree.items():
        if isinstance(value, dict):
            found += _flatten(value, f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}", value))
    return found


def _dump(value: SwapRequest | Swap) -> str:
    def convert(part: Answer | EncoderConfig) -> dict[str, Any]:
        return asdict(part) if isinstance(part, Answer) else part.model_dump(mode="json")

    fields = {name: getattr(value, name) for name in value.__slots__}
    return json.dumps(fields, indent=1, default=convert)


def _parse_encoders(dumped: Sequence[Mapping[str, Any]]) -> Encoders:
    return tuple(map(EncoderConfig.model_validate, dumped))
