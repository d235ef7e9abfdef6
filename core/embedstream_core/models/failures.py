"""Failures of code that is not embedstream's: networks, constructors and download clients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from embedstream_core.errors import EmbedstreamError, SetupError, explain

__all__ = ["convert_errors"]


@contextmanager
def convert_errors(what: str, way_out: str) -> Iterator[None]:
    """Convert any exception of the enclosed code into a SetupError, except embedstream's own.

    A user's or a library's code may raise any type, and a script that parses its arguments at
    import raises SystemExit.
    """
    try:
        yield
    except EmbedstreamError:
        raise
    except (Exception, SystemExit) as error:
        raise SetupError(f"{what} ({explain(error)}): {way_out}") from error
