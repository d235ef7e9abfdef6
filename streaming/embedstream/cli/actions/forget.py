"""Deleting rows from a table's files from the command line, and saying what is left of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from pyspark.errors import UnsupportedOperationException
from pyspark.sql import SparkSession

from embedstream.cli import console
from embedstream.cli.log import show_log
from embedstream.cli.session import explain_errors, open_session_on_table
from embedstream.config.sections import BulkFilesConfig, StreamConfig
from embedstream.recovery.claim import claim_table
from embedstream.search.indexes import IndexReader, IndexUnusable
from embedstream.spark.errors import describe_error
from embedstream.table.address import TableAddress
from embedstream.table.catalog import find_address
from embedstream_core.errors import SetupError

if TYPE_CHECKING:
    from embedstream.table.forget import Forgetting, Reason
    from embedstream.table.leftovers import Leftovers

__all__ = ["Vacuum", "run_forget"]

# A table's own retention may be shorter than a writer takes from its first file to its commit.
_LONGEST_COMMIT = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Vacuum:
    """Delete old files too, except younger ones than `retain_hours`; None: as the table says."""

    retain_hours: int | None = None


def run_forget(
    config: StreamConfig | BulkFilesConfig,
    *,
    ids: Sequence[str] = (),
    older_than: datetime | None = None,
    vacuum: Vacuum | None = None,
    dry_run: bool = False,
) -> None:
    """Delete the rows that tombstones hide, those of some ids, and old ones; report what is left.

    Raises:
        SetupError: there is no table, it cannot be changed, or a driver writes to it; nothing was
            done.
        StreamFailed: an error ended it, or a disk is full or cannot be written.
    """

    def explain(error: Exception) -> str:
        if isinstance(error, UnsupportedOperationException):
            return (
                f"the catalog that maintains the table refuses a step: {describe_error(error)}; "
                "rows that were deleted stay deleted, and their files wait for the catalog's VACUUM"
            )
        return f"it ended by an error: {describe_error(error)}; re-run the same command"

    with (
        show_log(config.log),
        open_session_on_table(config) as (spark, config),
        explain_errors({"table.path": config.table.path}, explain),
    ):
        from embedstream.table.delta import check_table
        from embedstream.table.delta_log import read_snapshot
        from embedstream.table.forget import Forgetting, count_rows

        table = find_address(spark, config.table)
        if check_table(spark, table) is None:
            raise SetupError(f"there is no table at '{table}', so there is nothing to forget")
        asked = Forgetting(tuple(ids), older_than)
        if dry_run:
            planned = count_rows(spark, table, asked)
            console.print_text(f"would delete {_format_rows(planned)}")
        else:
            _delete(spark, table, config, asked, vacuum)
        _report_leftovers(spark, table.path)
        table_id = str(read_snapshot(spark, table.path).metadata().id())
    _report_copies(config, table_id)


def _delete(
    spark: SparkSession,
    table: TableAddress,
    config: StreamConfig | BulkFilesConfig,
    asked: Forgetting,
    vacuum: Vacuum | None,
) -> None:
    """Delete rows, and old files if that is asked, while no stream writes where one may not."""
    from embedstream.table import forget
    from embedstream.table.leftovers import read_retention

    endangers_writers = False
    if vacuum is not None:
        own = read_retention(spark, table.path)
        hours = vacuum.retain_hours
        retention = own if hours is None else timedelta(hours=hours)
        endangers_writers = retention < max(own, _LONGEST_COMMIT)
    with claim_table(
        spark,
        table.path,
        checkpoint=config.checkpoint if isinstance(config, StreamConfig) else "",
        when="always" if endangers_writers else "needed",
    ):
        planned = forget.count_rows(spark, table, asked)
        deleted = forget.delete_rows(spark, table, asked, planned)
        console.print_text(f"deleted {_format_rows(deleted)}")
        if vacuum is not None:
            forget.vacuum(spark, table, retain_hours=vacuum.retain_hours)
    if missed := forget.count_rows(spark, table, asked):
        rows = _format_rows(missed)
        console.print_text(f"{rows} came while this ran: run the command again")


def _format_rows(counts: Counter[Reason]) -> str:
    reasons: dict[Reason, str] = {
        "hidden": "hidden by tombstones",
        "id": "of the ids",
        "old": "older than asked",
    }
    parts = ", ".join(f"{counts[one]} {text}" for one, text in reasons.items() if counts[one])
    rows = console.format_count(counts.total(), "row")
    return f"{rows} ({parts})" if parts else f"{rows}: nothing to forget"


def _report_leftovers(spark: SparkSession, path: str) -> None:
    """Print what the table's folder holds of earlier versions, as it is now."""
    from embedstream.table.leftovers import find_leftovers

    left = find_leftovers(spark, path)
    if not left.files:
        console.print_text(
            f"files    none but those of the newest version, {left.version}: rows that it does not "
            "have are in no file of the table"
        )
    else:
        changes = f", {left.changes} of them of the change data feed" if left.changes else ""
        console.print_text(
            f"files    {left.files} ({left.bytes / 2**20:.1f} MiB{changes}) are not of the newest "
            f"version, {left.version}: deleted rows are still in them"
        )
        console.print_text(
            f"until    {left.until:%Y-%m-%d %H:%M} UTC; then VACUUM may delete all of them: "
            "`embedstream forget … --vacuum`, or earlier with --retain-hours"
        )
    console.print_text(f"versions {_format_versions(left)} can be read by time travel")


def _format_versions(left: Leftovers) -> str:
    # The ranges that matter most are the newest.
    shown = [f"{a}" if a == b else f"{a} to {b}" for a, b in left.readable[-3:]]
    earlier = sum(b - a + 1 for a, b in left.readable[:-3])
    return f"{f'{earlier} earlier ones, ' if earlier else ''}{', '.join(shown) or 'no earlier one'}"


def _report_copies(config: StreamConfig | BulkFilesConfig, table_id: str) -> None:
    """Print where else the rows' data may be."""
    if isinstance(config, StreamConfig):
        console.print_text(
            "Kafka    keeps the messages until its retention or its compaction deletes them"
        )
    console.print_text(f"index    {_describe_index(config, table_id)}")
    console.print_text(
        "log      _delta_log keeps the smallest and largest image_id, uri and hash of deleted "
        "files until delta.logRetentionDuration, 30 days by default"
    )


def _describe_index(config: StreamConfig | BulkFilesConfig, table_id: str) -> str:
    """Say which version of the table the index has."""
    with closing(IndexReader(config.index, table=config.table.path)) as reader:
        try:
            state = reader.read_state(table_id)
        except IndexUnusable as error:
            return error.reason or "there is none"
        return (
            f"{reader.address} has version {state.version} of the table; deleted rows leave it "
            "with `embedstream index`"
        )
