"""Everything that can be known to be wrong before the stream starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Generic, NamedTuple, TypeVar

from pyspark.sql import SparkSession

from embedstream.config.sections import EncoderConfig, KafkaConfig, PipelineConfig, StreamConfig
from embedstream.kafka.source import messages_per_trigger
from embedstream.kafka.topics import TopicState, check_topics
from embedstream.recovery.checkpoint import Checkpoint
from embedstream.recovery.claim import check_unclaimed
from embedstream.recovery.doctor import Finding, checkpoint_problems, table_problems
from embedstream.recovery.resume import plan, refuse_loss
from embedstream.spark.folder import Folder, check_writable
from embedstream.spark.sizing import task_cores, tasks_at_once
from embedstream.table.delta import check_model, check_table
from embedstream.table.delta_log import Writer, writers
from embedstream.worker.model import Choice, choose_precision, prepare
from embedstream_core.engine.backends import obstacle
from embedstream_core.engine.engine import choose_batch_size, find_device
from embedstream_core.errors import SetupError
from embedstream_core.models.files.file_formats import is_fixed
from embedstream_core.models.prepare import PreparedModel

__all__ = ["Checked", "Consent", "Finding", "check_start"]

Topics = Mapping[str, TopicState]
_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class Consent:
    """What a start may do because the user asked for it."""

    model_change: bool = False
    adopt: bool = False
    loss: bool = False


@dataclass(frozen=True, slots=True)
class Checked:
    """What a start needs: `table_rows` is None before the table is created, and `writers` are those
    of the table that the checkpoint was compared with."""

    model: PreparedModel
    topics: Topics
    table_rows: int | None
    writers: Mapping[str, Writer]


def check_start(
    spark: SparkSession,
    config: StreamConfig,
    report: Callable[[Finding], object],
    consent: Consent = Consent(),
    *,
    beside_a_driver: bool = False,
    preparation: Callable[[], PreparedModel] | None = None,
) -> Checked | None:
    """Run every check and report each finding at once; return None where a check failed.

    A later check runs although an earlier one failed; it gets None for what that did not find.
    `beside_a_driver` leaves out the checks of what only the driver of the stream writes to.
    `preparation` returns the model where its preparation has begun already.
    """
    checks = _Checks(report)
    encoder, known = config.encoder, None
    model = checks.run("encoder", lambda: _check_encoder(preparation or partial(prepare, encoder)))
    checks.run("device", lambda: _check_device(spark, encoder, model))
    checks.run("workers", lambda: _check_workers(spark, config.pipeline))
    topics = checks.run("topics", lambda: _check_topics(spark, config.kafka))
    checks.run("references", lambda: _check_references(config))
    table = checks.run("table", lambda: _check_table(spark, config, model, consent))
    choice = checks.run("precision", lambda: _check_precision(spark, encoder, model, table))
    if not beside_a_driver:
        known = checks.run(
            "checkpoint", lambda: _check_checkpoint(spark, config, consent, topics, table)
        )
        checks.run("driver", lambda: _Result(check_unclaimed(spark, config)))
    if checks.failed or choice is None or topics is None or table is None:
        return None
    return Checked(choice.model, topics, table.rows, known or {})


class _Result(NamedTuple, Generic[_Value]):
    """What a check says, and the value that later checks need, even of one that failed."""

    detail: str
    value: _Value | None = None
    passed: bool = True


@dataclass(slots=True)
class _Checks:
    report: Callable[[Finding], object]
    failed: bool = False

    def run(self, subject: str, check: Callable[[], _Result[_Value]]) -> _Value | None:
        try:
            detail, value, passed = check()
        except SetupError as error:
            detail, value, passed = str(error), None, False
        self.failed = self.failed or not passed
        self.report(Finding(subject, passed, detail))
        return value


@dataclass(frozen=True, slots=True)
class _Table:
    """`rows` and `choice` are None before the table is created, `choice` also without a model."""

    rows: int | None
    choice: Choice | None = None


def _check_encoder(preparation: Callable[[], PreparedModel]) -> _Result[PreparedModel]:
    card, tensors = model = preparation()
    megabytes = len(tensors) / 1e6
    return _Result(
        f"{card.model_id}, {card.dimension} floats, {megabytes:.0f} MB, {card.license}", model
    )


def _check_device(
    spark: SparkSession, config: EncoderConfig, model: PreparedModel | None
) -> _Result[None]:
    if str(spark.sparkContext.master).startswith("local["):
        device = find_device(config.device)
        # Of a model from a registry, only its card names the encoder.
        name = model.card.encoder if model else config.name
        reason = obstacle(config.backend, device, fixed=is_fixed(name))
        used = f"torch, for {config.backend} cannot be used: {reason}" if reason else config.backend
        pictures = config.batch_size or choose_batch_size(device)
        return _Result(f"{device.type}, {used}, {pictures} pictures a forward pass")
    granted = spark.sparkContext.getConf().get("spark.executor.resource.gpu.amount", "0")
    if config.device == "cuda" and granted in ("", "0"):
        raise SetupError(
            "encoder.device is cuda, but spark.executor.resource.gpu.amount is not set; grant "
            "the executors GPUs in spark.options, or set encoder.device to auto or cpu"
        )
    return _Result(f"{config.device}; {granted or 0} GPUs an executor")


def _check_workers(spark: SparkSession, config: PipelineConfig) -> _Result[None]:
    if spark.conf.get("spark.python.worker.reuse", "true") != "true":
        raise SetupError(
            "spark.python.worker.reuse is false: every task would load the model again; "
            "remove it from spark.options"
        )
    return _Result(
        f"{spark.sparkContext.master}: {tasks_at_once(spark)} tasks at once, torch threads in "
        f"each: {task_cores(spark)}; Arrow batches to {config.arrow_batch_rows} rows or "
        f"{config.arrow_batch_bytes / 2**20:g} MiB, read ahead to {config.read_ahead_rows} rows or "
        f"{config.read_ahead_bytes / 2**20:g} MiB"
    )


def _check_topics(spark: SparkSession, config: KafkaConfig) -> _Result[Topics]:
    topics = check_topics(spark, config)
    named = ", ".join(f"{name} ({len(state.end)} partitions)" for name, state in topics.items())
    most = messages_per_trigger(spark, config)
    return _Result(
        f"{config.bootstrap_servers}: {named}; up to {most} messages a micro-batch", topics
    )


def _check_references(config: StreamConfig) -> _Result[None]:
    policy = config.references.policy(max_bytes=config.decode.max_image_bytes)
    for folder in policy.folders:
        if not folder.exists():
            raise SetupError(
                f"references.folders names '{folder}', which is no folder here; create it, or "
                "take it off the list"
            )
    allowed = [*map(str, policy.folders), *policy.hosts, *policy.buckets]
    return _Result(f"allowed: {', '.join(allowed)}" if allowed else "none allowed")


def _check_table(
    spark: SparkSession, config: StreamConfig, model: PreparedModel | None, consent: Consent
) -> _Result[_Table]:
    path = config.table.path
    folder = Folder(spark, path)
    if problems := table_problems(folder, thorough=False):
        raise SetupError("; ".join(problems))
    check_writable("table.path", path)
    rows = check_table(spark, path)
    if rows is None:
        if folder.sizes().keys() - {"_delta_log"} or folder.folder("_delta_log").sizes():
            raise SetupError(
                f"table.path '{path}' holds files that are no Delta table; choose a path of "
                "its own for the table"
            )
        return _Result(f"{path}: will be created", _Table(None))
    choice = choose_precision(spark, model, config.encoder, table=path) if model else None
    if choice and not consent.model_change:
        remedy = (
            "choose another table and checkpoint, or go on with --allow-model-change "
            "(model_id tells the rows apart)"
        )
        try:
            check_model(spark, path, choice.model.card.model_id, remedy=remedy)
        except SetupError as error:
            return _Result(str(error), _Table(rows, choice), passed=False)
    return _Result(f"{path}: {rows} rows", _Table(rows, choice))


def _check_precision(
    spark: SparkSession, config: EncoderConfig, model: PreparedModel | None, table: _Table | None
) -> _Result[Choice]:
    if model is None:
        raise SetupError("not chosen, because there is no encoder")
    choice = (table and table.choice) or choose_precision(spark, model, config)
    return _Result(f"{choice.precision}, {choice.reason}", choice)


def _check_checkpoint(
    spark: SparkSession,
    config: StreamConfig,
    consent: Consent,
    topics: Topics | None,
    table: _Table | None,
) -> _Result[Mapping[str, Writer]]:
    path = config.checkpoint
    checkpoint = Checkpoint(Folder(spark, path))
    done = len(checkpoint.committed)
    if done and table and table.rows is None:
        raise SetupError(
            f"the checkpoint '{path}' has finished {done} micro-batches, but there is no "
            f"table at '{config.table.path}': their rows would be missing; bring the "
            "table back, or start over with another checkpoint"
        )
    if table and table.rows and not checkpoint.planned and not consent.adopt:
        raise SetupError(
            f"the table has {table.rows} rows, but there is no checkpoint at '{path}': "
            "its messages would be read again; bring the checkpoint back, go on after the "
            "table's last messages with --adopt, or choose another table"
        )
    check_writable("checkpoint", path)
    readable = not table_problems(Folder(spark, config.table.path), thorough=False)
    known = writers(spark, config.table.path) if readable else None
    if problems := checkpoint_problems(checkpoint, known, table=config.table.path, thorough=False):
        raise SetupError("; ".join(problems))
    detail = f"{done} micro-batches done" if done else "new"
    if readable and topics is not None:
        resumption = plan(spark, config, topics, adopt=consent.adopt)
        if not consent.loss and config.kafka.on_data_loss == "fail":
            refuse_loss(resumption)
        known = resumption.writers
        if resumption.adopts:
            detail = "new, goes on after the table's last messages"
    return _Result(f"{path}: {detail}", known)
