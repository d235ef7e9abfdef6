"""Everything that can be known to be wrong before the stream starts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from pyspark.sql import SparkSession

from embedstream.checkpoint import Checkpoint
from embedstream.claim import check_unclaimed
from embedstream.config import Config
from embedstream.delta_log import writers
from embedstream.doctor import Finding, checkpoint_problems, table_problems
from embedstream.model import Choice, choose_precision, prepare
from embedstream.parallelism import task_cores, tasks_at_once
from embedstream.resume import Resumption, plan, refuse_loss
from embedstream.sink import check_model, check_table
from embedstream.source import TopicState, check_topics, messages_per_trigger
from embedstream.storage import Folder, check_writable
from embedstream_core.backends import obstacle
from embedstream_core.engine import choose_batch_size, find_device
from embedstream_core.errors import SetupError
from embedstream_core.programs import is_fixed
from embedstream_core.settings import Backend
from embedstream_core.weights import PreparedModel

__all__ = ["Finding", "Preflight"]


@dataclass(slots=True)
class Preflight:
    """The checks of one configuration. `model`, `topics`, `table_rows` (None where there is no
    table yet) and `resumption` are there once theirs passed. `prepare` gives the model where its
    preparation has begun already."""

    spark: SparkSession
    config: Config
    allow_model_change: bool = False
    adopt: bool = False
    accept_loss: bool = False
    prepare: Callable[[], PreparedModel] | None = None
    model: PreparedModel | None = field(default=None, init=False)
    resumption: Resumption | None = field(default=None, init=False)
    topics: Mapping[str, TopicState] | None = field(default=None, init=False)
    table_rows: int | None = field(default=None, init=False)
    choice: Choice | None = field(default=None, init=False)

    def findings(self, *, beside_a_driver: bool = False) -> Iterator[Finding]:
        """Run every check, in order; a later one runs although an earlier one failed.

        `beside_a_driver` leaves out those of what only the driver of the stream writes to.
        """
        for subject, check in self._checks(beside_a_driver).items():
            try:
                yield Finding(subject, passed=True, detail=check())
            except SetupError as error:
                yield Finding(subject, passed=False, detail=str(error))

    def checked(self) -> tuple[PreparedModel, Resumption]:
        """What a start needs, once all checks have passed."""
        if self.model is None or self.resumption is None:
            raise ValueError("the checks have not passed")
        return self.model, self.resumption

    def _checks(self, beside_a_driver: bool) -> dict[str, Callable[[], str]]:
        checks = {
            "encoder": self._encoder,
            "device": self._device,
            "workers": self._workers,
            "topics": self._topics,
            "references": self._references,
            "table": self._table,
            "precision": self._precision,
        }
        if beside_a_driver:
            return checks
        return {
            **checks,
            "checkpoint": self._checkpoint,
            "driver": lambda: check_unclaimed(self.spark, self.config),
        }

    def _encoder(self) -> str:
        self.model = self.prepare() if self.prepare else prepare(self.config.encoder)
        card, tensors = self.model
        megabytes = len(tensors) / 1e6
        return f"{card.model_id}, {card.dimension} floats, {megabytes:.0f} MB, {card.license}"

    def _device(self) -> str:
        wanted = self.config.encoder.device
        local = str(self.spark.sparkContext.master).startswith("local[")
        if local:
            device = find_device(wanted)
            # Of a model from a registry, only its card tells the encoder.
            name = self.model.card.encoder if self.model else self.config.encoder.name
            backend = _backend(self.config.encoder.backend, device, fixed=is_fixed(name))
            pictures = self.config.encoder.batch_size or choose_batch_size(device)
            return f"{device.type}, {backend}, {pictures} pictures a forward pass"
        granted = self.spark.sparkContext.getConf().get("spark.executor.resource.gpu.amount", "0")
        if wanted == "cuda" and granted in ("", "0"):
            raise SetupError(
                "encoder.device is cuda, but spark.executor.resource.gpu.amount is not set; grant "
                "the executors GPUs in spark.options, or set encoder.device to auto or cpu"
            )
        return f"{wanted}; {granted or 0} GPUs an executor"

    def _workers(self) -> str:
        if self.spark.conf.get("spark.python.worker.reuse", "true") != "true":
            raise SetupError(
                "spark.python.worker.reuse is false: every task would load the model again; "
                "remove it from spark.options"
            )
        context, pipeline = self.spark.sparkContext, self.config.pipeline
        return (
            f"{context.master}: {tasks_at_once(self.spark)} tasks at once, torch threads in each: "
            f"{task_cores(self.spark)}; Arrow batches to {pipeline.arrow_batch_rows} rows or "
            f"{pipeline.arrow_batch_bytes / 2**20:g} MiB, read ahead to {pipeline.read_ahead_rows} "
            f"rows or {pipeline.read_ahead_bytes / 2**20:g} MiB"
        )

    def _topics(self) -> str:
        self.topics = topics = check_topics(self.spark, self.config.kafka)
        named = ", ".join(f"{name} ({len(state.end)} partitions)" for name, state in topics.items())
        most = messages_per_trigger(self.spark, self.config.kafka)
        return (
            f"{self.config.kafka.bootstrap_servers}: {named}; up to {most} messages a micro-batch"
        )

    def _references(self) -> str:
        max_bytes = self.config.decode.max_image_bytes
        policy = self.config.references.policy(max_bytes=max_bytes)
        for folder in policy.folders:
            if not folder.exists():
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
        check_writable("table.path", path)
        self.table_rows = check_table(self.spark, path)
        if self.table_rows is None:
            if folder.sizes().keys() - {"_delta_log"} or folder.folder("_delta_log").sizes():
                raise SetupError(
                    f"table.path '{path}' holds files that are no Delta table; choose a path of "
                    "its own for the table"
                )
            return f"{path}: will be created"
        if self.model:
            self._choose(self.model, table=path)
        if self.model and not self.allow_model_change:
            remedy = (
                "choose another table and checkpoint, or go on with --allow-model-change "
                "(model_id tells the rows apart)"
            )
            check_model(self.spark, path, self.model.card.model_id, remedy=remedy)
        return f"{path}: {self.table_rows} rows"

    def _precision(self) -> str:
        if self.model is None:
            raise SetupError("not chosen, because there is no encoder")
        choice = self.choice or self._choose(self.model)
        return f"{choice.precision}, {choice.reason}"

    def _choose(self, model: PreparedModel, *, table: str | None = None) -> Choice:
        self.choice = choose_precision(self.spark, model, self.config.encoder, table=table)
        self.model = self.choice.model
        return self.choice

    def _checkpoint(self) -> str:
        path = self.config.checkpoint
        checkpoint = Checkpoint(Folder(self.spark, path))
        done = len(checkpoint.committed)
        if done and self.table_rows is None:
            raise SetupError(
                f"the checkpoint '{path}' has finished {done} micro-batches, but there is no "
                f"table at '{self.config.table.path}': their rows would be missing; bring the "
                "table back, or start anew with another checkpoint"
            )
        if self.table_rows and not checkpoint.planned and not self.adopt:
            raise SetupError(
                f"the table has {self.table_rows} rows, but there is no checkpoint at '{path}': "
                "its messages would be read again; bring the checkpoint back, go on after the "
                "table's last messages with --adopt, or choose another table"
            )
        check_writable("checkpoint", path)
        return f"{path}: {self._resumed(checkpoint)}"

    def _resumed(self, checkpoint: Checkpoint) -> str:
        """Where the stream goes on; without the topics' state that is not known."""
        table = self.config.table.path
        readable = not table_problems(Folder(self.spark, table), thorough=False)
        known = writers(self.spark, table) if readable else None
        if problems := checkpoint_problems(checkpoint, known, table=table, thorough=False):
            raise SetupError("; ".join(problems))
        done = len(checkpoint.committed)
        if readable and self.topics is not None:
            self.resumption = plan(self.spark, self.config, self.topics, adopt=self.adopt)
            if not self.accept_loss and self.config.kafka.on_data_loss == "fail":
                refuse_loss(self.resumption)
            if self.resumption.adopts:
                return "new, goes on after the table's last messages"
        return f"{done} micro-batches done" if done else "new"


def _backend(wanted: Backend, device: torch.device, *, fixed: bool) -> str:
    reason = obstacle(wanted, device, fixed=fixed)
    return f"torch, for {wanted} cannot be used: {reason}" if reason else wanted
