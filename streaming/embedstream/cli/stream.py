"""A stream run from a terminal: its checks, its progress, its totals, and its end by a signal.

Modules that load torch or pandas are imported while Spark's JVM starts, which takes seconds.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING

from pyspark.errors import StreamingQueryException
from pyspark.sql import SparkSession

from embedstream.cli import console
from embedstream.cli.log import show_log
from embedstream.cli.session import StreamFailed, explain_errors, open_session_and_models
from embedstream.cli.signals import catch_reload_signal, catch_stop_signals
from embedstream.config.sections import StreamConfig
from embedstream.logs.events import Event, log_event
from embedstream.recovery.claim import HeldClaim, claim_stream
from embedstream.recovery.doctor import diagnose
from embedstream.spark.errors import describe_error
from embedstream.spark.session import open_session, warm_workers
from embedstream.stream.progress import Totals
from embedstream.stream.watching import StreamWatch, watch_stream
from embedstream_core.errors import SetupError

if TYPE_CHECKING:
    from embedstream.index.process import IndexProcess
    from embedstream.monitor.live import LiveStream
    from embedstream.stream.job import Stream, Until
    from embedstream.stream.preflight import Consent, PreflightResult
    from embedstream.stream.swap import SwapDesk

__all__ = ["check_stream", "examine_stream", "run_queries", "run_stream"]

_log = logging.getLogger(__name__)

_POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class _Signals:
    """What an operator may want of a running stream, and the configuration as its file is then."""

    stop: threading.Event
    reload: threading.Event
    reread: Callable[[], StreamConfig]


def check_stream(config: StreamConfig) -> bool:
    """Run every check and print its result; return whether all passed."""
    with show_log(config.log), open_session_and_models(config) as (spark, preparations):
        from embedstream.stream.preflight import check_start

        checked = check_start(spark, config, console.print_finding, preparations=preparations)
        return checked is not None


def examine_stream(config: StreamConfig) -> bool:
    """Print the problems of checkpoint, table and topics; return whether there are none."""
    session = open_session(config.spark, config.pipeline, config.locations)
    with show_log(config.log), console.show_status("starting Spark"), session as spark:
        passed = [console.print_finding(finding) for finding in diagnose(spark, config)]
        return all(passed)


def run_stream(
    config: StreamConfig,
    *,
    until: Until,
    reread: Callable[[], StreamConfig] | None = None,
    index_command: Sequence[str] = (),
    config_words: str = "CONFIG",
    **consents: bool,
) -> Totals:
    """Check, then run until stopped by SIGINT or SIGTERM, or until drained.

    `reread` returns the configuration as its file is then: at a SIGHUP the stream takes its
    encoders, unless there is no file. `index_command` follows the table where `index.follow` is
    set, see `IndexProcess`. `config_words` name the configuration in commands that are
    recommended to users.
    `consents` are the fields of `Consent`.

    Raises:
        SetupError: a check failed, or another driver runs; nothing was started.
        StreamFailed: the query ended by an error, a disk is full or cannot be written, or more
            rows failed than `guards` allows.
        ClaimLost: another driver has taken over.
    """
    from embedstream.monitor.connect import open_monitor

    lasting = until == "stopped"
    with (
        show_log(config.log),
        open_monitor(config, config_words=config_words, say=console.print_text) as live,
        open_session_and_models(config, lasting=lasting) as (spark, preparations),
        catch_stop_signals() as stop,
        catch_reload_signal() as reload,
    ):
        from embedstream.stream.preflight import Consent, check_start

        threading.Thread(target=_warm_workers, args=(spark,), daemon=True).start()
        consent = Consent(**consents)
        checked = check_start(
            spark, config, console.print_finding, consent, preparations=preparations
        )
        if stop.is_set():
            console.print_text("stopped before the stream was started")
            return Totals()
        if checked is None:
            raise SetupError("the stream was not started: fix the failed checks above")
        signals = _Signals(stop, reload, reread or (lambda: config))
        index = _prepare_index(config, index_command)
        with watch_stream(
            spark,
            config,
            replay=f"embedstream replay {config_words} --failures",
            observers=[console.print_micro_batch, live.add_batch],
            on_topics=live.set_offsets,
            is_watched=lambda: live.is_watched,
        ) as watch:
            return _run_after_checks(
                spark, config, checked, consent, signals, until, index, watch, live
            )


def _warm_workers(spark: SparkSession) -> None:
    # A failure costs only time; a session that is stopped early raises errors of many types.
    try:
        warm_workers(spark)
    except Exception:
        _log.info("the workers were not started ahead of time", exc_info=True)


def _prepare_index(config: StreamConfig, command: Sequence[str]) -> IndexProcess | None:
    """Return the index process of the stream, not started; None if the stream has none."""
    if not config.index.follow:
        return None
    if not command:
        raise SetupError("index.follow needs a configuration file: use `embedstream run`")
    from embedstream.index.process import IndexProcess

    return IndexProcess(
        command,
        table=config.table.path,
        stop_s=config.trigger.stop_timeout_s,
    )


def _run_after_checks(
    spark: SparkSession,
    config: StreamConfig,
    checked: PreflightResult,
    consent: Consent,
    signals: _Signals,
    until: Until,
    index: IndexProcess | None,
    watch: StreamWatch,
    live: LiveStream,
) -> Totals:
    from embedstream.monitor.connect import connect_stream
    from embedstream.recovery.resume import explain_failure, prepare_resumption, read_next
    from embedstream.stream.job import build_featurizer, list_ids
    from embedstream.stream.service import Service
    from embedstream.stream.swap import SwapDesk
    from embedstream.table.delta import create_table

    def explain(error: Exception) -> str | None:
        if not isinstance(error, StreamingQueryException):
            return None
        cause = f"the stream ended by an error: {describe_error(error)}"
        return explain_failure(spark, config) or cause

    locations = {"table.path": config.table.path, "checkpoint": config.checkpoint}
    with explain_errors(locations, explain):
        create_table(spark, config.table, model_ids=list_ids(checked.models))
        with claim_stream(spark, config) as claim:
            resumption = prepare_resumption(spark, config, checked.writers, consent)
            # A driver that was killed may have left the group behind the table.
            read = read_next(spark, config, resumption.writers)
            watch.put_read(read)
            running = resumption.config
            function = build_featurizer(spark, running, checked.models)
            desk = SwapDesk(
                spark,
                Service(running, checked.models, replace(function, tallies=watch.tallies)),
                claim=claim,
                given=config,
                reread=signals.reread,
                reload=signals.reload,
                until=until,
            )
            log_event(
                _log,
                Event.START,
                "running; Ctrl-C finishes the micro-batch in flight and stops",
                version=version("embedstream"),
                models=list_ids(checked.models),
                table=config.table.path,
                checkpoint=config.checkpoint,
                topics=sorted(resumption.topics),
            )
            watching = connect_stream(
                live,
                spark,
                resumption,
                read,
                desk=desk,
                claim=claim,
                index=index,
                stop=signals.stop,
            )
            with desk, index or nullcontext(), watching:
                run_queries(
                    spark,
                    config,
                    desk,
                    signals.stop,
                    claim,
                    is_refused=lambda: watch.guard.verdict is not None,
                    beat=live.beat,
                )
                if index is not None and until == "drained" and not signals.stop.is_set():
                    index.finish()
    watch.wait_for_last_report()
    totals = watch.listener.totals
    console.print_totals(totals, table=config.table.path, model_loads=desk.loads)
    if watch.guard.verdict is not None and not signals.stop.is_set():
        raise StreamFailed(watch.guard.verdict)
    return totals


def run_queries(
    spark: SparkSession,
    config: StreamConfig,
    desk: SwapDesk,
    stop: threading.Event,
    claim: HeldClaim,
    *,
    is_refused: Callable[[], bool] = lambda: False,
    beat: Callable[[], object] = lambda: None,
) -> None:
    """Run the stream to its end; call `beat` several times a second while it runs.

    When the table is altered while a micro-batch is written, Delta refuses the whole micro-batch:
    the stream is started again and repeats it. When other models are ready, they take over. Once
    `is_refused`, the micro-batch in flight is interrupted.
    """
    from embedstream.table.delta import check_table, find_conflict

    def is_over() -> bool:
        claim.verify()
        beat()
        return is_refused()

    stream = desk.start()
    while True:
        try:
            while stream.query.isActive and not stop.wait(_POLL_S) and not is_over():
                desk.watch(stream.query)
                if desk.prepared is not None:
                    stream = desk.switch(stream)
            _end(stream, stop, interrupt=is_refused(), timeout_s=config.trigger.stop_timeout_s)
            desk.watch(stream.query)
            return
        except StreamingQueryException as error:
            if find_conflict(error) != "altered":
                if not desk.can_go_back:
                    raise
                stream = desk.go_back(error)
                continue
        check_table(spark, config.table.path)
        then = "the next start repeats the micro-batch"
        if not stop.is_set():
            then = "the micro-batch in flight is repeated"
        text = f"the table was altered: {then}"
        log_event(_log, Event.RESTART, text, reason="table_altered", stopping=stop.is_set())
        if stop.is_set():
            return
        stream = desk.start()


def _end(stream: Stream, stop: threading.Event, *, interrupt: bool, timeout_s: float) -> None:
    """Stop the query if that was asked for; raise the error if it ended by one."""
    from embedstream.stream.job import stop_stream

    if interrupt:
        stop_stream(stream.query, timeout_s=0)
        return
    if not stop.is_set():
        stream.query.awaitTermination()
        return
    log = partial(log_event, _log, Event.STOPPING, timeout_s=timeout_s)
    log("stopping: the micro-batch in flight is being finished", interrupted=False)
    if stop_stream(stream.query, timeout_s=timeout_s) == "interrupted":
        log(f"it took longer than {timeout_s:g} s; the next start repeats it", interrupted=True)
