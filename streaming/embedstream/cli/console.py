"""Everything that the command prints."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.progress import track
from rich.status import Status
from rich.text import Text

if TYPE_CHECKING:
    from embedstream.stream.preflight import Finding
    from embedstream.stream.progress import MicroBatchReport, Totals
    from embedstream.worker.counts import CommitReport
    from embedstream_core.models.encoders.listing import Listing

__all__ = [
    "format_count",
    "format_failures",
    "print_chunk",
    "print_encoders",
    "print_error",
    "print_finding",
    "print_json",
    "print_micro_batch",
    "print_rows",
    "print_styled",
    "print_text",
    "print_totals",
    "show_status",
    "track_sending",
]

_console = Console(highlight=False, soft_wrap=True)

Value = TypeVar("Value")


def print_text(text: object) -> None:
    """Print text as it is, for people and programs."""
    typer.echo(text)


def print_styled(text: str) -> None:
    """Print text with rich's markup."""
    _console.print(text)


def print_error(text: object) -> None:
    """Print text to the standard error."""
    typer.echo(text, err=True)


def show_status(text: str) -> Status:
    """Return a context manager that shows a spinner."""
    return _console.status(text)


def track_sending(values: Sequence[Value]) -> Iterable[Value]:
    """Yield the values, and show the progress on the standard error."""
    return track(values, description="sending", console=Console(stderr=True))


def print_finding(finding: Finding) -> bool:
    """Print the result of a check; return whether it passed."""
    mark = ("ok  ", "green") if finding.passed else ("FAIL", "red")
    subject = (f" {finding.subject:<11} ", "bold")
    _console.print(Text.assemble(mark, subject, finding.detail))
    return finding.passed


def print_micro_batch(report: MicroBatchReport) -> None:
    """Print a line for a committed micro-batch."""
    line = f"batch {report.batch_id:<4}  {_format_report(report)}"
    if report.deleted:
        line += f"  {report.deleted} deleted"
    if report.tombstones:
        line += f"  {report.tombstones} null values"
    if report.lag:
        line += f"  {report.lag} behind"
    if report.margin is not None:
        line += f"  retention margin: {report.margin} messages"
    print_text(line)


def print_chunk(report: CommitReport, *, number: int, of: int, left_s: float) -> None:
    """Print a line for a committed chunk, with an estimate of the time that is left."""
    left = f"{left_s / 60:.0f} min" if left_s >= 90 else f"{left_s:.0f} s"
    print_text(f"chunk {number}/{of}  {_format_report(report)}  about {left} left")


def print_totals(totals: Totals, *, table: str, model_loads: int) -> None:
    """Print the sums over a stream's micro-batches."""
    print_styled(
        f"[bold]{totals.rows} rows[/] in {format_count(totals.batches, 'micro-batch', 'es')}, "
        f"{totals.rows_per_s:.1f} rows/s: {totals.embeddings} embeddings, "
        f"{format_failures(totals.failures)}"
        + (f", {totals.deleted} deleted" if totals.deleted else "")
    )
    loads = format_count(model_loads, "time")
    print_text(f"each worker loads a model once; together they loaded {loads}")
    print_text(f"table: {table}")


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
