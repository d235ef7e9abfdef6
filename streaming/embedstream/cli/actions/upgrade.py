"""Upgrading a table from the command line."""

from __future__ import annotations

from embedstream.cli import console
from embedstream.cli.log import show_log
from embedstream.cli.session import explain_errors, open_session_on_table
from embedstream.config.sections import BulkFilesConfig, StreamConfig
from embedstream.recovery.claim import claim_table
from embedstream.spark.errors import describe_error
from embedstream.table.catalog import find_address

__all__ = ["run_upgrade"]


def run_upgrade(config: StreamConfig | BulkFilesConfig) -> None:
    """Alter a table of an earlier version; do nothing if it has the current columns already.

    Raises:
        SetupError: there is no such table, or a driver writes to it; nothing was done.
        StreamFailed: an error ended it, or a disk is full or cannot be written; the table is as it
            was.
    """

    def explain(error: Exception) -> str:
        return f"the table was not altered: {describe_error(error)}"

    checkpoint = config.checkpoint if isinstance(config, StreamConfig) else ""
    with (
        show_log(config.log),
        open_session_on_table(config) as (spark, config),
        explain_errors({"table.path": config.table.path}, explain),
    ):
        from embedstream.table.upgrade import needs_upgrade, upgrade_table

        table = find_address(spark, config.table)
        if not needs_upgrade(spark, table):
            console.print_text(f"the table '{table}' has the current columns already")
            return
        with claim_table(spark, table.path, checkpoint=checkpoint, when="always"):
            rows = upgrade_table(spark, table)
        console.print_text(
            f"{console.format_count(rows, 'row')} of '{table}' have the column media now, in place "
            "of width and height"
        )
