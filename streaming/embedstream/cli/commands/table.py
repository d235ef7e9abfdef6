"""The commands on a table: its rows, its columns, and what follows it."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

import typer

from embedstream.cli.options import (
    ConfigPath,
    Continuous,
    OfStream,
    OutputForm,
    Overrides,
    TableFolder,
    TableName,
    parse_age,
    parse_position,
    read_config,
    read_table_config,
    require_local,
)
from embedstream_core.errors import SetupError

__all__ = ["app"]

app = typer.Typer()


@app.command()
def search(
    file: Annotated[
        Path | None,
        typer.Argument(
            callback=require_local, help="The query: an image, an audio file or a text file."
        ),
    ] = None,
    text: Annotated[str | None, typer.Option(help="The query, in words.")] = None,
    like: Annotated[
        str | None,
        typer.Option(
            metavar="TOPIC-PARTITION-OFFSET", help="The query is this row, such as images-0-17."
        ),
    ] = None,
    table: Annotated[str | None, typer.Option(help="The Delta table.")] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            callback=require_local,
            help="The stream's configuration: its table, index, models and Kafka.",
        ),
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many rows.")] = 10,
    where: Annotated[
        str | None,
        typer.Option(
            metavar="CONDITION",
            help="Only rows that satisfy it, such as \"attributes['shop'] = 'a' AND "
            "timestamp > '2026-01-31'\".",
        ),
    ] = None,
    form: Annotated[
        OutputForm, typer.Option("--format", help="json is one object per line; sheet needs --out.")
    ] = OutputForm.TABLE,
    out: Annotated[
        Path | None,
        typer.Option(callback=require_local, help="Write a contact sheet, a .png or .jpg file."),
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Compare every row, not an approximate index.")
    ] = False,
    model_id: Annotated[
        str | None, typer.Option(help="The model whose rows to search; by default the table's.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="The file or folder that the model came from, if it did.")
    ] = None,
    bootstrap_servers: Annotated[
        str | None, typer.Option(help="Kafka, for the sheet's images that are not in files.")
    ] = None,
) -> None:
    """List the rows nearest to a file's content, to words, or to another row."""
    given = [one for one in (file, text, like) if one is not None]
    if len(given) != 1:
        raise SetupError("give one query: a file, --text, or --like")
    if table is None and config is None:
        raise SetupError("give --table, or --config, which names the table")
    if form is OutputForm.SHEET and out is None:
        raise SetupError("--format sheet needs --out, the file of the contact sheet")
    settings = None if config is None else read_config(config, None)
    from embedstream.cli.actions.search import search_table

    search_table(
        given[0] if like is None else parse_position(like),
        table,
        config=settings,
        k=k,
        where=where,
        form=form,
        out=out,
        exact=exact,
        model_id=model_id,
        weights=weights,
        servers=bootstrap_servers,
    )


@app.command()
def index(
    config: Annotated[
        Path | None, typer.Argument(callback=require_local, help="A stream's YAML file.")
    ] = None,
    table: TableFolder = None,
    table_name: TableName = None,
    overrides: Overrides = None,
    continuous: Continuous = False,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Read the whole table into a new index.")
    ] = False,
    of_stream: OfStream = False,
) -> None:
    """Bring the vector index in step with the table; keep it so with --continuous."""
    settings = read_table_config(config, table, table_name, overrides)
    from embedstream.cli.actions.followers.index import run_index

    until: Literal["current", "stopped"] = "stopped" if continuous else "current"
    run_index(settings, until=until, rebuild=rebuild, of_stream=of_stream)


@app.command()
def publish(
    config: ConfigPath,
    overrides: Overrides = None,
    continuous: Continuous = False,
    again: Annotated[
        bool, typer.Option("--again", help="Publish all rows of the table first.")
    ] = False,
    of_stream: OfStream = False,
) -> None:
    """Publish the table's outcomes to publish.topic; keep doing so with --continuous."""
    settings = read_config(config, overrides)
    from embedstream.cli.actions.followers.publish import run_publish

    until: Literal["current", "stopped"] = "stopped" if continuous else "current"
    run_publish(settings, until=until, again=again, of_stream=of_stream)


@app.command()
def forget(
    config: Annotated[
        Path | None,
        typer.Argument(callback=require_local, help="A stream's YAML file; rows of its table go."),
    ] = None,
    table: TableFolder = None,
    table_name: TableName = None,
    overrides: Overrides = None,
    ids: Annotated[
        list[str] | None,
        typer.Option("--id", metavar="ID", help="All rows of this image_id too; repeatable."),
    ] = None,
    older_than: Annotated[
        datetime | None,
        typer.Option(
            parser=parse_age,
            metavar="AGE|TIME",
            help="Rows of older messages too: 90d, 12h, 2026-01-31T12:00.",
        ),
    ] = None,
    vacuum: Annotated[
        bool, typer.Option("--vacuum", help="Delete old files too, after the table's retention.")
    ] = False,
    retain_hours: Annotated[
        int | None,
        typer.Option(min=0, help="With --vacuum: this retention instead; no reader may need more."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count and report.")] = False,
) -> None:
    """Delete from the table's files the rows that tombstones hide, and others; report what is left.

    Run it again if it was interrupted.
    """
    if retain_hours is not None and not vacuum:
        raise typer.BadParameter("--retain-hours needs --vacuum")
    settings = read_table_config(config, table, table_name, overrides)
    from embedstream.cli.actions.forget import Vacuum, run_forget

    run_forget(
        settings,
        ids=ids or (),
        older_than=older_than,
        vacuum=Vacuum(retain_hours) if vacuum else None,
        dry_run=dry_run,
    )


@app.command()
def upgrade(
    config: Annotated[
        Path | None,
        typer.Argument(callback=require_local, help="A stream's YAML file; its table is altered."),
    ] = None,
    table: TableFolder = None,
    table_name: TableName = None,
    overrides: Overrides = None,
) -> None:
    """Alter a table of an earlier version to the current columns; its rows stay."""
    settings = read_table_config(config, table, table_name, overrides)
    from embedstream.cli.actions.upgrade import run_upgrade

    run_upgrade(settings)
