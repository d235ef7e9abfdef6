"""Everything that the command prints."""

from __future__ import annotations

import io
import json
import logging
import re
import shutil
import sys
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.progress import track
from rich.status import Status
from rich.text import Text

from embedstream.logs.events import Event, log_event
from embedstream_core.redaction import redact_prose

if TYPE_CHECKING:
    from embedstream.stream.preflight import Finding
    from embedstream.stream.reports import MicroBatchReport, Totals
    from embedstream.worker.counts import CommitReport
    from embedstream_core.models.encoders.listing import Listing

__all__ = [
    "format_count",
    "format_failures",
    "note_failure",
    "print_chunk",
    "print_encoders",
    "print_error",
    "print_event",
    "print_failure",
    "print_finding",
    "print_json",
    "print_line",
    "print_lines_as",
    "print_micro_batch",
    "print_rows",
    "print_text",
    "print_totals",
    "print_unexpected",
    "show_status",
    "track_sending",
]

_log = logging.getLogger(__name__)

_console = Console(highlight=False, soft_wrap=True)
_no_console = Console(file=io.StringIO())

_format: Literal["text", "json"] | None = None
"""None: there is no log that prints events."""

_noted: BaseException | None = None

# What the lines of events begin with in bold.
_BOLD = {
    Event.START: re.compile("running"),
    Event.STOP: re.compile("[0-9]+ rows"),
    Event.LINE: re.compile(r"[0-9]+ \w+(?= embedded, )"),
}

Value = TypeVar("Value")


@contextmanager
def print_lines_as(form: Literal["text", "json"]) -> Iterator[None]:
    """Leave the printing of lines to the log's handler, in one of its formats."""
    global _format
    former, _format = _format, form
    try:
        yield
    finally:
        _format = former


def print_text(text: object) -> None:
    """Print text as it is, for people and programs; while there is a log, as its event."""
    if _format is None:
        print_line(text)
    else:
        log_event(_log, Event.LINE, str(text))


def print_line(text: object) -> None:
    """Print text as it is, whatever the format of the log."""
    typer.echo(text)


def print_error(text: object) -> None:
    """Print text to the standard error."""
    typer.echo(text, err=True)


def note_failure(error: BaseException) -> bool:
    """Note that an error was logged; return False if it was noted before."""
    global _noted
    is_new, _noted = error is not _noted, error
    return is_new


def print_failure(error: BaseException) -> None:
    """Print the error that ended a command to the standard error, unless the log has it."""
    if error is not _noted:
        print_error(redact_prose(f"embedstream: {error}"))


def print_unexpected(error: Exception) -> None:
    """Print the traceback of an error to the standard error, unless the log has it."""
    if error is not _noted:
        print_error(redact_prose("".join(traceback.format_exception(error))).rstrip())


def print_event(event: str, text: str, fields: Mapping[str, Any]) -> None:
    """Print the line of an event for people, some of them with colours."""
    if event == Event.FINDING:
        _console.print(_style_finding(fields, text))
    elif (pattern := _BOLD.get(Event(event))) and (start := pattern.match(text)):
        line = Text(text)
        line.stylize("bold", 0, start.end())
        _console.print(line)
    else:
        print_line(text)


def _style_finding(fields: Mapping[str, Any], text: str) -> Text:
    line = Text(text)
    line.stylize("green" if fields["passed"] else "red", 0, 4)
    line.stylize("bold", 4, 18)
    return line


def show_status(text: str) -> Status:
    """Return a context manager that shows a spinner; within a JSON log it shows nothing."""
    return (_no_console if _format == "json" else _console).status(text)


def track_sending(values: Sequence[Value]) -> Iterable[Value]:
    """Yield the values, and show the progress on the standard error."""
    return track(values, description="sending", console=Console(stderr=True))


def print_finding(finding: Finding) -> bool:
    """Log the result of a check; return whether it passed."""
    level = logging.INFO if finding.passed else logging.ERROR
    mark = "ok  " if finding.passed else "FAIL"
    log_event(
        _log,
        Event.FINDING,
        f"{mark} {finding.subject:<11} {finding.detail}",
        level=level,
        subject=finding.subject,
        detail=finding.detail,
        passed=finding.passed,
    )
    return finding.passed


def print_micro_batch(report: MicroBatchReport) -> None:
    """Log a committed micro-batch."""
    line = f"batch {report.batch_id:<4}  {_format_report(report)}"
    if report.deleted:
        line += f"  {report.deleted} deleted"
    if report.tombstones:
        line += f"  {report.tombstones} null values"
    if report.lag:
        line += f"  {report.lag} behind"
    if report.margin is not None:
        line += f"  retention margin: {report.margin} messages"
    log_event(
        _log,
        Event.MICRO_BATCH,
        line,
        batch_id=report.batch_id,
        messages=report.messages,
        null_values=report.tombstones,
        cache_hits=report.cache_hits,
        duration_s=report.duration_s,
        stage_seconds=dict(report.stage_seconds),
        lag=report.lag,
        margin=report.margin,
        **_count_rows(report),
    )


