"""A stream run from a terminal: its checks, its progress, its totals, and its end by a signal.

Modules that load torch or pandas are imported while Spark's JVM starts, which takes seconds.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING

from pyspark.errors import StreamingQueryException
from pyspark.sql import SparkSession

from embedstream.cli import console
from embedstream.cli.actions.followers.processes import Followers, prepare_followers
from embedstream.cli.log import show_log
from embedstream.cli.session import (
    StreamFailed,
    explain_errors,
    open_session_and_models,
    open_session_on_table,
)
from embedstream.cli.signals import catch_reload_signal, catch_stop_signals
from embedstream.config.sections import StreamConfig
from embedstream.logs.events import Event, log_event
from embedstream.recovery.claim import HeldClaim, claim_stream
from embedstream.recovery.doctor import diagnose
from embedstream.spark.errors import describe_error, log_errors
from embedstream.spark.session import start_workers, warm_workers
from embedstream.stream.reports import Totals
from embedstream.stream.watching import StreamWatch, watch_stream
from embedstream_core.errors import SetupError

if TYPE_CHECKING:
    from embedstream.monitor.live import LiveStream
    from embedstream.stream.job import Until
    from embedstream.stream.preflight import Consent, PreflightResult
    from embedstream.stream.swap import SwapDesk
    from embedstream.worker.messages import Featurizer

__all__ = ["check_stream", "examine_stream", "run_stream"]

_log = logging.getLogger(__name__)


def check_stream(config: StreamConfig) -> bool:
    """Run every check and print its result; return whether all passed."""
    with show_log(config.log), open_session_and_models(config) as (spark, config, preparations):
        from embedstream.stream.preflight import check_start

        checked = check_start(spark, config, console.print_finding, preparations=preparations)
        return checked is not None


def examine_stream(config: StreamConfig) -> bool:
    """Print the problems of checkpoint, table and topics; return whether there are none."""
    with show_log(config.log), open_session_on_table(config) as (spark, config):
        passed = [console.print_finding(finding) for finding in diagnose(spark, config)]
        return all(passed)


def run_stream(
    config: StreamConfig,
    *,
    until: Until,
    reread: Callable[[], StreamConfig] | None = None,
    build_follower: Callable[[str], Sequence[str]] | None = None,
    config_words: str = "CONFIG",
    **consents: bool,
) -> Totals:
    """Check, then run until stopped by SIGINT or SIGTERM, or until drained.

    `reread` returns the configuration as its file is then: at a SIGHUP the stream takes its
    encoders, unless there is no file. `build_follower` returns the command `index` or `publish` for
    a `FollowerProcess`, which runs where the configuration asks for it. `config_words` name the
    configuration in commands that are recommended to users. `consents` are the fields of `Consent`.

    Raises:
        SetupError: a check failed, or another driver runs; nothing was started.
        StreamFailed: the query ended by an error, a disk is full or cannot be written, or more
            rows failed than `guards` allows.
        ClaimLost: another driver has taken over.
    """
    from embedstream.monitor.connect import open_monitor

    given = config
    session = open_session_and_models(config, lasting=until == "stopped")
    monitor = partial(open_monitor, config_words=config_words, say=console.print_text)
    with show_log(config.log), ExitStack() as opened:
        # Where only a catalog knows the table's folder, the monitor waits for Spark to ask it.
        early = opened.enter_context(monitor(given)) if given.table.path else None
        spark, config, preparations = opened.enter_context(session)
        live = early or opened.enter_context(monitor(config))
        stop = opened.enter_context(catch_stop_signals())
        reload = opened.enter_context(catch_reload_signal())
        from embedstream.stream.preflight import Consent, check_start

        starting = _begin(partial(start_workers, spark))
        consent = Consent(**consents)
        checked = check_start(
            spark, config, console.print_finding, consent, preparations=preparations
        )
        if stop.is_set():
            console.print_text("stopped before the stream was started")
            return Totals()
        if checked is None:
            raise SetupError("the stream was not started: fix the failed checks above")
        stream = _CheckedStream(
            spark=spark,
            config=config,
            given=given,
            checked=checked,
            consent=consent,
            until=until,
            stop=stop,
            reload=reload,
            reread=reread or (lambda: given),
            followers=prepare_followers(config, build_follower),
            live=live,
            starting=starting,
        )
        return stream.run(replay=f"embedstream replay {config_words} --failures")


def _begin(
    warm_up: Callable[[], object], *, after: threading.Thread | None = None
) -> threading.Thread:
    """Warm up the workers in a thread, which first waits for an earlier one."""

    def run() -> None:
        if after is not None:
            after.join()
        # A failure costs only time; a session that is stopped early raises errors of many types.
        with log_errors(_log, logging.INFO, "the workers were not started ahead of time"):
            warm_up()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


@dataclass(frozen=True, slots=True, kw_only=True)
class _CheckedStream:
    """A stream whose checks have passed, and what it runs with.

    `given` is the configuration as the user gave it; `config` has the folder of its table.
    `stop` and `reload` are set by signals; `reread` returns the configuration as its file is then.
    `starting` is the thread that starts the workers.
    """

    spark: SparkSession
    config: StreamConfig
    given: StreamConfig
    checked: PreflightResult
    consent: Consent
    until: Until
    stop: threading.Event
    reload: threading.Event
    reread: Callable[[], StreamConfig]
    followers: Followers
    live: LiveStream
    starting: threading.Thread

    def run(self, *, replay: str) -> Totals:
        """Run it to its end; `replay` is the command that embeds failures again."""
        from embedstream.stream.job import build_featurizer, list_ids
        from embedstream.table.delta import create_table

        spark, config, live = self.spark, self.config, self.live
        locations = {"table.path": config.table.path, "checkpoint": config.checkpoint}
        with watch_stream(
            spark,
            config,
            replay=replay,
            observers=[console.print_micro_batch, live.add_batch],
            on_read=live.set_read,
            on_topics=live.set_offsets,
            is_watched=lambda: live.is_watched,
        ) as watch:
            with explain_errors(locations, self._explain):
                function = build_featurizer(spark, config, self.checked.models)
                # The workers load the models while the table is created and claimed. Tasks that
                # wait for the workers' imports would keep the table's own jobs waiting.
                load = function.embedder.load
                _begin(partial(warm_workers, spark, load), after=self.starting)
                create_table(spark, config.table, model_ids=list_ids(self.checked.models))
                with claim_stream(spark, config) as claim:
                    desk = self._run_claimed(claim, watch, function)
            watch.wait_for_last_report()
            totals = watch.listener.totals
            console.print_totals(totals, table=config.table.path, model_loads=desk.loads)
            if watch.guard.verdict is not None and not self.stop.is_set():
                raise StreamFailed(watch.guard.verdict)
            return totals

    def _run_claimed(self, claim: HeldClaim, watch: StreamWatch, function: Featurizer) -> SwapDesk:
        """Run the queries; return the desk, which has counted how often models were loaded."""
        from embedstream.monitor.connect import connect_stream
        from embedstream.recovery.resume import prepare_resumption, read_next
        from embedstream.stream.queries import run_queries
        from embedstream.stream.service import Service
        from embedstream.stream.swap import SwapDesk

        spark, config, stop = self.spark, self.config, self.stop
        followers = self.followers
        resumption = prepare_resumption(spark, config, self.checked.writers, self.consent)
        # A driver that was killed may have left the group behind the table.
        read = read_next(spark, config, resumption.writers)
        watch.put_read(read)
        desk = SwapDesk(
            spark,
            Service(
                resumption.config, self.checked.models, replace(function, tallies=watch.tallies)
            ),
            claim=claim,
            given=self.given,
            reread=self.reread,
            reload=self.reload,
            until=self.until,
        )
        self._log_start(sorted(resumption.topics))
        watching = connect_stream(
            self.live,
            spark,
            resumption,
            read,
            desk=desk,
            claim=claim,
            index=followers.index,
            publish=followers.publish,
            stop=stop,
        )

        def is_refused() -> bool:
            return watch.guard.verdict is not None

        with desk, followers.running(), watching:
            run_queries(
                spark, config, desk, stop, claim, is_refused=is_refused, beat=self.live.beat
            )
            if self.until == "drained" and not stop.is_set():
                followers.finish()
        return desk

    def _log_start(self, topics: list[str]) -> None:
        from embedstream.stream.job import list_ids

        log_event(
            _log,
            Event.START,
            "running; Ctrl-C finishes the micro-batch in flight and stops",
            version=version("embedstream"),
            models=list_ids(self.checked.models),
            table=self.config.table.path,
            checkpoint=self.config.checkpoint,
            topics=topics,
        )

    def _explain(self, error: Exception) -> str | None:
        """Return why the query ended; None for an error of another kind."""
        from embedstream.recovery.resume import explain_failure

        if not isinstance(error, StreamingQueryException):
            return None
        cause = f"the stream ended by an error: {describe_error(error)}"
        return explain_failure(self.spark, self.config) or cause
