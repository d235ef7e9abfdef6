"""`docs/configuration.md`, written from the models: `python -m embedstream.config.reference`."""

from __future__ import annotations

from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from embedstream.config.sections import StreamConfig

__all__ = ["configuration_reference"]

_INTRODUCTION = """\
<!-- Written by `make docs` from streaming/embedstream/config/sections.py; edit that instead. -->

# Configuration

A stream is configured by one YAML file. The shortest one:

```yaml
kafka:
  bootstrap_servers: localhost:9092
  subscribe: images
table:
  path: data/table
checkpoint: data/checkpoint
```

Any key can also be given outside the file:

- in the environment: `EMBEDSTREAM_KAFKA__SUBSCRIBE=cats`;
- on the command line: `--set kafka.subscribe=cats`, `--set spark.options.spark.ui.enabled=false`.

`--set` wins over the environment, and the environment over the file. Both are read as YAML, so
`--set 'references.hosts=[images.example.com]'` gives a list. A map is merged into the map that it
overrides; any other value replaces the former one.

Where a text belongs it is the text that was written: a topic may be called 2024, 1e3 or `on`. Only
null takes a key away. A time without a zone is in UTC.

Unknown keys are errors, and so are variables of the environment that begin with `EMBEDSTREAM_` and
name no key. Of `kafka.subscribe`, `kafka.subscribe_pattern` and `kafka.assign`, exactly one is
given.

Relative paths start at the working directory. What begins with a scheme, such as `hdfs:/` or
`s3a://`, is a location on a file system of Spark's, which needs its jar: that of `s3a` is fetched.

`kafka.options` and `spark.options` reach Spark as they are given. What has a key of its own, such
as `failOnDataLoss` or `spark.master`, is refused with that key, and what the stream needs as it is
with the reason. `spark.jars`, `spark.sql.extensions` and the patterns of `spark.redaction.regex`
are added to those of embedstream.

Secrets stay out of the file: the values of `kafka.options` and `spark.options` may name them.

- `env:NAME` is the value of an environment variable.
- `file:PATH` is the content of a file, without the space around it.
- `${env:NAME}` and `${file:PATH}` stand within a longer value.

There, a password, secret, token, credential or access key in plain text is an error."""

_TABLE_HEAD = "| Key | Type | Default | Meaning |\n| --- | --- | --- | --- |"
_LIMITS = {"minimum": "from {}", "maximum": "up to {}", "pattern": "like `{}`"}
# What PyYAML writes after a value that is no list and no map.
_DOCUMENT_END = "...\n"


def configuration_reference() -> str:
    """The page in Markdown: the ways to give a key, then each part of `StreamConfig` in its order.

    Every key of the models is in it, and nothing else decides what its tables say.
    """
    own = StreamConfig.model_json_schema()["properties"]
    sections = [
        _section(name, field, own[name]) for name, field in StreamConfig.model_fields.items()
    ]
    return "\n\n".join([_INTRODUCTION, *sections]) + "\n"


def _section(name: str, field: FieldInfo, schema: dict[str, Any]) -> str:
    part = field.annotation
    if not (isinstance(part, type) and issubclass(part, BaseModel)):
        return f"## {name}\n\n{_TABLE_HEAD}\n{_row(name, field, schema)}"
    inner = part.model_json_schema()["properties"]
    rows = [_row(f"{name}.{key}", inside, inner[key]) for key, inside in part.model_fields.items()]
    return "\n".join([f"## {name}\n\n{part.__doc__}\n\n{_TABLE_HEAD}", *rows])


def _row(key: str, field: FieldInfo, schema: dict[str, Any]) -> str:
    default = "required" if field.is_required() else _as_yaml(field)
    cells = [f"`{key}`", _kind(schema), default, field.description or ""]
    escaped = (cell.replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(escaped)} |"


def _as_yaml(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    text = yaml.safe_dump(default, default_flow_style=True, width=float("inf"))
    return f"`{text.removesuffix(_DOCUMENT_END).strip()}`"


def _kind(schema: dict[str, Any], plural: str = "") -> str:
    """A JSON schema in words; `plural` is what nouns end in."""
    match schema:
        case {"anyOf": choices}:
            kinds = [_kind(choice, plural) for choice in choices if choice.get("type") != "null"]
            return " or ".join(dict.fromkeys(kinds))
        case {"enum": values}:
            return ", ".join(f"`{value}`" for value in values)
        case {"$ref": _}:
            return f"map{plural}"
        case {"type": "array", "items": items}:
            return f"list{plural} of {_kind(items, 's')}"
        case {"type": "object", "additionalProperties": values}:
            return f"map{plural} of {_kind(values, 's')}"
        case {"format": "date-time"}:
            return f"time{plural}"
    sign = "positive " if schema.get("exclusiveMinimum") == 0 else ""
    limits = [text.format(schema[name]) for name, text in _LIMITS.items() if name in schema]
    return " ".join([f"{sign}{schema['type']}{plural}", *limits])


if __name__ == "__main__":
    print(configuration_reference(), end="")
