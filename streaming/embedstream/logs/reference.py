"""The page docs/logging.md, written from the events."""

from __future__ import annotations

import sys

from embedstream.logs.events import DESCRIPTIONS

__all__ = ["build_reference"]

_INTRODUCTION = """\
<!-- Written by `make docs` from streaming/embedstream/logs; edit that instead. -->

# Logging

`log.format` and `log.level` say what the commands print while they work.

- `text`, the default: lines for people. The events that are marked as printed below are lines of
  their own on the standard output; all other records go to the standard error, with time, level and
  logger.
- `json`: each record is one JSON object on one line of the standard output, and nothing else is
  printed there: no spinner, no colours.

```json
{"time": "2026-11-26T13:47:51.123456Z", "level": "info", "logger": "embedstream.cli.console",
 "message": "batch 3 …", "event": "micro_batch", "fields": {"batch_id": 3, "rows": 256, …}}
```

The example is broken into two lines. `time`, `level`, `logger` and `message` are always there;
`event`, `fields` and `exception`, the traceback as text, only where they apply. `level` is
`debug`, `info`, `warning`, `error` or `critical`. The line is ASCII: other characters are escaped,
as JSON allows.

The log has the records of embedstream's loggers from `log.level` on, and warnings and errors of
other libraries in Python. Spark's JVM has its own log: see `spark.log_file`.

## Secrets

Before a record is printed, in either format, secrets in it are replaced by `[redacted]`: user names
and passwords in URIs, the values of URI parameters that are named like secrets, and values that
follow such a name in a text, as in `password="…"` or `Authorization: Bearer …`. Fields
named like secrets are replaced too. A secret in any other form is not recognized.

## What workers log

Records of level `warning` and above that embedstream logs on a worker, such as the traceback of an
`internal_error`, reach the driver's log when their task has succeeded. Their fields name the
executor's `host`, `stage`, `partition` and `attempt`, and the message's `position`, which is
topic-partition-offset, where it is known. A task sends at most 20 of them, with at most 8,000
characters in a message and in a traceback; another record says how many are left out. All of them
are also in the executor's standard error; the records of failed tasks are only there. In local
mode, where the executor is the driver, that is the driver's standard error.

Spark 4.1 and newer can collect what workers log by themselves
(`spark.sql.pyspark.worker.logging.enabled`); embedstream does not use it, see
[decision 30](decisions/0030-worker-logs.md).

The index runs in a process of its own. Its records have the field `process`, which is `index`.

## As a library

The functions for DataFrames, and all others outside the command, do not configure logging: the
loggers `embedstream` and `embedstream_core` and those below them log as the application has
configured them. Events are records with the attributes `event` and `fields`.

## Events

"""
_HEAD = "| event | printed as text | meaning | fields |\n| --- | --- | --- | --- |\n"


def build_reference() -> str:
    """Return the page, in Markdown."""
    rows = [
        f"| `{event}` | {'yes' if one.is_printed else ''} | {one.meaning} | "
        f"{', '.join(f'`{name}`' for name in one.fields)} |\n"
        for event, one in DESCRIPTIONS.items()
    ]
    return "".join([_INTRODUCTION, _HEAD, *rows])


if __name__ == "__main__":
    sys.stdout.write(build_reference())
