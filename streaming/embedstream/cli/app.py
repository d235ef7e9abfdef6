"""The `embedstream` command. Heavy imports wait until a command needs them."""

from __future__ import annotations

import sys
from datetime import datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

import typer

from embedstream.bulk.selection import OffsetRange, Selection
from embedstream.cli import console
from embedstream.cli.options import (
    BrokerFolder,
    ChunkRows,
    ConfigPath,
    Listen,
    OutputForm,
    Overrides,
    Since,
    TableFolder,
    TableName,
    Until,
    add_listen,
    build_follow_command,
    build_table_tree,
    parse_age,
    parse_offsets,
    parse_position,
    read_config,
    read_table_config,
    require_local,
    write_config_words,
)
from embedstream_core.errors import Code, EmbedstreamError, SetupError

__all__ = ["app", "main"]

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
broker_app = typer.Typer(help="The embedded Kafka broker, for development.", no_args_is_help=True)
app.add_typer(broker_app, name="broker")

DEFAULT_BROKER_FOLDER = Path(".embedstream/broker")


def main() -> None:
    """Run the command; print an error of embedstream as a sentence and exit with code 2.

    Any other error is printed with its traceback, and the code is 1.
    """
    try:
        app()
    except EmbedstreamError as error:
        console.print_failure(error)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        console.print_unexpected(error)
        sys.exit(1)


def print_version(wanted: bool) -> None:
    """Print the installed version and end the command, if wanted."""
    if wanted:
        console.print_text(f"embedstream {version('embedstream')}")
        raise typer.Exit


