"""The base class of the sections, and the types of their values."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveFloat,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from embedstream.config.locations import check_literal, make_absolute, make_local
from embedstream.config.table_names import check_table_name
from embedstream.config.yaml import BooleanText

__all__ = [
    "LocalFolder",
    "Location",
    "PositiveSeconds",
    "Seconds",
    "Section",
    "Switch",
    "TableName",
    "Time",
    "TopicName",
    "check_topic_name",
]

_SINCE_1970 = re.compile(r"\d{10}|\d{13}")
_MAX_SECONDS = 1_000_000_000
_TOPIC = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,249}")


class Section(BaseModel):
    """A part of the configuration: frozen, and without unknown keys.

    The text under a field is its meaning in `docs/configuration.md`.
    """

    # Pydantic's messages must not repeat a value that may be a secret; `explain` adds safe ones.
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


def check_topic_name(topic: str) -> str:
    """Return the name of a topic.

    Raises:
        ValueError: Kafka takes no such name.
    """
    if not _TOPIC.fullmatch(topic):
        raise ValueError(
            f"'{topic}' is not a topic name: use up to 249 letters, digits, '.', '_', '-'"
        )
    return topic


def _check_seconds(value: float) -> float:
    # Python's locks and timers fail above 292 years, and Spark's intervals too.
    if value > _MAX_SECONDS:
        raise ValueError(f"should be {_MAX_SECONDS} seconds or less, not {value:g}")
    return value


def _read_switch(value: object) -> object:
    """Return `on` or `off` for a boolean; YAML reads both as one."""
    truth = value.value if isinstance(value, BooleanText) else value
    return {True: "on", False: "off"}[truth] if isinstance(truth, bool) else value


def _read_time(value: object, validate: ValidatorFunctionWrapHandler) -> datetime:
    """Read ISO 8601, or seconds or milliseconds since 1970 by their number of digits."""
    if isinstance(value, str | int):
        text = str(value).strip()
        try:
            if _SINCE_1970.fullmatch(text):
                milliseconds = timedelta(milliseconds=int(text[10:] or 0))
                value = datetime.fromtimestamp(int(text[:10]), UTC) + milliseconds
            else:
                value = datetime.fromisoformat(text)
        except ValueError:
            raise ValueError(
                f"'{text}' is not a time: write it as 2026-01-31T12:00, in UTC, or with a zone, as "
                "2026-01-31T12:00+01:00"
            ) from None
    time: datetime = validate(value)
    moment = time if time.tzinfo else time.replace(tzinfo=UTC)
    if moment.timestamp() < 0:
        raise ValueError(f"{time.isoformat()} is before 1970, where Kafka's times begin")
    return moment


Switch = Annotated[Literal["on", "off"], BeforeValidator(_read_switch)]
_Literal = Annotated[str, Field(min_length=1), AfterValidator(check_literal)]
Location = Annotated[_Literal, AfterValidator(make_absolute)]
LocalFolder = Annotated[_Literal, AfterValidator(make_local)]
Seconds = Annotated[float, Field(ge=0), AfterValidator(_check_seconds)]
PositiveSeconds = Annotated[PositiveFloat, AfterValidator(_check_seconds)]
TableName = Annotated[str, AfterValidator(check_table_name)]
Time = Annotated[datetime, WrapValidator(_read_time)]
TopicName = Annotated[str, AfterValidator(check_topic_name)]
