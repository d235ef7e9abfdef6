"""Work in chunks run from a terminal: replays, backfills, and batches of files."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from embedstream.bulk.selection import Kind, Selection
from embedstream.cli import console
from embedstream.cli.log import show_log
from embedstream.cli.session import explain_errors, open_session_and_models
from embedstream.cli.signals import catch_stop_signals
from embedstream.config.sections import BulkFilesConfig, StreamConfig
from embedstream.recovery.claim import claim_table
from embedstream.spark.errors import describe_error
from embedstream_core.errors import SetupError

if TYPE_CHECKING:
    from embedstream.bulk.chunks import Chunk
    from embedstream.worker.counts import CommitReport

__all__ = ["run_files", "run_replay"]

Part = TypeVar("Part")


def explain_chunk_error(error: Exception) -> str:
    """Say what ended the work, and how to resume it."""
    cause = describe_error(error)
    return f"the work ended by an error: {cause}; re-run the same command to resume"


def run_replay(
    config: StreamConfig, *, kind: Kind, selection: Selection, chunk_rows: int | None
) -> None:
    """Check, then embed the selected messages again, until all are done or a signal stops it.

    Raises:
        SetupError: a check failed, or there is no table, or a driver runs where the storage allows
            only one; nothing was done.
        StreamFailed: the work ended by an error, or a disk is full or cannot be written.
    """
    with (
        show_log(config.log),
        open_session_and_models(config) as (spark, config, preparations),
        catch_stop_signals() as stop,
    ):
        from embedstream.bulk.replay import Replay
        from embedstream.stream.preflight import Consent, check_start

        consent = Consent(model_change=kind == "backfill")
        checked = check_start(
            spark,
            config,
            console.print_finding,
            consent,
            purpose="replay",
            preparations=preparations,
        )
        if checked is None:
            raise SetupError(f"the {kind} was not started: fix the failed checks above")
        table = config.table.path
        if not checked.table_exists:
            raise SetupError(f"there is no table at '{table}' yet; start the stream first")
        with (
            explain_errors({"table.path": config.table.path}, explain_chunk_error),
            claim_table(spark, table, checkpoint=config.checkpoint),
        ):
            replay = Replay(
                spark, config, checked.models, checked.topics, kind=kind, selection=selection
            )
            plan = replay.plan(chunk_rows=chunk_rows)
            if plan.lost:
                console.print_text(
                    f"{plan.lost} lost: Kafka has deleted them, and their rows hold no reference"
                )
            reports = _run_chunks(plan.chunks, replay.run, stop, noun="message")
            if len(reports) == len(plan.chunks):
                replay.finish()


def run_files(config: BulkFilesConfig, source: str, *, chunk_rows: int | None) -> bool:
    """Embed the files at a path that have no row yet, until all are done or a signal stops it.

    Returns False if there were files to embed and every one of them failed.

    Raises:
        SetupError: the encoder, the path or the table cannot be used, or a driver writes to the
            table where the storage allows only one; nothing was done.
        StreamFailed: the work ended by an error, or a disk is full or cannot be written.
    """
    session = open_session_and_models(config, source)
    with show_log(config.log), session as (spark, config, (prepare,)), catch_stop_signals() as stop:
        from embedstream.bulk.files import Files

        with explain_errors({"table.path": config.table.path}, explain_chunk_error):
            files = Files(spark, config, prepare(), source)
            card = files.model.card
            console.print_text(f"{card.model_id}, {card.dimension} floats")
            if files.hidden:
                console.print_text(
                    f"{files.hidden} hidden left out: files and folders whose names begin with a "
                    "dot, and what Spark and Delta write next to data"
                )
            with claim_table(spark, config.table.path):
                chunks = files.plan(chunk_rows=chunk_rows)
                reports = _run_chunks(chunks, files.run, stop, noun="file")
        console.print_text(f"table: {config.table.path}")
    return not reports or any(report.embeddings for report in reports)


def _run_chunks(
    chunks: Sequence[Chunk[Part]],
    run: Callable[[Chunk[Part]], CommitReport],
    stop: threading.Event,
    *,
    noun: str,
) -> list[CommitReport]:
    """Run one chunk after the other and print the progress; return fewer reports if stopped."""
    rows = sum(chunk.rows for chunk in chunks)
    in_chunks = console.format_count(len(chunks), "chunk")
    console.print_text(f"{console.format_count(rows, noun)} to embed, in {in_chunks}")
    reports: list[CommitReport] = []
    done, started = 0, time.monotonic()
    for number, chunk in enumerate(chunks, 1):
        if stop.is_set():
            console.print_text(
                f"stopped; {rows - done} are left: re-run the same command to resume"
            )
            return reports
        reports.append(run(chunk))
        done += chunk.rows
        left_s = (time.monotonic() - started) / done * (rows - done)
        console.print_chunk(reports[-1], number=number, of=len(chunks), left_s=left_s)
    failures = sum((report.failures for report in reports), Counter[str]())
    console.print_text(
        f"{console.format_count(done, noun)} embedded, {console.format_failures(failures)}"
    )
    return reports