@app.callback()
def describe(
    _: Annotated[
        bool,
        typer.Option("--version", callback=print_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Turn a Kafka topic of images, texts or audio into a Delta table of embeddings."""


@app.command()
def run(
    config: ConfigPath,
    overrides: Overrides = None,
    available_now: Annotated[
        bool, typer.Option("--available-now", help="Stop when all present messages are read.")
    ] = False,
    allow_model_change: Annotated[
        bool, typer.Option("--allow-model-change", help="Accept a table of another model.")
    ] = False,
    adopt: Annotated[
        bool, typer.Option("--adopt", help="Without a checkpoint, continue after the table's rows.")
    ] = False,
    accept_loss: Annotated[
        bool, typer.Option("--accept-loss", help="Record what Kafka deleted unread, and continue.")
    ] = False,
    listen: Listen = None,
) -> None:
    """Run the stream; Ctrl-C and SIGTERM finish the micro-batch in flight first.

    SIGHUP reads the configuration again and takes its encoders, as `embedstream swap` does.
    """
    overrides = add_listen(overrides, listen)
    settings = read_config(config, overrides)
    from embedstream.cli.stream import run_stream

    run_stream(
        settings,
        reread=partial(read_config, config, overrides),
        build_follower=lambda name: build_follow_command(name, config, overrides),
        config_words=write_config_words(config, overrides),
        until="drained" if available_now else "stopped",
        model_change=allow_model_change,
        adopt=adopt,
        loss=accept_loss,
    )


@app.command()
def page(config: ConfigPath, overrides: Overrides = None, listen: Listen = None) -> None:
    """Serve the live page over the table, without a running stream, until Ctrl-C.

    The address is --listen, else monitor.listen, else 127.0.0.1:9464.
    """
    settings = read_config(config, add_listen(overrides, listen))
    from embedstream.cli.page import serve_page

    serve_page(settings, config_words=write_config_words(config, overrides))


@app.command()
def swap(config: ConfigPath, overrides: Overrides = None) -> None:
    """Give the running stream the encoders of the changed configuration, without a restart.

    The exit code is 1 if the stream refused them; it then works on with its present ones.
    """
    settings = read_config(config, overrides)
    from embedstream.cli.swap import request_swap

    raise typer.Exit(0 if request_swap(settings) else 1)


@app.command()
def check(config: ConfigPath, overrides: Overrides = None) -> None:
    """Check everything that can be checked before a start; write nothing."""
    settings = read_config(config, overrides)
    from embedstream.cli.stream import check_stream

    raise typer.Exit(0 if check_stream(settings) else 1)


@app.command()
def doctor(config: ConfigPath, overrides: Overrides = None) -> None:
    """Find problems in checkpoint, table and topics and print their fixes; write nothing."""
    settings = read_config(config, overrides)
    from embedstream.cli.stream import examine_stream

    raise typer.Exit(0 if examine_stream(settings) else 1)


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
    from embedstream.cli.upgrade import run_upgrade

    run_upgrade(settings)


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
    from embedstream.cli.forget import Vacuum, run_forget

    run_forget(
        settings,
        ids=ids or (),
        older_than=older_than,
        vacuum=Vacuum(retain_hours) if vacuum else None,
        dry_run=dry_run,
    )


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
    from embedstream.cli.bulk import run_replay

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
    from embedstream.cli.bulk import run_replay

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
    from embedstream.cli.bulk import run_files

    raise typer.Exit(0 if run_files(settings, source, chunk_rows=chunk_rows) else 1)


@app.command()
def produce(
    paths: Annotated[
        list[Path], typer.Argument(callback=require_local, help="Files, or folders of them.")
    ],
    topic: Annotated[str, typer.Option(help="The topic.")],
    bootstrap_servers: Annotated[
        str | None, typer.Option(help="The brokers; by default the embedded one.")
    ] = None,
    as_reference: Annotated[
        bool,
        typer.Option("--as-reference", help="Send references; lines are sent as they are."),
    ] = False,
    partitions: Annotated[
        int | None, typer.Option(help="Partitions of the topic if it is created.")
    ] = None,
    client: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="A setting of kafka-python, in YAML: security_protocol=SSL; secrets as env:NAME.",
        ),
    ] = None,
    folder: BrokerFolder = DEFAULT_BROKER_FOLDER,
) -> None:
    """Send files to a topic, acknowledged by every in-sync replica.

    A message for each image, audio file (.wav, .flac, .ogg, .opus, .mp3) and text (.txt), and for
    each line of a .jsonl file.
    """
    from embedstream.cli.topics import find_embedded_servers, read_client_settings, send_files

    servers = bootstrap_servers or find_embedded_servers(folder)
    settings = read_client_settings(client or ())
    all_sent = send_files(
        paths,
        topic,
        servers=servers,
        form="reference" if as_reference else "bytes",
        partitions=partitions,
        settings=settings,
    )
    raise typer.Exit(0 if all_sent else 1)


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
    from embedstream.cli.search import search_table

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
    continuous: Annotated[
        bool, typer.Option("--continuous", help="Follow the table until Ctrl-C or SIGTERM.")
    ] = False,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Read the whole table into a new index.")
    ] = False,
    of_stream: Annotated[bool, typer.Option("--of-stream", hidden=True)] = False,
) -> None:
    """Bring the vector index in step with the table; keep it so with --continuous."""
    settings = read_table_config(config, table, table_name, overrides)
    from embedstream.cli.index import run_index

    until: Literal["current", "stopped"] = "stopped" if continuous else "current"
    run_index(settings, until=until, rebuild=rebuild, of_stream=of_stream)


@app.command()
def publish(
    config: ConfigPath,
    overrides: Overrides = None,
    continuous: Annotated[
        bool, typer.Option("--continuous", help="Follow the table until Ctrl-C or SIGTERM.")
    ] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Publish all rows of the table first.")
    ] = False,
    of_stream: Annotated[bool, typer.Option("--of-stream", hidden=True)] = False,
) -> None:
    """Publish the table's outcomes to publish.topic; keep doing so with --continuous."""
    settings = read_config(config, overrides)
    from embedstream.cli.publish import run_publish

    until: Literal["current", "stopped"] = "stopped" if continuous else "current"
    run_publish(settings, until=until, again=again, of_stream=of_stream)


@app.command()
def encoders() -> None:
    """List the encoders: modality, floats, license, and whether their weights are here."""
    from embedstream_core.models.encoders.listing import describe_encoders

    with console.show_status("reading the encoders"):
        listings = list(describe_encoders())
    console.print_encoders(listings)


@app.command()
def jars(
    folder: Annotated[
        Path | None, typer.Option(callback=require_local, help="Where to put them.")
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="spark, s3 or broker; may be repeated. spark-4.1 and s3-4.1 are for that Spark, "
            "whichever PySpark is installed.",
        ),
    ] = None,
    class_archive: Annotated[
        bool,
        typer.Option("--class-archive", help="Archive Spark's classes too: it starts sooner."),
    ] = False,
) -> None:
    """Fetch and verify the pinned jars, and print the --jars line for spark-submit."""
    from embedstream.spark.jars import fetch_jars, find_jars_folder

    folder = folder or find_jars_folder()
    paths = fetch_jars(sets or ["spark"], folder)
    if class_archive:
        from embedstream.spark.class_archive import build_class_archive

        with console.show_status("archiving Spark's classes"):
            build_class_archive(folder)
    console.print_text(f"--jars {','.join(map(str, paths))}")


@broker_app.command("start")
def start(
    folder: BrokerFolder = DEFAULT_BROKER_FOLDER,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="The port; 0 chooses a free one.")
    ] = 0,
) -> None:
    """Start the broker in the background and print its address."""
    from embedstream.kafka.dev_broker import start_broker

    console.print_text(start_broker(folder, port=port).bootstrap_servers)


@broker_app.command("stop")
def stop(folder: BrokerFolder = DEFAULT_BROKER_FOLDER) -> None:
    """Stop the broker; its data stays."""
    from embedstream.kafka.dev_broker import stop_broker

    console.print_text("stopped" if stop_broker(folder) else f"no broker runs in {folder}")
