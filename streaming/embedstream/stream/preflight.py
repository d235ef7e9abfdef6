"""Check everything that can be known to be wrong before the stream starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pyspark.sql import SparkSession

from embedstream.config.sections import StreamConfig
from embedstream.kafka.admin import KafkaUnavailable, read_end_offsets
from embedstream.kafka.client_settings import choose_target
from embedstream.kafka.group import check_group
from embedstream.kafka.source import choose_messages_per_trigger
from embedstream.kafka.topics import TopicState, check_starting_offsets, check_topics
from embedstream.recovery.checkpoint import Checkpoint, Writers
from embedstream.recovery.claim import check_unclaimed
from embedstream.recovery.doctor import Finding, find_checkpoint_problems, run_checks
from embedstream.recovery.resume import NO_CONSENT, Consent, plan_resumption
from embedstream.recovery.swap_files import SwapFiles
from embedstream.spark.folder import Folder
from embedstream.spark.local_disk import check_writable
from embedstream.spark.sizing import count_parallel_tasks, count_task_cores
from embedstream.stream.encoder_checks import EncoderChecks, Preparation
from embedstream.table.catalog import find_address
from embedstream.table.delta import check_models, check_table
from embedstream.table.delta_log import find_log_problems, read_writers
from embedstream.table.features import check_fillable
from embedstream_core.errors import SetupError
from embedstream_core.fetch.fetcher import open_fetcher
from embedstream_core.media.image.readers import require_decoders
from embedstream_core.models.card import PreparedModel

__all__ = ["Consent", "Finding", "PreflightResult", "check_start"]


@dataclass(frozen=True, slots=True)
class PreflightResult:
    """What the checks found. `writers` are those of the table; none for a replay.

    `models` are in the order of the configuration's encoders.
    """

    models: tuple[PreparedModel, ...]
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
    preparations: Sequence[Preparation] | None = None,
) -> PreflightResult | None:
    """Run every check and report each finding at once; return None if a check failed.

    Later checks run even if an earlier one failed, without the value that it would have found. A
    replay runs next to a stream: neither checkpoint nor driver is checked. `preparations` return
    the models, one for each encoder, if their preparation has begun already.
    """
    encoders = EncoderChecks(
        spark, config.all_encoders, preparations, decode_device=config.decode.device
    )
    found = _Preflight(spark, config, consent, encoders)
    checks = {
        **encoders.list_preparations(),
        "workers": found.check_workers,
        "topics": found.check_topics,
        "references": found.check_references,
        **({"schema registry": found.check_registry} if config.message.registry else {}),
        "table": found.check_table,
        **encoders.list_choices(),
    }
    if purpose == "stream":
        checks |= {
            "checkpoint": found.check_checkpoint,
            "driver": lambda: check_unclaimed(spark, config),
            **({"publish": found.check_publish} if config.publish.topic else {}),
        }
    passed = True
    for finding in run_checks(checks):
        report(finding)
        passed = passed and finding.passed
    if not passed or encoders.models is None or found.topics is None:
        return None
    return PreflightResult(
        encoders.models, found.topics, found.table_rows is not None, found.writers
    )


@dataclass
class _Preflight:
    """The checks; each returns a detail, and keeps what later checks need."""

    spark: SparkSession
    config: StreamConfig
    consent: Consent
    encoders: EncoderChecks
    topics: Mapping[str, TopicState] | None = None
    table_is_known: bool = False
    table_rows: int | None = None
    writers: Writers = field(default_factory=dict)

    def check_workers(self) -> str:
        if self.spark.conf.get("spark.python.worker.reuse", "true") != "true":
            raise SetupError(
                "spark.python.worker.reuse is false: every task would load the model again; "
                "remove it from spark.options"
            )
        require_decoders(self.config.decode.formats)
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
        if kafka.commit_group is not None:
            check_group(self.spark, kafka, kafka.commit_group)
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
        # A missing extra or a malformed key is named here, before a task meets it.
        open_fetcher(policy).close()
        allowed = [*map(str, policy.folders), *policy.hosts, *policy.buckets]
        return f"allowed: {', '.join(allowed)}" if allowed else "none allowed"

    def check_registry(self) -> str:
        registry = self.config.message.registry
        assert registry is not None
        return f"{registry.url}: {registry.build_decoder().check()}"

    def check_publish(self) -> str:
        publish = self.config.publish
        assert publish.topic is not None
        servers, settings = choose_target(self.config.kafka, publish)
        try:
            partitions = read_end_offsets(servers, publish.topic, client_settings=settings)
        except KafkaUnavailable as error:
            # An outage of these brokers does not end the stream, so it does not keep it from
            # starting either.
            return f"{error}; until then the outcomes of publish.topic wait in the table"
        return f"{servers}: {publish.topic} ({len(partitions)} partitions)"

    def check_table(self) -> str:
        spark, path = self.spark, self.config.table.path
        table = find_address(spark, self.config.table)
        folder = Folder(spark, path)
        if problems := find_log_problems(folder, thorough=False):
            raise SetupError("; ".join(problems))
        check_writable("table.path", path)
        rows = check_table(spark, table)
        if rows is None and (
            folder.list_sizes().keys() - {"_delta_log"}
            or folder.get_folder("_delta_log").list_sizes()
        ):
            raise SetupError(
                f"table.path '{path}' holds files that are no Delta table; choose a path "
                "of its own for the table"
            )
        self.table_is_known, self.table_rows = True, rows
        name = self.config.table.name
        described = path if name is None else f"{name} in {path}"
        if rows is None:
            return f"{described}: will be created"
        check_fillable(spark, self.config.table, door="messages")
        models = self.encoders.choose_precisions(table)
        if models and not self.consent.model_change and not self._allows_swap():
            remedy = (
                "choose another table and checkpoint, or continue with --allow-model-change "
                "(each row has its model_id)"
            )
            check_models(spark, table, [one.card.model_id for one in models], remedy=remedy)
        return f"{described}: {rows} rows"

    def _allows_swap(self) -> bool:
        """Return whether a driver ended in the middle of a swap from or to these encoders."""
        swap = SwapFiles.of(self.spark, self.config).read_swap()
        return swap is not None and swap.allows(self.config.all_encoders)

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
        adopts = False
        detail = f"{done} micro-batches done" if done else "new"
        if writers is not None and self.topics is not None:
            resumption = plan_resumption(spark, config, self.topics, consent)
            self.writers, adopts = resumption.writers, resumption.adopts
            if adopts:
                detail = "new, continues after the table's last messages"
        if self.topics is not None and not checkpoint.planned and not adopts:
            check_starting_offsets(config.kafka, self.topics)
        return f"{path}: {detail}"
