"""Check everything that can be known to be wrong before the stream starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from pyspark.sql import SparkSession

from embedstream.config.sections import StreamConfig
from embedstream.kafka.source import choose_messages_per_trigger
from embedstream.kafka.topics import TopicState, check_topics
from embedstream.recovery.checkpoint import Checkpoint, Writers
from embedstream.recovery.claim import check_unclaimed
from embedstream.recovery.doctor import Finding, find_checkpoint_problems, run_checks
from embedstream.recovery.resume import NO_CONSENT, Consent, plan_resumption
from embedstream.spark.folder import Folder
from embedstream.spark.local_disk import check_writable
from embedstream.spark.sizing import count_parallel_tasks, count_task_cores
from embedstream.table.delta import check_model, check_table
from embedstream.table.delta_log import find_log_problems, read_writers
from embedstream.worker.model import Choice, choose_precision, prepare
from embedstream_core.engine.backends import find_obstacle
from embedstream_core.engine.engine import choose_batch_size, find_device
from embedstream_core.errors import SetupError
from embedstream_core.models.card import PreparedModel
from embedstream_core.models.files.file_formats import is_fixed

__all__ = ["Consent", "Finding", "PreflightResult", "check_start"]


@dataclass(frozen=True, slots=True)
class PreflightResult:
    """What the checks found. `writers` are those of the table; none for a replay."""

    model: PreparedModel
    topics: Mapping[str, TopicState]
    table_exists: bool
    writers: Writers


def check_start(
    spark: SparkSession,
    config: StreamConfig,
    report: Callable[[Finding], object],
    consent: Consent = NO_CONSENT,
    *,
    purpose: Literal["stream", "replay"] = "stream",
    preparation: Callable[[], PreparedModel] | None = None,
) -> PreflightResult | None:
    """Run every check and report each finding at once; return None if a check failed.

    Later checks run even if an earlier one failed, without the value that it would have found. A
    replay runs next to a stream: neither checkpoint nor driver is checked. `preparation` returns
    the model if its preparation has begun already.
    """
    found = _Preflight(spark, config, consent, preparation or (lambda: prepare(config.encoder)))
    checks = {
        "encoder": found.prepare_encoder,
        "device": found.check_device,
        "workers": found.check_workers,
        "topics": found.check_topics,
        "references": found.check_references,
        "table": found.check_table,
        "precision": found.choose_precision,
    }
    if purpose == "stream":
        checks |= {
            "checkpoint": found.check_checkpoint,
            "driver": lambda: check_unclaimed(spark, config),
        }
    passed = True
    for finding in run_checks(checks):
        report(finding)
        passed = passed and finding.passed
    if not passed or found.choice is None or found.topics is None:
        return None
    return PreflightResult(
        found.choice.model, found.topics, found.table_rows is not None, found.writers
    )


@dataclass
class _Preflight:
    """The checks; each returns a detail, and keeps what later checks need."""

    spark: SparkSession
    config: StreamConfig
    consent: Consent
    preparation: Callable[[], PreparedModel]
    model: PreparedModel | None = None
    topics: Mapping[str, TopicState] | None = None
    table_is_known: bool = False
    table_rows: int | None = None
    choice: Choice | None = None
    writers: Writers = field(default_factory=dict)

    def prepare_encoder(self) -> str:
        card, tensors = self.model = self.preparation()
        megabytes = len(tensors) / 1e6
        return f"{card.model_id}, {card.dimension} floats, {megabytes:.0f} MB, {card.license}"

    def check_device(self) -> str:
        encoder = self.config.encoder
        if str(self.spark.sparkContext.master).startswith("local["):
            device = find_device(encoder.device)
            # The encoder of a model from a registry is named by its card alone.
            name = self.model.card.encoder if self.model else encoder.name
            reason = find_obstacle(encoder.backend, device, fixed=is_fixed(name))
            unusable = f"torch ({encoder.backend} is not usable: {reason})"
            images = encoder.batch_size or choose_batch_size(device)
            used = unusable if reason else encoder.backend
            return f"{device.type}, {used}, {images} images a forward pass"
        granted = self.spark.sparkContext.getConf().get("spark.executor.resource.gpu.amount", "0")
        if encoder.device == "cuda" and granted in ("", "0"):
            raise SetupError(
                "encoder.device is cuda, but spark.executor.resource.gpu.amount is not set; grant "
                "the executors GPUs in spark.options, or set encoder.device to auto or cpu"
            )
        return f"{encoder.device}; {granted or 0} GPUs an executor"

    def check_workers(self) -> str:
        if self.spark.conf.get("spark.python.worker.reuse", "true") != "true":
            raise SetupError(
                "spark.python.worker.reuse is false: every task would load the model again; "
                "remove it from spark.options"
            )
        limits = self.config.pipeline
        return (
            f"{self.spark.sparkContext.master}: {count_parallel_tasks(self.spark)} tasks at once, "
            f"torch threads in each: {count_task_cores(self.spark)}; Arrow batches to "
            f"{limits.arrow_batch_rows} rows or {limits.arrow_batch_bytes / 2**20:g} MiB, read "
            f"ahead to {limits.read_ahead_rows} rows or {limits.read_ahead_bytes / 2**20:g} MiB"
        )

    def check_topics(self) -> str:
        kafka = self.config.kafka
        self.topics = check_topics(self.spark, kafka)
        named = [f"{name} ({len(state.end)} partitions)" for name, state in self.topics.items()]
        most = choose_messages_per_trigger(self.spark, kafka)
        return f"{kafka.bootstrap_servers}: {', '.join(named)}; up to {most} messages a micro-batch"

    def check_references(self) -> str:
        max_bytes = self.config.decode.max_image_bytes
        policy = self.config.references.build_policy(max_bytes=max_bytes)
        for folder in policy.folders:
            if not folder.exists():
                raise SetupError(
                    f"references.folders names '{folder}', but there is no folder here; create "
                    "it, or take it off the list"
                )
        allowed = [*map(str, policy.folders), *policy.hosts, *policy.buckets]
        return f"allowed: {', '.join(allowed)}" if allowed else "none allowed"

    def check_table(self) -> str:
        spark, path = self.spark, self.config.table.path
        folder = Folder(spark, path)
        if problems := find_log_problems(folder, thorough=False):
            raise SetupError("; ".join(problems))
        check_writable("table.path", path)
        rows = check_table(spark, path)
        if rows is None and (
            folder.list_sizes().keys() - {"_delta_log"}
            or folder.get_folder("_delta_log").list_sizes()
        ):
            raise SetupError(
                f"table.path '{path}' holds files that are no Delta table; choose a path of its "
                "own for the table"
            )
        self.table_is_known, self.table_rows = True, rows
        if rows is None:
            return f"{path}: will be created"
        if self.model:
            self.choice = choose_precision(spark, self.model, self.config.encoder, table=path)
            if not self.consent.model_change:
                remedy = (
                    "choose another table and checkpoint, or continue with --allow-model-change "
                    "(each row has its model_id)"
                )
                check_model(spark, path, self.choice.model.card.model_id, remedy=remedy)
        return f"{path}: {rows} rows"

    def choose_precision(self) -> str:
        if self.model is None:
            raise SetupError("not chosen, because there is no encoder")
        if self.choice is None:
            self.choice = choose_precision(self.spark, self.model, self.config.encoder)
        return f"{self.choice.precision}, {self.choice.reason}"

    def check_checkpoint(self) -> str:
        spark, config, consent = self.spark, self.config, self.consent
        path, table = config.checkpoint, config.table.path
        checkpoint = Checkpoint(Folder(spark, path))
        done = len(checkpoint.committed)
        if done and self.table_is_known and self.table_rows is None:
            raise SetupError(
                f"the checkpoint '{path}' has finished {done} micro-batches, but there is no table "
                f"at '{table}': their rows would be missing; restore the table, or start over with "
                "another checkpoint"
            )
        if self.table_rows and not checkpoint.planned and not consent.adopt:
            raise SetupError(
                f"the table has {self.table_rows} rows, but there is no checkpoint at '{path}': "
                "its messages would be read again; restore the checkpoint, continue after the "
                "table's last messages with --adopt, or choose another table"
            )
        check_writable("checkpoint", path)
        is_readable = not find_log_problems(Folder(spark, table), thorough=False)
        writers = read_writers(spark, table) if is_readable else None
        if problems := find_checkpoint_problems(checkpoint, writers, table=table, thorough=False):
            raise SetupError("; ".join(problems))
        detail = f"{done} micro-batches done" if done else "new"
        if writers is not None and self.topics is not None:
            resumption = plan_resumption(spark, config, self.topics, consent)
            self.writers = resumption.writers
            if resumption.adopts:
                detail = "new, continues after the table's last messages"
        return f"{path}: {detail}"
