"""Check everything that can be known to be wrong before the stream starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from pyspark.sql import SparkSession

from embedstream.config.sections import EncoderConfig, StreamConfig
from embedstream.kafka.source import choose_messages_per_trigger
from embedstream.kafka.topics import TopicState, check_topics
from embedstream.recovery.checkpoint import Checkpoint, Writers
from embedstream.recovery.claim import check_unclaimed
from embedstream.recovery.doctor import Finding, find_checkpoint_problems
from embedstream.recovery.lost_messages import refuse_losses
from embedstream.recovery.resume import plan
from embedstream.spark.folder import Folder
from embedstream.spark.local_disk import check_writable
from embedstream.spark.sizing import count_parallel_tasks, count_task_cores
from embedstream.table.delta import check_model, check_table
from embedstream.table.delta_log import find_log_problems, read_writers
from embedstream.worker.model import Choice, choose_precision, prepare
from embedstream_core.engine.backends import find_obstacle
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
    """The results that a start needs.

    `table_rows` is None before the table is created, and `writers` are those of the table that the
    checkpoint was compared with.
    """

    model: PreparedModel
    topics: Topics
    table_rows: int | None
    writers: Writers


class _Result(NamedTuple, Generic[_Value]):
    """The detail that a check reports, and a value for later checks, even if it failed."""

    detail: str
    value: _Value | None = None
    passed: bool = True


class _Table(NamedTuple):
    """`rows` and `choice` are None before the table is created, `choice` also without a model."""

    rows: int | None
    choice: Choice | None = None


def check_start(
    spark: SparkSession,
    config: StreamConfig,
    report: Callable[[Finding], object],
    consent: Consent = Consent(),
    *,
    beside_a_driver: bool = False,
    preparation: Callable[[], PreparedModel] | None = None,
) -> Checked | None:
    """Run every check and report each finding at once; return None if a check failed.

    Later checks run even if an earlier one failed, without the value that it would have returned.
    `beside_a_driver` skips the checks of checkpoint and driver, for writers that run next to a
    stream. `preparation` returns the model if its preparation has begun already.
    """
    failed = False

    def run(subject: str, check: Callable[[], _Result[_Value]]) -> _Value | None:
        nonlocal failed
        try:
            detail, value, passed = check()
        except SetupError as error:
            detail, value, passed = str(error), None, False
        failed = failed or not passed
        report(Finding(subject, passed, detail))
        return value

    known = None
    model = run("encoder", lambda: _prepare(preparation or (lambda: prepare(config.encoder))))
    run("device", lambda: _check_device(spark, config.encoder, model))
    run("workers", lambda: _check_workers(spark, config))
    topics = run("topics", lambda: _check_topics(spark, config))
    run("references", lambda: _check_references(config))
    table = run("table", lambda: _check_table(spark, config, model, consent))
    choice = run("precision", lambda: _choose_precision(spark, config, model, table))
    if not beside_a_driver:
        known = run("checkpoint", lambda: _check_checkpoint(spark, config, consent, topics, table))
        run("driver", lambda: _Result[None](check_unclaimed(spark, config)))
    if failed or choice is None or topics is None or table is None:
        return None
    return Checked(choice.model, topics, table.rows, known or {})


def _prepare(preparation: Callable[[], PreparedModel]) -> _Result[PreparedModel]:
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
        # The encoder of a model from a registry is named by its card alone.
        name = model.card.encoder if model else config.name
        reason = find_obstacle(config.backend, device, fixed=is_fixed(name))
        used = f"torch ({config.backend} is not usable: {reason})" if reason else config.backend
        images = config.batch_size or choose_batch_size(device)
        return _Result(f"{device.type}, {used}, {images} images a forward pass")
    granted = spark.sparkContext.getConf().get("spark.executor.resource.gpu.amount", "0")
    if config.device == "cuda" and granted in ("", "0"):
        raise SetupError(
            "encoder.device is cuda, but spark.executor.resource.gpu.amount is not set; grant "
            "the executors GPUs in spark.options, or set encoder.device to auto or cpu"
        )
    return _Result(f"{config.device}; {granted or 0} GPUs an executor")


def _check_workers(spark: SparkSession, config: StreamConfig) -> _Result[None]:
    if spark.conf.get("spark.python.worker.reuse", "true") != "true":
        raise SetupError(
            "spark.python.worker.reuse is false: every task would load the model again; "
            "remove it from spark.options"
        )
    limits = config.pipeline
    return _Result(
        f"{spark.sparkContext.master}: {count_parallel_tasks(spark)} tasks at once, torch threads "
        f"in each: {count_task_cores(spark)}; Arrow batches to {limits.arrow_batch_rows} rows or "
        f"{limits.arrow_batch_bytes / 2**20:g} MiB, read ahead to {limits.read_ahead_rows} rows or "
        f"{limits.read_ahead_bytes / 2**20:g} MiB"
    )


def _check_topics(spark: SparkSession, config: StreamConfig) -> _Result[Topics]:
    topics = check_topics(spark, config.kafka)
    named = ", ".join(f"{name} ({len(state.end)} partitions)" for name, state in topics.items())
    most = choose_messages_per_trigger(spark, config.kafka)
    return _Result(
        f"{config.kafka.bootstrap_servers}: {named}; up to {most} messages a micro-batch", topics
    )


def _check_references(config: StreamConfig) -> _Result[None]:
    policy = config.references.policy(max_bytes=config.decode.max_image_bytes)
    for folder in policy.folders:
        if not folder.exists():
            raise SetupError(
                f"references.folders names '{folder}', but there is no folder here; create it, or "
                "take it off the list"
            )
    allowed = [*map(str, policy.folders), *policy.hosts, *policy.buckets]
    return _Result(f"allowed: {', '.join(allowed)}" if allowed else "none allowed")


def _check_table(
    spark: SparkSession, config: StreamConfig, model: PreparedModel | None, consent: Consent
) -> _Result[_Table]:
    path = config.table.path
    folder = Folder(spark, path)
    if problems := find_log_problems(folder, thorough=False):
        raise SetupError("; ".join(problems))
    check_writable("table.path", path)
    rows = check_table(spark, path)
    if rows is None:
        if folder.sizes().keys() - {"_delta_log"} or folder.folder("_delta_log").sizes():
            raise SetupError(
                f"table.path '{path}' holds files that are no Delta table; choose a path of its "
                "own for the table"
            )
        return _Result(f"{path}: will be created", _Table(None))
    choice = choose_precision(spark, model, config.encoder, table=path) if model else None
    try:
        if choice and not consent.model_change:
            remedy = (
                "choose another table and checkpoint, or continue with --allow-model-change "
                "(each row has its model_id)"
            )
            check_model(spark, path, choice.model.card.model_id, remedy=remedy)
    except SetupError as error:
        return _Result(str(error), _Table(rows, choice), passed=False)
    return _Result(f"{path}: {rows} rows", _Table(rows, choice))


def _choose_precision(
    spark: SparkSession, config: StreamConfig, model: PreparedModel | None, table: _Table | None
) -> _Result[Choice]:
    if model is None:
        raise SetupError("not chosen, because there is no encoder")
    choice = (table and table.choice) or choose_precision(spark, model, config.encoder)
    return _Result(f"{choice.precision}, {choice.reason}", choice)


def _check_checkpoint(
    spark: SparkSession,
    config: StreamConfig,
    consent: Consent,
    topics: Topics | None,
    table: _Table | None,
) -> _Result[Writers]:
    path = config.checkpoint
    checkpoint = Checkpoint(Folder(spark, path))
    done = len(checkpoint.committed)
    if done and table and table.rows is None:
        raise SetupError(
            f"the checkpoint '{path}' has finished {done} micro-batches, but there is no table at "
            f"'{config.table.path}': their rows would be missing; restore the table, or start over "
            "with another checkpoint"
        )
    if table and table.rows and not checkpoint.planned and not consent.adopt:
        raise SetupError(
            f"the table has {table.rows} rows, but there is no checkpoint at '{path}': its "
            "messages would be read again; restore the checkpoint, continue after the table's last "
            "messages with --adopt, or choose another table"
        )
    check_writable("checkpoint", path)
    is_readable = not find_log_problems(Folder(spark, config.table.path), thorough=False)
    known = read_writers(spark, config.table.path) if is_readable else None
    if problems := find_checkpoint_problems(
        checkpoint, known, table=config.table.path, thorough=False
    ):
        raise SetupError("; ".join(problems))
    detail = f"{done} micro-batches done" if done else "new"
    if known is not None and topics is not None:
        resumption = plan(spark, config, topics, adopt=consent.adopt)
        if not consent.loss and config.kafka.on_data_loss == "fail":
            refuse_losses(resumption.lost)
        known = resumption.writers
        if resumption.adopts:
            detail = "new, continues after the table's last messages"
    return _Result(f"{path}: {detail}", known)
