"""The `embedstream` command. Heavy imports wait until a command needs them."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedstream_core.errors import EmbedstreamError, SetupError

if TYPE_CHECKING:
    from embedstream.bulk.replay import OffsetRange, Selection
    from embedstream.config.sections import StreamConfig
    from embedstream.index.search import Neighbour

__all__ = ["app", "main"]

app = typer.Typer(
    help="Turn a Kafka topic of images into a Delta table of embeddings.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
broker_app = typer.Typer(help="The embedded Kafka broker, for development.", no_args_is_help=True)
app.add_typer(broker_app, name="broker")

ConfigPath = Annotated[Path, typer.Argument(help="A YAML file, such as conf/local.yaml.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key: --set kafka.subscribe=cats."),
]
BrokerFolder = Annotated[Path, typer.Option(help="The broker's folder: its data and its log.")]
ClientSettings = Annotated[
    list[str] | None,
    typer.Option(
        "--client",
        metavar="NAME=VALUE",
        help="A setting of kafka-python, in YAML: security_protocol=SSL; secrets as env:NAME.",
    ),
]

DEFAULT_BROKER_FOLDER = Path(".embedstream/broker")


def main() -> None:
    """Run the command; an error of ours is printed as a sentence, with exit code 2."""
    try:
        app()
    except EmbedstreamError as error:
        print(f"embedstream: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


@app.command()
def run(
    config: ConfigPath,
    overrides: Overrides = None,
    available_now: Annotated[
        bool, typer.Option("--available-now", help="Do what the topics hold now, then stop.")
    ] = False,
    allow_model_change: Annotated[
        bool, typer.Option("--allow-model-change", help="Go on with another model's table.")
    ] = False,
    adopt: Annotated[
        bool, typer.Option("--adopt", help="Without a checkpoint, go on after the table's rows.")
    ] = False,
    accept_loss: Annotated[
        bool, typer.Option("--accept-loss", help="Note what Kafka deleted unread, and go on.")
    ] = False,
) -> None:
    """Run the stream; Ctrl-C and SIGTERM finish the micro-batch in flight first."""
    settings = _load(config, overrides)
    from embedstream.cli.terminal import run_stream

    run_stream(
        settings,
        until="drained" if available_now else "stopped",
        allow_model_change=allow_model_change,
        adopt=adopt,
        accept_loss=accept_loss,
    )


@app.command()
def check(config: ConfigPath, overrides: Overrides = None) -> None:
    """Check all that can be checked before a start: nothing is written."""
    settings = _load(config, overrides)
    from embedstream.cli.terminal import check_stream

    if not check_stream(settings):
        raise typer.Exit(1)


@app.command()
def doctor(config: ConfigPath, overrides: Overrides = None) -> None:
    """Say what is wrong with checkpoint, table and topics, and the mend: nothing is written."""
    settings = _load(config, overrides)
    from embedstream.cli.terminal import examine_stream

    if not examine_stream(settings):
        raise typer.Exit(1)


ChunkRows = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="About so many rows in one commit; by default, 1,024 for each core, and 65,536 for "
        "each GPU where there are some.",
    ),
]
OnlyFrom = Annotated[
    str | None, typer.Option("--since", metavar="TIME", help="Messages from this time on.")
]
OnlyUntil = Annotated[
    str | None, typer.Option("--until", metavar="TIME", help="Messages before this time.")
]


@app.command()
def replay(
    config: ConfigPath,
    overrides: Overrides = None,
    offsets: Annotated[
        list[str] | None,
        typer.Option(metavar="TOPIC:PARTITION:FIRST-LAST", help="These messages; repeatable."),
    ] = None,
    since: OnlyFrom = None,
    until: OnlyUntil = None,
    failures: Annotated[bool, typer.Option("--failures", help="Only rows that failed.")] = False,
    code: Annotated[
        list[str] | None, typer.Option(help="Only failures of this code; repeatable.")
    ] = None,
    chunk_rows: ChunkRows = None,
) -> None:
    """Embed messages of the table again, in place of their rows; beside the live stream."""
    settings = _load(config, overrides)
    selection = _selection(offsets, since, until, failures=failures, codes=code)
    from embedstream.cli.terminal import run_replay

    run_replay(settings, kind="replay", selection=selection, chunk_rows=chunk_rows)


@app.command()
def backfill(
    config: ConfigPath,
    encoder: Annotated[str, typer.Option(help="The other encoder's name, as in encoder.name.")],
    weights: Annotated[str, typer.Option(help="Its weights, as in encoder.weights.")] = "default",
    sha256: Annotated[str | None, typer.Option(help="What they must hash to.")] = None,
    overrides: Overrides = None,
    since: OnlyFrom = None,
    until: OnlyUntil = None,
    chunk_rows: ChunkRows = None,
) -> None:
    """Embed the table's messages with another model too; beside the live stream."""
    settings = _load(config, overrides)
    other = {"name": encoder, "weights": weights, "sha256": sha256}
    settings = settings.model_copy(update={"encoder": settings.encoder.model_copy(update=other)})
    selection = _selection(None, since, until)
    from embedstream.cli.terminal import run_replay

    run_replay(settings, kind="backfill", selection=selection, chunk_rows=chunk_rows)


