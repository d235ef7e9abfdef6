"""The options of several commands, and how their values are read."""

from __future__ import annotations

import re
import shlex
import sys
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from embedstream.bulk.selection import OffsetRange
from embedstream.config.locations import get_scheme, make_local
from embedstream_core.errors import SetupError
from embedstream_core.redaction import REDACTED

if TYPE_CHECKING:
    from embedstream.config.sections import BulkFilesConfig, StreamConfig

__all__ = [
    "BrokerFolder",
    "ChunkRows",
    "ConfigPath",
    "Continuous",
    "Listen",
    "OfStream",
    "OutputForm",
    "Overrides",
    "Since",
    "TableFolder",
    "TableName",
    "Until",
    "add_listen",
    "build_follow_command",
    "build_table_tree",
    "parse_age",
    "parse_offsets",
    "parse_position",
    "parse_time",
    "read_config",
    "read_table_config",
    "require_local",
    "write_config_words",
]


Paths = TypeVar("Paths", Path, list[Path], Path | None)


def parse_time(text: str) -> datetime:
    """Read a time; one without a zone is in UTC, as the table's times are."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(
            f"it takes a time, such as 2026-01-31T12:00 or 2026-01-31T12:00+01:00; not '{text}'"
        ) from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def parse_age(text: str) -> datetime:
    """Read a time, or an age such as `90d`, as a time."""
    if found := re.fullmatch(r"(\d{1,6})([dh])", text):
        number = int(found[1])
        age = timedelta(days=number) if found[2] == "d" else timedelta(hours=number)
        return datetime.now(UTC) - age
    return parse_time(text)


def parse_offsets(text: str) -> OffsetRange:
    """Read a range of offsets; the last one is included."""
    found = re.fullmatch(r"(.+):(\d+):(\d+)-(\d+)", text)
    if found is None or int(found[3]) > int(found[4]):
        raise typer.BadParameter(
            f"it takes TOPIC:PARTITION:FIRST-LAST, such as images:0:100-199; not '{text}'"
        )
    return OffsetRange(found[1], int(found[2]), int(found[3]), int(found[4]))


def parse_position(text: str) -> tuple[str, int, int]:
    """Read a message's topic, partition and offset; the topic may contain `-`."""
    found = re.fullmatch(r"(.+)-(\d+)-(\d+)", text)
    if found is None:
        raise SetupError(f"--like takes TOPIC-PARTITION-OFFSET, such as images-0-17; not '{text}'")
    return found[1], int(found[2]), int(found[3])


def require_local(given: Paths) -> Paths:
    """Return paths as they are, and `file:` URIs as paths.

    Raises:
        BadParameter: one is on another file system; its two slashes are one in a `Path`.
    """
    if given is None:
        return None
    if isinstance(given, list):
        return [require_local(path) for path in given]
    location = str(given)
    if not re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", location) or given.exists():
        return given
    if get_scheme(location) == "file":
        return Path(make_local(location))
    raise typer.BadParameter(f"it takes a path on this machine, not '{location}'")


class OutputForm(StrEnum):
    """How `search` prints its rows."""

    TABLE = "table"
    JSON = "json"
    SHEET = "sheet"


def read_config(path: Path, overrides: list[str] | None) -> StreamConfig:
    """Read the configuration before a command imports Spark: what is wrong shows at once."""
    from embedstream.config.load import load_config

    return load_config(path, overrides or ())


def add_listen(overrides: list[str] | None, listen: str | None) -> list[str]:
    """Return the overrides, with the address of `--listen` if it is given."""
    return [*(overrides or ()), *([] if listen is None else [f"monitor.listen={listen}"])]


def build_follow_command(name: str, path: Path, overrides: list[str] | None) -> list[str]:
    """Return the command `name` as a stream's driver runs it to follow its table."""
    settings = [f"--set={one}" for one in overrides or ()]
    return [sys.executable, "-m", "embedstream", name, str(path), *settings, "--of-stream"]


def write_config_words(path: Path, overrides: list[str] | None) -> str:
    """Return what names the configuration in a command, as a user types it, without secrets.

    The page and the log show it.
    """
    # A name that begins with a hyphen would be an option.
    file = f"./{path}" if str(path).startswith("-") else str(path)
    shown = map(_redact, overrides or ())
    return shlex.join([file, *(part for one in shown for part in ("--set", one))])


def _redact(override: str) -> str:
    """Return an override without the secret that it sets; a reference to one is none."""
    from embedstream.config.secrets import holds_secret

    key, _, value = override.partition("=")
    is_reference = value.startswith(("env:", "file:")) or "${" in value
    return f"{key}={REDACTED}" if holds_secret(key, value) and not is_reference else override


def read_table_config(
    path: Path | None, table: str | None, name: str | None, overrides: list[str] | None
) -> StreamConfig | BulkFilesConfig:
    """Read the configuration of a stream, or of a table without one."""
    given = build_table_tree(table, name)
    if (path is None) == (not given):
        raise typer.BadParameter("give either CONFIG, or --table or --table-name")
    if path is not None:
        return read_config(path, overrides)
    from embedstream.config.load import load_files_config

    return load_files_config({"table": given}, overrides or ())


def build_table_tree(table: str | None, name: str | None) -> dict[str, str]:
    """Return what `--table` and `--table-name` give of the section `table`."""
    return {key: value for key, value in (("path", table), ("name", name)) if value is not None}


ConfigPath = Annotated[
    Path,
    typer.Argument(callback=require_local, help="A YAML file, such as conf/local.yaml."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key: --set kafka.subscribe=cats."),
]
Continuous = Annotated[
    bool, typer.Option("--continuous", help="Follow the table until Ctrl-C or SIGTERM.")
]
OfStream = Annotated[bool, typer.Option("--of-stream", hidden=True)]
TableFolder = Annotated[
    str | None,
    typer.Option("--table", help="A table without a stream, as `embedstream batch` makes."),
]
TableName = Annotated[
    str | None,
    typer.Option(
        "--table-name",
        metavar="CATALOG.SCHEMA.TABLE",
        help="A table without a stream by its name in a catalog, as table.name.",
    ),
]
Listen = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Serve metrics, health and the live page there: 127.0.0.1:9464, as monitor.listen.",
    ),
]
Since = Annotated[
    datetime | None,
    typer.Option(parser=parse_time, metavar="TIME", help="Messages from this time on."),
]
Until = Annotated[
    datetime | None,
    typer.Option(parser=parse_time, metavar="TIME", help="Messages before this time."),
]
ChunkRows = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Rows per commit, approximately; by default 1,024 per core, or 65,536 per GPU.",
    ),
]
BrokerFolder = Annotated[
    Path,
    typer.Option(callback=require_local, help="The broker's folder: its data and its log."),
]
