"""The options of several commands, and how their values are read."""

from __future__ import annotations

import re
import shlex
import sys
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from embedstream.bulk.selection import OffsetRange
from embedstream_core.errors import SetupError
from embedstream_core.redaction import REDACTED

if TYPE_CHECKING:
    from embedstream.config.sections import BulkFilesConfig, StreamConfig

__all__ = [
    "BrokerFolder",
    "ChunkRows",
    "ConfigPath",
    "Listen",
    "OutputForm",
    "Overrides",
    "Since",
    "Until",
    "add_listen",
    "build_follow_command",
    "parse_age",
    "parse_offsets",
    "parse_position",
    "parse_time",
    "read_config",
    "read_table_config",
    "write_config_words",
]


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
    path: Path | None, table: str | None, overrides: list[str] | None
) -> StreamConfig | BulkFilesConfig:
    """Read the configuration of a stream, or of a table without one."""
    if (path is None) == (table is None):
        raise typer.BadParameter("give either CONFIG or --table")
    if path is not None:
        return read_config(path, overrides)
    from embedstream.config.load import load_files_config

    return load_files_config({"table": {"path": table}}, overrides or ())


ConfigPath = Annotated[Path, typer.Argument(help="A YAML file, such as conf/local.yaml.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key: --set kafka.subscribe=cats."),
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
BrokerFolder = Annotated[Path, typer.Option(help="The broker's folder: its data and its log.")]