def print_chunk(report: CommitReport, *, number: int, of: int, left_s: float) -> None:
    """Log a committed chunk, with an estimate of the time that is left."""
    left = f"{left_s / 60:.0f} min" if left_s >= 90 else f"{left_s:.0f} s"
    log_event(
        _log,
        Event.CHUNK,
        f"chunk {number}/{of}  {_format_report(report)}  about {left} left",
        number=number,
        of=of,
        duration_s=report.duration_s,
        left_s=left_s,
        **_count_rows(report),
    )


def print_totals(totals: Totals, *, table: str, model_loads: int) -> None:
    """Log the end of a stream, with the sums over its micro-batches."""
    loads = format_count(model_loads, "time")
    log_event(
        _log,
        Event.STOP,
        f"{totals.rows} rows in {format_count(totals.batches, 'micro-batch', 'es')}, "
        f"{totals.rows_per_s:.1f} rows/s: {totals.embeddings} embeddings, "
        f"{format_failures(totals.failures)}"
        f"{f', {totals.deleted} deleted' if totals.deleted else ''}\n"
        f"each worker loads a model once; together they loaded {loads}\n"
        f"table: {table}",
        micro_batches=totals.batches,
        null_values=totals.tombstones,
        busy_s=totals.busy_s,
        model_loads=model_loads,
        table=table,
        **_count_rows(totals),
    )


def _count_rows(counts: CommitReport | Totals) -> dict[str, Any]:
    return {
        "rows": counts.rows,
        "embeddings": counts.embeddings,
        "failures": dict(counts.failures),
        "deleted": counts.deleted,
    }


def print_encoders(listings: Sequence[Listing]) -> None:
    """Print a line for each encoder, in columns, and how to install the extras that are missing."""
    rows = [("name", "modality", "floats", "license", "weights")]
    missing: set[str] = set()
    for one in listings:
        modalities = "any" if len(one.modalities) == 3 else " and ".join(one.modalities)
        dimension = str(one.dimension or "")
        where = f"needs extra {one.missing_extra}" if one.missing_extra else one.weights
        rows.append((one.name, modalities, dimension, one.license, where))
        missing.add(one.missing_extra)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = zip(row, widths, strict=True)
        print_text("  ".join(f"{cell:{width}}" for cell, width in cells).rstrip())
    if extras := ",".join(sorted(missing - {""})):
        print_text(f"extras that are missing here: pip install 'embedstream[{extras}]'")


def print_json(row: Mapping[str, Any]) -> None:
    """Print an object on one line."""
    print_text(json.dumps(row, ensure_ascii=False, default=str))


def print_rows(names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print texts in columns; in a terminal, each line fits into its width.

    The first column is of numbers. Of the last one, and of one in between that is long, the end is
    shown; a program that reads the output gets all of it.
    """
    table = [names, *([_escape(cell) for cell in row] for row in rows)]
    widths = [max(map(cell_len, column)) for column in zip(*table, strict=True)]
    if sys.stdout.isatty():
        room = shutil.get_terminal_size().columns - 2 * (len(widths) - 1)
        widths[1:-1] = [min(width, room // len(widths)) for width in widths[1:-1]]
        widths[-1] = min(widths[-1], max(1, room - sum(widths[:-1])))
    for first, *others in table:
        cells = map(_fit, others, widths[1:])
        print_text("  ".join([f"{first:>{widths[0]}}", *cells]).rstrip())


def _escape(text: str) -> str:
    """Return one line that leaves the terminal as it is, whatever the text."""
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in text
    )


def _fit(text: str, width: int) -> str:
    """Return a text of a width in cells: padded, or only its end."""
    if cell_len(text) > width:
        while text and cell_len(text) >= width:
            text = text[1:]
        text = f"…{text}"
    return text + " " * (width - cell_len(text))


def format_count(count: int, noun: str, plural: str = "s") -> str:
    """Return a number with its noun, such as `2 chunks`."""
    return f"{count} {noun}{'' if count == 1 else plural}"


def format_failures(failures: Counter[str]) -> str:
    """Return the number of failures, and of each code, the most frequent first."""
    codes = ", ".join(f"{count} {code}" for code, count in failures.most_common())
    return f"{failures.total()} failures{f' ({codes})' if codes else ''}"


def _format_report(report: CommitReport) -> str:
    return (
        f"{report.rows:>5} rows  {report.embeddings:>5} embeddings  "
        f"{report.failures.total():>3} failures  {report.rows / report.duration_s:>6.1f} rows/s"
    )
