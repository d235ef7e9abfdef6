"""The `embedstream` command: its groups of commands, its version, its exit codes."""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Annotated

import typer

from embedstream.cli import console
from embedstream.cli.commands import bulk, stream, table, tools
from embedstream_core.errors import EmbedstreamError

__all__ = ["app", "main"]

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
for group in (stream, bulk, table, tools):
    app.add_typer(group.app)


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
