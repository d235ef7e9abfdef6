"""A stream run from a terminal: its checks, its progress, its totals, and its end by signal."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from types import FrameType
from typing import TYPE_CHECKING

from pyspark.errors import StreamingQueryException
from pyspark.sql import SparkSession
from pyspark.sql.streaming.query import StreamingQuery
from rich.console import Console

from embedstream.config import Config
from embedstream.progress import BatchReport, ProgressListener, Totals
from embedstream.session import open_session, warm_workers
from embedstream_core.errors import EmbedstreamError, SetupError

if TYPE_CHECKING:
    from embedstream.check import Finding, Preflight
    from embedstream.claim import HeldClaim
    from embedstream.job import Until

__all__ = ["StreamFailed", "check_stream", "examine_stream", "run_stream"]

console = Console(highlight=False, soft_wrap=True)

_POLL_S = 0.2
# The listener hears of the last micro-batch a moment after the query has ended.
_LISTENER_TIMEOUT_S = 5.0


class StreamFailed(EmbedstreamError):
    """The query ended by an error; started again, it resumes from its checkpoint."""


def check_stream(config: Config) -> bool:
    """Run every check and print what it found; whether all passed."""
    with _session(config) as spark:
        from embedstream.check import Preflight

        return _print_findings(Preflight(spark, config).findings())


def examine_stream(config: Config) -> bool:
    """Print what is wrong with checkpoint, table and topics; whether nothing is."""
    with console.status("starting Spark"), open_session(config.spark, config.pipeline) as spark:
        from embedstream.doctor import diagnose

        return _print_findings(diagnose(spark, config))


def run_stream(
    config: Config,
    *,
    until: Until,
    allow_model_change: bool = False,
    adopt: bool = False,
    accept_loss: bool = False,
) -> Totals:
    """Check, then run until stopped by SIGINT or SIGTERM, or until drained.

    Raises:
        SetupError: a check failed, or another driver is there; nothing was started.
        StreamFailed: the query ended by an error.
        ClaimLost: another driver has taken over.
    """
    with _session(config) as spark, _stop_signals() as stop:
        from embedstream.check import Preflight

        threading.Thread(target=_warm_workers, args=(spark,), daemon=True).start()
        preflight = Preflight(spark, config, allow_model_change, adopt, accept_loss)
        passed = _print_findings(preflight.findings())
        if stop.is_set():
            console.print("stopped before the stream was started")
            return Totals()
        if not passed:
            raise SetupError("the stream was not started: mend what is marked above")
        return _run_checked(preflight, stop, until=until)


def _run_checked(preflight: Preflight, stop: threading.Event, *, until: Until) -> Totals:
    from embedstream.claim import claimed
    from embedstream.job import make_table, start_stream
    from embedstream.resume import settle

    spark, config = preflight.spark, preflight.config
    model, resumption = preflight.checked()
    listener = ProgressListener(_print_batch)
    spark.streams.addListener(listener)
    make_table(spark, config, model)
    with claimed(spark, config) as claim:
        settled = settle(
            spark, config, resumption, adopt=preflight.adopt, accept_loss=preflight.accept_loss
        )
        for loss in settled.lost:
            console.print(f"lost: {loss}", markup=False)
        stream = start_stream(spark, settled.config, model, until=until)
        console.print("[bold]running[/]; Ctrl-C finishes the micro-batch in flight and stops")
        try:
            _follow(stream.query, stop, claim, timeout_s=config.trigger.stop_timeout_s)
        except StreamingQueryException as error:
            raise _failure(spark, config, error) from error
    _await_listener(listener)
    _print_totals(listener.totals, config.table.path, model_loads=stream.model.loads.value)
    return listener.totals


@contextmanager
def _session(config: Config) -> Iterator[SparkSession]:
    """Open the session while torch is being imported: each takes seconds, on a core of its own."""
    importing = threading.Thread(target=import_module, args=("embedstream.check",))
    with ExitStack() as stack:
        with console.status("starting Spark"):
            importing.start()
            spark = stack.enter_context(open_session(config.spark, config.pipeline))
            importing.join()
        yield spark


def _warm_workers(spark: SparkSession) -> None:
    # Only the time is at stake; a session that is stopped meanwhile raises whatever it likes.
    with suppress(Exception):
        warm_workers(spark)


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set; a second one acts as it did before."""
    stop = threading.Event()
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def request_stop(number: int, frame: FrameType | None) -> None:
        stop.set()
        restore()

    for number in previous:
        signal.signal(number, request_stop)
    try:
        yield stop
    finally:
        restore()


def _follow(
    query: StreamingQuery, stop: threading.Event, claim: HeldClaim, *, timeout_s: float
) -> None:
    while query.isActive and not stop.wait(_POLL_S):
        claim.verify()
    if stop.is_set():
        from embedstream.job import stop_stream

        console.print("stopping: the micro-batch in flight is being finished")
        if stop_stream(query, timeout_s=timeout_s) == "interrupted":
            console.print(f"it took longer than {timeout_s:g} s; the next start repeats it")
        return
    query.awaitTermination()


def _failure(spark: SparkSession, config: Config, error: Exception) -> StreamFailed:
    """The error in a sentence; Kafka is asked whether it still has what was to be read."""
    from embedstream.resume import explain_failure

    missing = explain_failure(spark, config)
    return StreamFailed(missing or f"the stream ended by an error: {_cause(error)}")


def _cause(error: Exception) -> str:
    """The last line that names an error: the Python worker's own, where it was there."""
    lines = [line.strip() for line in str(error).splitlines()]
    named = [line for line in lines if "Error: " in line or "Exception: " in line]
    return named[-1] if named else lines[0]


def _await_listener(listener: ProgressListener) -> None:
    deadline = time.monotonic() + _LISTENER_TIMEOUT_S
    while not listener.ended and time.monotonic() < deadline:
        time.sleep(0.02)


def _print_findings(findings: Iterable[Finding]) -> bool:
    passed = True
    for finding in findings:
        mark = "[green]ok[/]  " if finding.passed else "[red]FAIL[/]"
        console.print(f"{mark} [bold]{finding.subject:<11}[/] ", end="")
        console.print(finding.detail, markup=False)
        passed = passed and finding.passed
    return passed


def _print_batch(report: BatchReport) -> None:
    rate = report.rows / report.duration_s
    parts = [
        f"batch {report.batch_id:<4}",
        f"{report.rows:>5} rows",
        f"{report.embeddings:>5} embeddings",
        f"{report.failures.total():>3} failures",
        f"{rate:>6.1f} rows/s",
    ]
    if report.tombstones:
        parts.append(f"{report.tombstones} null values")
    if report.lag:
        parts.append(f"{report.lag} behind")
    console.print("  ".join(parts), markup=False)


def _print_totals(totals: Totals, table: str, *, model_loads: int) -> None:
    console.print(
        f"[bold]{totals.rows} rows[/] in {_counted(totals.batches, 'micro-batch', 'es')}, "
        f"{totals.rows_per_s:.1f} rows/s: {totals.embeddings} embeddings, "
        f"{totals.failures.total()} failures{_reasons(totals.failures)}"
    )
    loaded = _counted(model_loads, "time", "s")
    console.print(f"the model was loaded {loaded}, once by each worker")
    console.print(f"table: {table}", markup=False)


def _counted(count: int, noun: str, plural: str) -> str:
    return f"{count} {noun}{'' if count == 1 else plural}"


def _reasons(failures: Counter[str]) -> str:
    counted = ", ".join(f"{count} {code}" for code, count in failures.most_common())
    return f" ({counted})" if counted else ""
