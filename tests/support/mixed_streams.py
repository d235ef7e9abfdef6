"""Streams over a topic of every modality: what is sent, and what must be in the table."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from typing import Any

from pyspark.sql import SparkSession

import seeded_encoders
from core_outcomes import Core, check_kind
from drivers import DrivenStream, Vectors, check_files
from embedstream.config.sections import EncoderConfig, MessageConfig, ReferencesConfig, StreamConfig
from embedstream.kafka.produce import OutgoingMessage
from embedstream.stream.job import Until
from embedstream_core.pipeline.steps import Outcomes
from mixed_messages import Kind, build_kinds
from mixed_models import list_encoders, start_core
from oracle import CAREFUL, Identity, Position, Row, check_messages, read_outcomes
from small import write_config
from streams import Topic

__all__ = ["Mix", "MixedStream", "import_encoders"]


def import_encoders(spark: SparkSession) -> None:
    """Let the workers of a session import the small models of images."""
    spark.sparkContext.addPyFile(seeded_encoders.__file__)


@dataclass(frozen=True, eq=False)
class Mix:
    """The kinds of messages, and the models that they go to.

    A message's key is the name of its kind, a dot, and whatever tells it from others.
    """

    folder: Path
    kinds: Mapping[str, Kind]
    core: Core

    @staticmethod
    def of(folder: Path) -> Mix:
        return Mix(folder, build_kinds(folder), start_core(folder))

    @property
    def sections(self) -> dict[str, Any]:
        """The sections of a configuration."""
        encoders = [
            {"name": name, "weights": weights, "precision": "float32"}
            for name, weights in list_encoders(self.folder)
        ]
        return {
            "encoders": encoders,
            "references": {"folders": [str(self.folder)], "attempts": 1},
            "message": {"tombstones": "delete"},
        }

    def apply(self, config: StreamConfig) -> StreamConfig:
        """The configuration with these sections."""
        encoders = tuple(map(EncoderConfig.model_validate, self.sections["encoders"]))
        update = {
            "references": ReferencesConfig.model_validate(self.sections["references"]),
            "message": MessageConfig.model_validate(self.sections["message"]),
        }
        return config.with_encoders(encoders).model_copy(update=update)

    def messages(self, first: int, count: int) -> Iterator[OutgoingMessage]:
        """Messages of all kinds by turns."""
        names = random.Random(0).sample([*self.kinds], len(self.kinds))
        for number in range(first, first + count):
            name = names[number % len(names)]
            yield OutgoingMessage(f"{name}.{number}", self.kinds[name].value)

    def expect(self, key: str) -> Outcomes:
        """What the core makes of a message, which is also what its kind says."""
        kind = self.kinds[key.partition(".")[0]]
        outcomes = self.core.embed(kind.value)
        check_kind(kind, outcomes, self.core)
        return outcomes


@dataclass(frozen=True)
class MixedStream(DrivenStream):
    """A stream of small micro-batches over all kinds of messages."""

    mix: Mix

    @staticmethod
    def mixed(spark: SparkSession, topic: Topic, folder: Path, mix: Mix) -> MixedStream:
        import_encoders(spark)
        return MixedStream(spark, topic, write_config(topic, folder, **mix.sections), mix)

    @property
    def settings(self) -> list[str]:
        return []

    @property
    def python_path(self) -> str:
        """The PYTHONPATH of its drivers and workers."""
        return os.pathsep.join([seeded_encoders.FOLDER, os.environ.get("PYTHONPATH", "")])

    def send(self, count: int) -> None:
        """More messages, of all kinds by turns."""
        self.topic.send(self.mix.messages(sum(self.topic.end_offsets().values()), count))

    def run(
        self,
        *settings: str,
        until: Until = "stopped",
        environment: Mapping[str, str] | None = None,
    ) -> AbstractContextManager[Popen[str]]:
        given = {"PYTHONPATH": self.python_path, **(environment or {})}
        return super().run(*settings, until=until, environment=given)

    def outcomes(self) -> dict[Identity, Row]:
        """What the table holds by now, nothing doubled."""
        made = (self.table / "_delta_log" / f"{0:020}.json").exists()
        return read_outcomes(self.table) if made else {}

    def done(self) -> set[Position]:
        """The messages that have rows."""
        return {position for position, _ in self.outcomes()}

    def check(self, vectors: Vectors | None = None) -> None:
        """The oracle: each message has the rows that the core makes of it, and no file beside."""
        check_messages(self.table, self.topic.positions(), self.mix.expect, tolerance=CAREFUL)
        check_files(self.folder)
