"""What is wrong with a configuration."""

from __future__ import annotations

from embedstream_core.errors import SetupError

__all__ = ["ConfigError", "LocationError"]


class ConfigError(SetupError):
    """The configuration is wrong; the message names the file, the key, the value, the choices."""


class LocationError(SetupError, ValueError):
    """A text is not a location; the message says what to write."""
