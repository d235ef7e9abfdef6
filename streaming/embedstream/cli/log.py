"""The log of a command: set up while it runs, in the format of its configuration."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from embedstream.cli import console
from embedstream.logs.events import DESCRIPTIONS, OWN_LOGGERS, Event, log_event
from embedstream.logs.formats import JsonFormatter, TextFormatter, read_message
from embedstream_core.errors import EmbedstreamError

if TYPE_CHECKING:
    from embedstream.config.sections.monitoring import LogConfig

__all__ = ["show_log"]

_log = logging.getLogger(__name__)


@contextmanager
def show_log(config: LogConfig) -> Iterator[None]:
    """Print the records of embedstream, and warnings of others, while the context lasts.

    With `json` the exception that leaves the context is an event too, and `main` does not print it
    again.
    """
    handler: logging.Handler = _JsonHandler() if config.format == "json" else _TextHandler()
    handler.setLevel(config.level.upper())
    handler.addFilter(_is_wanted)
    loggers = {name: logging.getLogger(name) for name in OWN_LOGGERS}
    levels = {name: one.level for name, one in loggers.items()}
    root = logging.getLogger()
    root.addHandler(handler)
    for one in loggers.values():
        one.setLevel(handler.level)
    logging.captureWarnings(True)
    try:
        with console.print_lines_as(config.format):
            try:
                yield
            except Exception as error:
                if config.format == "json" and console.note_failure(error):
                    _log_failure(error)
                raise
    finally:
        logging.captureWarnings(False)
        for name, one in loggers.items():
            one.setLevel(levels[name])
        root.removeHandler(handler)


def _is_wanted(record: logging.LogRecord) -> bool:
    is_own = record.name.partition(".")[0] in OWN_LOGGERS
    return is_own or record.levelno >= logging.WARNING


def _log_failure(error: Exception) -> None:
    is_expected = isinstance(error, EmbedstreamError)
    log_event(
        _log,
        Event.FAILURE,
        str(error) if is_expected else f"unexpected error: {type(error).__name__}: {error}",
        level=logging.ERROR,
        exc_info=None if is_expected else error,
        kind=type(error).__name__,
    )


class _JsonHandler(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(JsonFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        try:
            console.print_line(self.format(record))
        except Exception:
            self.handleError(record)


class _TextHandler(logging.Handler):
    """Prints some events as lines for people, and all other records to the standard error."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(TextFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        try:
            event: Any = getattr(record, "event", None)
            if event in DESCRIPTIONS and DESCRIPTIONS[event].is_printed:
                fields = getattr(record, "fields", {})
                console.print_event(event, read_message(record), fields)
            else:
                console.print_error(self.format(record))
        except Exception:
            self.handleError(record)
