"""The commands that embed in chunks: messages again, by another model, or files."""

from __future__ import annotations

from typing import Annotated

import typer

from embedstream.bulk.selection import OffsetRange, Selection
from embedstream.cli.options import (
    ChunkRows,
    ConfigPath,
    Overrides,
    Since,
    Until,
    build_table_tree,
    parse_offsets,
    read_config,
)
from embedstream_core.errors import Code

__all__ = ["app"]

app = typer.Typer()


@app.command()
def replay(
    config: ConfigPath,
    overrides: Overrides = None,
    offsets: Annotated[
        list[OffsetRange] | None,
        typer.Option(
            parser=parse_offsets,
            metavar="TOPIC:PARTITION:FIRST-LAST",
            help="These messages; repeatable.",
        ),
    ] = None,
    since: Since = None,
    until: Until = None,
    failures: Annotated[bool, typer.Option("--failures", help="Only rows that failed.")] = False,
    code: Annotated[
        list[Code] | None,
        typer.Option(metavar="CODE", help="Only failures of this code; repeatable."),
    ] = None,
    chunk_rows: ChunkRows = None,
) -> None:
    """Embed messages of the table again and replace their rows."""
    if Code.DELETED in (code or ()):
        raise typer.BadParameter(f"'{Code.DELETED}' is no failure: nothing is to be embedded again")
    settings = read_config(config, overrides)
    selection = Selection(tuple(offsets or ()), since, until, failures, tuple(code or ()))
    from embedstream.cli.actions.bulk import run_replay

    run_replay(settings, kind="replay", selection=selection, chunk_rows=chunk_rows)


@app.command()
def backfill(
    config: ConfigPath,
    encoder: Annotated[str, typer.Option(help="The other encoder's name, as in encoder.name.")],
    weights: Annotated[
        str | None,
        typer.Option(help="Its weights, as in encoder.weights; published ones by default."),
    ] = None,
    sha256: Annotated[
        str | None, typer.Option(help="The sha256 that its weights must have.")
    ] = None,
    overrides: Overrides = None,
    since: Since = None,
    until: Until = None,
    chunk_rows: ChunkRows = None,
) -> None:
    """Embed the table's messages with another model too, adding rows."""
    # The file's weights are those of the stream's model.
    other = ["weights=default", "sha256=null", f"name={encoder}"]
    other = ["encoders=null", *(f"encoder.{one}" for one in other)]
    settings = read_config(config, [*other, *(overrides or ())])
    given = {"weights": weights, "sha256": sha256}
    update = {name: value for name, value in given.items() if value is not None}
    settings = settings.model_copy(update={"encoder": settings.encoder.model_copy(update=update)})
    from embedstream.cli.actions.bulk import run_replay

    selection = Selection(since=since, until=until)
    run_replay(settings, kind="backfill", selection=selection, chunk_rows=chunk_rows)


@app.command()
def batch(
    source: Annotated[
        str, typer.Option("--from", help="A file, a folder and all below it, a pattern, or a URI.")
    ],
    table: Annotated[
        str | None, typer.Option(help="The Delta table; created if there is none.")
    ] = None,
    table_name: Annotated[
        str | None,
        typer.Option(
            metavar="CATALOG.SCHEMA.TABLE",
            help="Its name in a catalog, as table.name; alone, or with --table.",
        ),
    ] = None,
    encoder: Annotated[str, typer.Option(help="The encoder, as in encoder.name.")] = "resnet50",
    weights: Annotated[str, typer.Option(help="Its weights, as in encoder.weights.")] = "default",
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="A key of the sections encoder, references, decode, pipeline, table and spark.",
        ),
    ] = None,
    chunk_rows: ChunkRows = None,
) -> None:
    """Embed the files at a path; run it again to embed the rest and new files.

    The exit code is 1 if every file that was to be embedded failed.
    """
    from embedstream.config.load import load_files_config

    if not (given := build_table_tree(table, table_name)):
        raise typer.BadParameter("give --table or --table-name")
    tree = {"encoder": {"name": encoder, "weights": weights}, "table": given}
    settings = load_files_config(tree, overrides or ())
    settings.spark.check_location("--from", source)
    from embedstream.cli.actions.bulk import run_files

    raise typer.Exit(0 if run_files(settings, source, chunk_rows=chunk_rows) else 1)
