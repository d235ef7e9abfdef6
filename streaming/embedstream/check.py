"""Everything that can be known to be wrong before the stream starts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from pyspark.sql import SparkSession

from embedstream.checkpoint import Checkpoint
from embedstream.claim import check_unclaimed
from embedstream.config import Config
from embedstream.delta_log import writers
from embedstream.doctor import Finding, checkpoint_problems, table_problems
from embedstream.job import fetch_policy
from embedstream.resume import Resumption, plan, refuse_loss
from embedstream.sink import MODEL_PROPERTY, check_table, table_properties
from embedstream.source import TopicState, check_topics
from embedstream.storage import Folder
from embedstream_core.backends import Backend, obstacle
from embedstream_core.engine import choose_precision, find_device
from embedstream_core.errors import SetupError
from embedstream_core.weights import ModelSpec, PreparedModel, prepare_model

__all__ = ["Finding", "Preflight"]


@dataclass(slots=True)
class Preflight:
    """The checks of one configuration. `model` and `resumption` are there once theirs passed."""

    spark: SparkSession
    config: Config
    allow_model_change: bool = False
    adopt: bool = False
    accept_loss: bool = False
    model: PreparedModel | None = None
    resumption: Resumption | None = field(default=None, init=False)
    _topic_states: Mapping[str, TopicState] | None = field(default=None, init=False)
    _table_rows: int | None = field(default=None, init=False)

    def findings(self) -> Iterator[Finding]:
        """Run every check, in order; a later one runs although an earlier one failed."""
        for subject, check in self._checks().items():
            try:
                yield Finding(subject, passed=True, detail=check())
            except SetupError as error:
                yield Finding(subject, passed=False, detail=str(error))

    def checked(self) -> tuple[PreparedModel, Resumption]:
        """What a start needs, once all checks have passed."""
        if self.model is None or self.resumption is None:
            raise ValueError("the checks have not passed")
        return self.model, self.resumption

    def _checks(self) -> dict[str, Callable[[], str]]:
        return {
            "encoder": self._encoder,
            "device": self._device,
            "workers": self._workers,
            "topics": self._topics,
            "references": self._references,
            "table": self._table,
            "checkpoint": self._checkpoint,
            "driver": lambda: check_unclaimed(self.spark, self.config),
        }

    def _encoder(self) -> str:
        encoder = self.config.encoder
        self.model = prepare_model(ModelSpec(encoder.name, encoder.weights, encoder.sha256))
        card, tensors = self.model
        megabytes = len(tensors) / 1e6
        return f"{card.model_id}, {card.dimension} floats, {megabytes:.0f} MB, {card.license}"

    def _device(self) -> str:
        wanted, precision = self.config.encoder.device, self.config.encoder.precision
        local = str(self.spark.sparkContext.master).startswith("local[")
        if local:
            device = find_device(wanted)
            dtype = str(choose_precision(precision, device)).removeprefix("torch.")
            return f"{device.type}, {dtype}, {_backend(self.config.encoder.backend, device)}"
        granted = self.spark.sparkContext.getConf().get("spark.executor.resource.gpu.amount", "0")
        if wanted == "cuda" and granted in ("", "0"):
            raise SetupError(
                "encoder.device is cuda, but spark.executor.resource.gpu.amount is not set; grant "
                "the executors GPUs in spark.options, or set encoder.device to auto or cpu"
            )
        return f"{wanted}, {precision}; {granted or 0} GPUs an executor"

    def _workers(self) -> str:
        if self.spark.conf.get("spark.python.worker.reuse", "true") != "true":
            raise SetupError(
                "spark.python.worker.reuse is false: every task would load the model again; "
                "remove it from spark.options"
            )
        return f"{self.spark.sparkContext.master}, workers are reused"

    def _topics(self) -> str:
        self._topic_states = topics = check_topics(self.spark, self.config.kafka)
        named = ", ".join(f"{name} ({len(state.end)} partitions)" for name, state in topics.items())
        return f"{self.config.kafka.bootstrap_servers}: {named}"

    def _references(self) -> str:
        policy = fetch_policy(self.config)
        for folder in policy.folders:
            if not folder.is_dir():
                raise SetupError(
                    f"references.folders names '{folder}', which is no folder here; create it, or "
                    "take it off the list"
                )
        allowed = [*map(str, policy.folders), *policy.hosts, *policy.buckets]
        return f"allowed: {', '.join(allowed)}" if allowed else "none allowed"

    def _table(self) -> str:
        path = self.config.table.path
        folder = Folder(self.spark, path)
        if problems := table_problems(folder, thorough=False):
            raise SetupError("; ".join(problems))
        self._table_rows = check_table(self.spark, path)
        if self._table_rows is None:
            if folder.sizes():
                raise SetupError(
                    f"table.path '{path}' holds files that are no Delta table; choose a path of "
                    "its own for the table"
                )
            _check_writable(path, "table.path")
            return f"{path}: will be created"
        self._check_model(path)
        return f"{path}: {self._table_rows} rows"

    def _check_model(self, path: str) -> None:
        filled_by = table_properties(self.spark, path).get(MODEL_PROPERTY)
        wanted = self.model.card.model_id if self.model else None
        if filled_by and wanted and filled_by != wanted and not self.allow_model_change:
            raise SetupError(
                f"the table holds embeddings of '{filled_by}', and encoder gives '{wanted}'; "
                "choose another table and checkpoint, or go on with --allow-model-change (model_id "
                "tells the rows apart)"
            )

    def _checkpoint(self) -> str:
        path = self.config.checkpoint
        checkpoint = Checkpoint(Folder(self.spark, path))
        done = len(checkpoint.committed)
        if done and self._table_rows is None:
            raise SetupError(
                f"the checkpoint '{path}' has finished {done} micro-batches, but there is no "
                f"table at '{self.config.table.path}': their rows would be missing; bring the "
                "table back, or start anew with another checkpoint"
            )
        if self._table_rows and not checkpoint.planned and not self.adopt:
            raise SetupError(
                f"the table has {self._table_rows} rows, but there is no checkpoint at '{path}': "
                "its messages would be read again; bring the checkpoint back, go on after the "
                "table's last messages with --adopt, or choose another table"
            )
        _check_writable(path, "checkpoint")
        return f"{path}: {self._resumed(checkpoint)}"

    def _resumed(self, checkpoint: Checkpoint) -> str:
        """Where the stream goes on; without the topics' state that is not known."""
        table = self.config.table.path
        readable = not table_problems(Folder(self.spark, table), thorough=False)
        known = writers(self.spark, table) if readable else None
        if problems := checkpoint_problems(checkpoint, known, table=table, thorough=False):
            raise SetupError("; ".join(problems))
        done = len(checkpoint.committed)
        if readable and self._topic_states is not None:
            self.resumption = plan(self.spark, self.config, self._topic_states, adopt=self.adopt)
            if not self.accept_loss and self.config.kafka.on_data_loss == "fail":
                refuse_loss(self.resumption)
            if self.resumption.adopts:
                return "new, goes on after the table's last messages"
        return f"{done} micro-batches done" if done else "new"


def _backend(wanted: Backend, device: torch.device) -> str:
    reason = obstacle(wanted, device)
    return f"torch, for {wanted} cannot be used: {reason}" if reason else wanted


def _check_writable(location: str, key: str) -> None:
    if "://" in location:
        return
    folder = Path(location)
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise SetupError(
            f"{key} '{location}' cannot be written: '{folder}' is no folder that you may write to; "
            "choose another path"
        )