@app.command()
def batch(
    source: Annotated[
        str,
        typer.Option("--from", help="A file, a folder with all below it, a pattern; or a URI."),
    ],
    table: Annotated[str, typer.Option(help="The Delta table; created where there is none.")],
    encoder: Annotated[str, typer.Option(help="As encoder.name.")] = "resnet50",
    weights: Annotated[str, typer.Option(help="As encoder.weights.")] = "default",
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
    """Embed the files at a path; repeated, it does what is left and what came since.

    The exit code is 1 where every file that was to be embedded failed.
    """
    from embedstream.config.load import files_config

    tree = {"encoder": {"name": encoder, "weights": weights}, "table": {"path": table}}
    settings = files_config(tree, overrides or ())
    settings.spark.check_location("--from", source)
    from embedstream.cli.terminal import run_files

    if not run_files(settings, source, chunk_rows=chunk_rows):
        raise typer.Exit(1)


@app.command()
def produce(
    paths: Annotated[list[Path], typer.Argument(help="Images, or folders of images.")],
    topic: Annotated[str, typer.Option(help="The topic.")],
    bootstrap_servers: Annotated[
        str | None, typer.Option(help="The brokers; by default the embedded one.")
    ] = None,
    as_reference: Annotated[
        bool, typer.Option("--as-reference", help="Send file:// references, not bytes.")
    ] = False,
    partitions: Annotated[
        int | None, typer.Option(help="Create a missing topic with so many partitions.")
    ] = None,
    client: ClientSettings = None,
    folder: BrokerFolder = DEFAULT_BROKER_FOLDER,
) -> None:
    """Send images to a topic, acknowledged by every in-sync replica."""
    from embedstream.kafka.dev_broker import create_topic
    from embedstream.kafka.produce import find_images, image_messages
    from embedstream.kafka.produce import produce as send

    servers = bootstrap_servers or _embedded_servers(folder)
    settings = _client_settings(client)
    images = find_images(paths)
    if partitions is not None:
        create_topic(servers, topic, partitions=partitions, client_settings=settings)
    unsent: list[str] = []
    messages = image_messages(
        _with_progress(images),
        form="reference" if as_reference else "bytes",
        on_unreadable=lambda path, reason: unsent.append(f"{path}: {reason}"),
    )
    failed = send(messages, bootstrap_servers=servers, topic=topic, client_settings=settings)
    unsent += [f"{delivery.message.name}: {delivery.error}" for delivery in failed]
    for line in unsent:
        print(f"not sent: {line}", file=sys.stderr)
    print(f"{len(images) - len(unsent)} of {len(images)} images are in topic '{topic}'")
    if unsent:
        raise typer.Exit(1)


@app.command()
def search(
    image: Annotated[Path, typer.Argument(help="The query picture.")],
    table: Annotated[str, typer.Option(help="The Delta table.")],
    k: Annotated[int, typer.Option("-k", min=1, help="How many rows.")] = 10,
    out: Annotated[
        Path | None, typer.Option(help="Write a contact sheet, a .png or .jpg file.")
    ] = None,
    model_id: Annotated[
        str | None, typer.Option(help="Whose rows to search; by default the newest model's.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="The weights file, where the model came from one.")
    ] = None,
    bootstrap_servers: Annotated[
        str | None, typer.Option(help="Where the sheet's pictures are read, if not in files.")
    ] = None,
) -> None:
    """List the rows nearest to a picture."""
    from embedstream.index.search import (
        check_sheet_path,
        contact_sheet,
        embed_pictures,
        nearest,
        newest_model,
        save_sheet,
    )

    if out is not None:
        check_sheet_path(out)
    try:
        content = image.read_bytes()
    except OSError as error:
        raise SetupError(f"the picture '{image}' cannot be read: {error.strerror}") from None
    model = model_id or newest_model(table)
    (vector,) = embed_pictures([content], model_id=model, weights=weights)
    neighbours = nearest(table, vector, model_id=model, k=k)
    for neighbour in neighbours:
        position = f"{neighbour.topic}-{neighbour.partition}-{neighbour.offset}"
        print(f"{neighbour.similarity:7.4f}  {neighbour.image_id}  ({neighbour.uri or position})")
    if out is not None:
        rows = [(image.name, content, neighbours)]
        save_sheet(contact_sheet(rows, lambda row: _picture(row, bootstrap_servers)), out)
        print(f"contact sheet: {out}")


@app.command()
def jars(
    folder: Annotated[Path | None, typer.Option(help="Where to put them.")] = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", help="spark, s3 or broker; may be repeated.")
    ] = None,
) -> None:
    """Fetch and verify the pinned jars, and print the --jars line for spark-submit."""
    from embedstream.spark.jars import default_jars_folder, fetch_jars

    paths = fetch_jars(sets or ["spark"], folder or default_jars_folder())
    print(f"--jars {','.join(map(str, paths))}")


@broker_app.command("start")
def start(
    folder: BrokerFolder = DEFAULT_BROKER_FOLDER,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 0,
) -> None:
    """Start the broker in the background and print its address."""
    from embedstream.kafka.dev_broker import start_broker

    print(start_broker(folder, port=port).bootstrap_servers)


@broker_app.command("stop")
def stop(folder: BrokerFolder = DEFAULT_BROKER_FOLDER) -> None:
    """Stop the broker; its data stays."""
    from embedstream.kafka.dev_broker import stop_broker

    print("stopped" if stop_broker(folder) else f"no broker runs in {folder}")


def _load(path: Path, overrides: list[str] | None) -> StreamConfig:
    from embedstream.config.load import load_config

    return load_config(path, overrides or ())


def _selection(
    offsets: list[str] | None,
    since: str | None,
    until: str | None,
    *,
    failures: bool = False,
    codes: list[str] | None = None,
) -> Selection:
    from embedstream.bulk.replay import Selection

    return Selection(
        offsets=tuple(map(_offset_range, offsets or ())),
        since=_time("--since", since),
        until=_time("--until", until),
        failures=failures,
        codes=tuple(map(_code, codes or ())),
    )


def _offset_range(text: str) -> OffsetRange:
    from embedstream.bulk.replay import OffsetRange

    found = re.fullmatch(r"(.+):(\d+):(\d+)-(\d+)", text)
    if found is None or int(found[3]) > int(found[4]):
        raise SetupError(
            f"--offsets takes TOPIC:PARTITION:FIRST-LAST, as images:0:100-199; not '{text}'"
        )
    return OffsetRange(found[1], int(found[2]), int(found[3]), int(found[4]))


def _time(option: str, text: str | None) -> datetime | None:
    """A time without a zone is in UTC, as the table's are."""
    if text is None:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise SetupError(
            f"{option} takes a time, as 2026-01-31T12:00 or 2026-01-31T12:00+01:00; not '{text}'"
        ) from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _code(text: str) -> str:
    from embedstream_core.errors import Code

    known = [str(code) for code in Code]
    if text not in known:
        raise SetupError(f"there is no failure code '{text}'; there are: {', '.join(known)}")
    return text


def _embedded_servers(folder: Path) -> str:
    from embedstream.kafka.dev_broker import running_broker

    broker = running_broker(folder)
    if broker is None:
        raise SetupError(
            f"no broker runs in {folder}; start it with 'embedstream broker start', or give "
            "--bootstrap-servers"
        )
    return broker.bootstrap_servers


def _client_settings(pairs: list[str] | None) -> dict[str, Any]:
    from embedstream.config.secrets import resolved_options, revealed

    given = dict(map(_client_setting, pairs or ()))
    texts = revealed(resolved_options(given))
    # Kafka's client for Python, unlike the one for Java, takes numbers and truth values as such.
    return {name: texts[name] if isinstance(given[name], str) else given[name] for name in given}


def _client_setting(pair: str) -> tuple[str, object]:
    from embedstream.config.yaml import parse_value

    name, equals, value = pair.partition("=")
    if not equals:
        raise SetupError(f"--client takes NAME=VALUE, as security_protocol=SSL; not '{pair}'")
    return name, parse_value(name, value)


def _with_progress(paths: Sequence[Path]) -> Iterable[Path]:
    from rich.console import Console
    from rich.progress import track

    return track(paths, description="sending", console=Console(stderr=True))


def _picture(neighbour: Neighbour, bootstrap_servers: str | None) -> bytes | None:
    from embedstream.index.search import file_content, kafka_content

    if neighbour.uri is not None:
        return file_content(neighbour.uri)
    if bootstrap_servers is not None:
        return kafka_content(neighbour, bootstrap_servers=bootstrap_servers)
    return None
