"""The commands for what a stream needs: messages, a broker, encoders, jars."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from embedstream.cli import console
from embedstream.cli.options import BrokerFolder, require_local

__all__ = ["app"]

app = typer.Typer()
broker_app = typer.Typer(help="The embedded Kafka broker, for development.", no_args_is_help=True)
app.add_typer(broker_app, name="broker")

DEFAULT_BROKER_FOLDER = Path(".embedstream/broker")


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
    from embedstream.cli.actions.topics import (
        find_embedded_servers,
        read_client_settings,
        send_files,
    )

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
        from embedstream.stream.rehearsal import build_class_archive

        with console.show_status("archiving the JVM's classes"):
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
