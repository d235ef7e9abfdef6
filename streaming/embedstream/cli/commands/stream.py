"""The commands of a stream: it runs, changes its models, and is checked."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from embedstream.cli.options import (
    ConfigPath,
    Listen,
    Overrides,
    add_listen,
    build_follow_command,
    read_config,
    write_config_words,
)

__all__ = ["app"]

app = typer.Typer()


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
    from embedstream.cli.actions.stream import run_stream

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
    from embedstream.cli.actions.page import serve_page

    serve_page(settings, config_words=write_config_words(config, overrides))


@app.command()
def swap(config: ConfigPath, overrides: Overrides = None) -> None:
    """Give the running stream the encoders of the changed configuration, without a restart.

    The exit code is 1 if the stream refused them; it then works on with its present ones.
    """
    settings = read_config(config, overrides)
    from embedstream.cli.actions.swap import request_swap

    raise typer.Exit(0 if request_swap(settings) else 1)


@app.command()
def check(config: ConfigPath, overrides: Overrides = None) -> None:
    """Check everything that can be checked before a start; write nothing."""
    settings = read_config(config, overrides)
    from embedstream.cli.actions.stream import check_stream

    raise typer.Exit(0 if check_stream(settings) else 1)


@app.command()
def doctor(config: ConfigPath, overrides: Overrides = None) -> None:
    """Find problems in checkpoint, table and topics and print their fixes; write nothing."""
    settings = read_config(config, overrides)
    from embedstream.cli.actions.stream import examine_stream

    raise typer.Exit(0 if examine_stream(settings) else 1)
