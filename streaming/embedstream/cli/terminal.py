"""A stream run from a terminal: its checks, its progress, its totals, and its end by signal."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Protocol, TypeVar

from py4j.protocol import Py4JJavaError
from pyspark import SparkFiles
from pyspark.errors import PySparkException, StreamingQueryException
from pyspark.sql import SparkSession
from pyspark.sql.streaming.query import StreamingQuery
from rich.console import Console

from embedstream.config.sections import BulkFilesConfig, StreamConfig
from embedstream.kafka.source import check_topics
from embedstream.spark.errors import describe_error
from embedstream.spark.session import open_session, warm_workers
from embedstream.stream.progress import BatchReport, Margin, ProgressListener, Totals
from embedstream.worker.counts import OutcomeCounts
from embedstream_core.errors import EmbedstreamError, SetupError

if TYPE_CHECKING:
    from embedstream.bulk.chunks import ChunkReport
    from embedstream.bulk.replay import Kind, Selection
    from embedstream.recovery.claim import HeldClaim
    from embedstream.stream.job import Until
    from embedstream.stream.preflight import Checked, Consent, Finding
    from embedstream_core.models.prepare import PreparedModel

__all__ = [
    "StreamFailed",
    "check_stream",
    "chunks_explained",
    "examine_stream",
    "run_files",
    "run_replay",
    "run_stream",
]

_log = logging.getLogger(__name__)

console = Console(highlight=False, soft_wrap=True)

_POLL_S = 0.2
# The listener hears of the last micro-batch a moment after the query has ended.
_LISTENER_TIMEOUT_S = 5.0


class StreamFailed(EmbedstreamError):
    """A stream, a replay or a batch ended by an error; the same command goes on."""


def check_stream(config: StreamConfig) -> bool:
    """Run every check and print what it found; whether all passed."""
    with _session(config) as (spark, prepare):
        from embedstream.stream.preflight import check_start

        return check_start(spark, config, _print_finding, preparation=prepare) is not None


def examine_stream(config: StreamConfig) -> bool:
    """Print what is wrong with checkpoint, table and topics; whether nothing is."""
    session = open_session(config.spark, config.pipeline, config.locations)
    with console.status("starting Spark"), session as spark:
        from embedstream.recovery.doctor import diagnose

        # A list first: every finding is printed.
        return all([*map(_print_finding, diagnose(spark, config))])


def run_stream(
    config: StreamConfig,
    *,
    until: Until,
    allow_model_change: bool = False,
    adopt: bool = False,
    accept_loss: bool = False,
) -> Totals:
    """Check, then run until stopped by SIGINT or SIGTERM, or until drained.

    Raises:
        SetupError: a check failed, or another driver is there; nothing was started.
        StreamFailed: the query ended by an error, or a disk is full or cannot be written.
        ClaimLost: another driver has taken over.
    """
    lasting = until == "stopped"
    with _session(config, lasting=lasting) as (spark, prepare), _stop_signals() as stop:
        from embedstream.stream.preflight import Consent, check_start

        threading.Thread(target=_warm_workers, args=(spark,), daemon=True).start()
        consent = Consent(model_change=allow_model_change, adopt=adopt, loss=accept_loss)
        checked = check_start(spark, config, _print_finding, consent, preparation=prepare)
        if stop.is_set():
            console.print("stopped before the stream was started")
            return Totals()
        if checked is None:
            raise SetupError("the stream was not started: fix the failed checks above")
        return _run_checked(spark, config, checked, consent, stop, until=until)


def _run_checked(
    spark: SparkSession,
    config: StreamConfig,
    checked: Checked,
    consent: Consent,
    stop: threading.Event,
    *,
    until: Until,
) -> Totals:
    from embedstream.recovery.claim import claimed
    from embedstream.recovery.resume import settle
    from embedstream.stream.job import make_table

    margin = Margin(lambda: check_topics(spark, config.kafka))
    counts = OutcomeCounts.start(spark)
    listener = ProgressListener(_print_batch, counts.take, margin)
    spark.streams.addListener(listener)
    with _explained(spark, config):
        make_table(spark, config, checked.model)
        with claimed(spark, config) as claim:
            settled = settle(
                spark, config, checked.writers, adopt=consent.adopt, accept_loss=consent.loss
            )
            for loss in settled.lost:
                console.print(f"lost: {loss}", markup=False)
            loads = _run_claimed(
                spark, settled.config, checked.model, stop, claim, until=until, counts=counts
            )
    _await_listener(listener)
    _print_totals(listener.totals, config.table.path, model_loads=loads)
    return listener.totals


def _run_claimed(
    spark: SparkSession,
    config: StreamConfig,
    model: PreparedModel,
    stop: threading.Event,
    claim: HeldClaim,
    *,
    until: Until,
    counts: OutcomeCounts,
) -> int:
    """Start the stream and follow it to its end; how often the model was loaded.

    When the table is altered while a micro-batch is written, Delta refuses the whole micro-batch:
    the stream is started again and repeats it.
    """
    from embedstream.stream.job import start_stream
    from embedstream.table.delta import check_table, was_altered

    console.print("[bold]running[/]; Ctrl-C finishes the micro-batch in flight and stops")
    loads = 0
    while True:
        stream = start_stream(spark, config, model, until=until, counts=counts)
        try:
            _follow(stream.query, stop, claim, timeout_s=config.trigger.stop_timeout_s)
            return loads + stream.model.loads
        except StreamingQueryException as error:
            if not was_altered(error):
                raise
        loads += stream.model.loads
        check_table(spark, config.table.path)
        console.print("the table was altered: the micro-batch in flight is repeated")


@contextmanager
def _explained(spark: SparkSession, config: StreamConfig) -> Iterator[None]:
    """Tell what ends the stream in a sentence; Kafka is asked whether it still has what is due."""
    from embedstream.recovery.resume import explain_failure

    try:
        yield
    except (PySparkException, Py4JJavaError, OSError) as error:
        told = _disk_trouble(error, config, checkpoint=config.checkpoint)
        if not isinstance(error, StreamingQueryException):
            if told is None:
                raise
            raise StreamFailed(told) from error
        told = told or explain_failure(spark, config)
        cause = describe_error(error)
        raise StreamFailed(told or f"the stream ended by an error: {cause}") from error


@contextmanager
def chunks_explained(config: StreamConfig | BulkFilesConfig) -> Iterator[None]:
    """Tell what ends a work in chunks in a sentence."""
    try:
        yield
    except (PySparkException, Py4JJavaError, OSError) as error:
        told = f"it ended by an error: {describe_error(error)}; the same command does what is left"
        raise StreamFailed(_disk_trouble(error, config) or told) from error


def _disk_trouble(
    error: Exception, config: StreamConfig | BulkFilesConfig, **others: str
) -> str | None:
    from embedstream.spark.local_disk import disk_trouble

    scratch = SparkFiles.getRootDirectory()
    locations = {"table.path": config.table.path, **others, "spark.local.dir": scratch}
    return disk_trouble(error, locations)


def run_replay(
    config: StreamConfig, *, kind: Kind, selection: Selection, chunk_rows: int | None
) -> None:
    """Check, then embed again what is chosen, until it is done or stopped by a signal.

    Raises:
        SetupError: a check failed, or there is no table, or a driver runs where the storage bears
            only one; nothing was done.
        StreamFailed: it ended by an error, or a disk is full or cannot be written.
    """
    with _session(config) as (spark, prepare), _stop_signals() as stop:
        from embedstream.bulk.replay import Replay
        from embedstream.recovery.claim import table_claimed
        from embedstream.stream.preflight import Consent, check_start

        checked = check_start(
            spark,
            config,
            _print_finding,
            Consent(model_change=kind == "backfill"),
            beside_a_driver=True,
            preparation=prepare,
        )
        if checked is None:
            raise SetupError(f"the {kind} was not started: fix the failed checks above")
        if checked.table_rows is None:
            raise SetupError(f"there is no table at '{config.table.path}' yet")
        claim = table_claimed(spark, config.table.path, checkpoint=config.checkpoint)
        with chunks_explained(config), claim:
            replay = Replay(
                spark, config, checked.model, checked.topics, kind=kind, selection=selection
            )
            plan = replay.plan(chunk_rows=chunk_rows)
            if plan.gone:
                console.print(
                    f"{plan.gone} cannot be had: Kafka has deleted them, and their rows hold no "
                    "reference"
                )
            if _work_off(plan.chunks, replay.run, stop, noun="message").is_complete:
                replay.finish()


def run_files(config: BulkFilesConfig, source: str, *, chunk_rows: int | None) -> bool:
    """Embed the files at a path that have no row yet, until it is done or stopped by a signal.

    Returns False where there were files to embed, and every one of them failed.

    Raises:
        SetupError: the encoder, the path or the table cannot be used, or a driver writes to the
            table where the storage bears only one; nothing was done.
        StreamFailed: it ended by an error, or a disk is full or cannot be written.
    """
    with _session(config, source) as (spark, prepare), _stop_signals() as stop:
        from embedstream.bulk.files import Files
        from embedstream.recovery.claim import table_claimed

        with chunks_explained(config):
            files = Files(spark, config, prepare(), source)
            card = files.model.card
            console.print(f"{card.model_id}, {card.dimension} floats", markup=False)
            if files.hidden:
                console.print(
                    f"{files.hidden} hidden left out: files and folders whose names begin with a "
                    "dot, and what Spark and Delta write beside data"
                )
            with table_claimed(spark, config.table.path):
                chunks = files.plan(chunk_rows=chunk_rows)
                done = _work_off(chunks, files.run, stop, noun="file")
        console.print(f"table: {config.table.path}", markup=False)
    return not done.rows or done.failures < done.rows


class _Chunk(Protocol):
    @property
    def rows(self) -> int: ...


_AChunk = TypeVar("_AChunk", bound=_Chunk)


@dataclass(frozen=True, slots=True)
class _Done:
    """What was done of a plan: `is_complete` where no signal stopped it."""

    rows: int
    failures: int
    is_complete: bool


def _work_off(
    chunks: Sequence[_AChunk],
    run: Callable[[_AChunk], ChunkReport],
    stop: threading.Event,
    *,
    noun: str,
) -> _Done:
    """Do one chunk after the other and print the progress."""
    rows = sum(chunk.rows for chunk in chunks)
    console.print(f"{_counted(rows, noun, 's')} to embed, in {_counted(len(chunks), 'chunk', 's')}")
    done, failures, started = 0, Counter[str](), time.monotonic()
    for number, chunk in enumerate(chunks, 1):
        if stop.is_set():
            console.print(f"stopped; {rows - done} are left for the same command")
            return _Done(done, failures.total(), is_complete=False)
        report = run(chunk)
        done += chunk.rows
        failures += report.failures
        left_s = (time.monotonic() - started) / done * (rows - done)
        parts = [
            f"chunk {number}/{len(chunks)}",
            f"{report.rows:>5} rows",
            f"{report.embeddings:>5} embeddings",
            f"{report.failures.total():>3} failures",
            f"{report.rows / report.duration_s:>6.1f} rows/s",
            f"about {_duration(left_s)} left",
        ]
        console.print("  ".join(parts), markup=False)
    console.print(
        f"[bold]{_counted(done, noun, 's')}[/] embedded, {failures.total()} failures"
        f"{_reasons(failures)}"
    )
    return _Done(done, failures.total(), is_complete=True)


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


@contextmanager
def _session(
    config: StreamConfig | BulkFilesConfig, *further: str, lasting: bool = False
) -> Iterator[tuple[SparkSession, Callable[[], PreparedModel]]]:
    """Open the session while the model is being prepared: each takes a core for seconds.

    It can read and write the configuration's locations, and further ones.
    """
    locations = [*config.locations, *further]
    with ThreadPoolExecutor(1) as other, ExitStack() as stack:
        with console.status("starting Spark"):
            preparing = other.submit(_prepare, config)
            session = open_session(config.spark, config.pipeline, locations, lasting=lasting)
            spark = stack.enter_context(session)
        yield spark, preparing.result


def _prepare(config: StreamConfig | BulkFilesConfig) -> PreparedModel:
    from embedstream.worker.model import prepare

    return prepare(config.encoder)


def _warm_workers(spark: SparkSession) -> None:
    # Only time is at stake; a session that is stopped in between raises errors of many types.
    try:
        warm_workers(spark)
    except Exception:
        _log.info("the workers were not started ahead of time", exc_info=True)


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
        from embedstream.stream.job import stop_stream

        console.print("stopping: the micro-batch in flight is being finished")
        if stop_stream(query, timeout_s=timeout_s) == "interrupted":
            console.print(f"it took longer than {timeout_s:g} s; the next start repeats it")
        return
    query.awaitTermination()


def _await_listener(listener: ProgressListener) -> None:
    deadline = time.monotonic() + _LISTENER_TIMEOUT_S
    while not listener.ended and time.monotonic() < deadline:
        time.sleep(0.02)


def _print_finding(finding: Finding) -> bool:
    """Return whether the check passed."""
    mark = "[green]ok[/]  " if finding.passed else "[red]FAIL[/]"
    console.print(f"{mark} [bold]{finding.subject:<11}[/] ", end="")
    console.print(finding.detail, markup=False)
    return finding.passed


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
    if report.margin is not None:
        parts.append(f"{report.margin} after the oldest")
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
