"""Write `docs/configuration.md` from the models: `python -m embedstream.config.reference`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import yaml

from embedstream.config.sections import StreamConfig

__all__ = ["build_reference"]

_INTRODUCTION = """\
<!-- Written by `make docs` from the models in streaming/embedstream/config; edit those instead. -->

# Configuration

One YAML file configures a stream. The shortest one:

```yaml
kafka:
  bootstrap_servers: localhost:9092
  subscribe: images
table:
  path: data/table
checkpoint: data/checkpoint
```

You can also give any key outside the file:

- in the environment: `EMBEDSTREAM_KAFKA__SUBSCRIBE=cats`;
- on the command line: `--set kafka.subscribe=cats`, `--set spark.options.spark.ui.enabled=false`;
  an entry of a list by its number, from 0 on: `--set encoders.0.precision=float32`.

`--set` wins over the environment, and the environment over the file. The values of both are YAML,
so `--set 'references.hosts=[images.example.com]'` gives a list. A map is merged into the map that
it overrides; any other value replaces the old one.

A text is taken literally: a topic may be called 2024, 1e3 or `on`. Only null removes a key. A time
without a zone is in UTC.

Unknown keys are errors, and so are environment variables that begin with `EMBEDSTREAM_` and name
no key. Give exactly one of `kafka.subscribe`, `kafka.subscribe_pattern` and `kafka.assign`, at
least one of `table.path` and `table.name`, and at most one of `encoder` and `encoders`.

Relative paths start at the working directory. A path that begins with a scheme, such as `hdfs:/` or
`s3a://`, is a location on a file system that Spark needs a jar for; embedstream fetches that of
`s3a`.

`kafka.options` and `spark.options` reach Spark unchanged. An option that has its own key, such as
`failOnDataLoss` or `spark.master`, is refused with the name of that key; an option that the stream
needs unchanged is refused with the reason. `spark.jars`, `spark.sql.extensions` and the patterns of
`spark.redaction.regex` are added to embedstream's own.

Keep secrets out of the file: the values of `kafka.options`, `spark.options` and `publish.client`,
`index.url` and the secrets in `message.registry` may refer to them.

- `env:NAME` is the value of an environment variable.
- `file:PATH` is the content of a file, without surrounding whitespace.
- `${env:NAME}` and `${file:PATH}` do the same within a longer value.

A password, secret, token, credential or access key in plain text is an error there."""

_TABLE_HEAD = "| Key | Type | Default | Meaning |\n| --- | --- | --- | --- |"
_LIMITS = {"minimum": "from {}", "maximum": "up to {}", "pattern": "like `{}`"}
# PyYAML writes this after a value that is neither a list nor a map.
_DOCUMENT_END = "...\n"


def build_reference() -> str:
    """Return the page in Markdown: how to give a key, then each part of `StreamConfig` in order.

    Its tables list every key of the models, and nothing else.
    """
    schema = StreamConfig.model_json_schema()
    sections = {f"#/$defs/{name}": section for name, section in schema["$defs"].items()}
    parts = [_INTRODUCTION]
    for name, field in schema["properties"].items():
        if section := sections.get(field.get("$ref")):
            rows = [*_list_rows(name, section, sections)]
            title = f"## {name}\n\n{section['description']}"
        else:
            rows, title = [_format_row(name, field, name in schema["required"])], f"## {name}"
        parts.append("\n".join([f"{title}\n\n{_TABLE_HEAD}", *rows]))
    return "\n\n".join(parts) + "\n"


def _list_rows(
    name: str, section: dict[str, Any], sections: dict[str, dict[str, Any]]
) -> Iterator[str]:
    """Yield a row for each key of a section, and for those of the sections in it."""
    needed = section.get("required", ())
    for key, field in section["properties"].items():
        if inner := sections.get(field.get("$ref")):
            yield from _list_rows(f"{name}.{key}", inner, sections)
        else:
            yield _format_row(f"{name}.{key}", field, key in needed)


def _format_row(key: str, schema: dict[str, Any], is_required: bool) -> str:
    # The schema has no default for a map that is empty by default.
    text = yaml.safe_dump(schema.get("default", {}), default_flow_style=True, width=float("inf"))
    default = "required" if is_required else f"`{text.removesuffix(_DOCUMENT_END).strip()}`"
    cells = [f"`{key}`", _format_type(schema), default, " ".join(schema["description"].split())]
    return " | ".join(["", *(cell.replace("|", "\\|") for cell in cells), ""]).strip()


def _format_type(schema: dict[str, Any], plural: str = "") -> str:
    """Return a JSON schema in words; `plural` is the ending of its nouns."""
    match schema:
        case {"anyOf": choices}:
            kinds = [
                _format_type(choice, plural) for choice in choices if choice.get("type") != "null"
            ]
            return " or ".join(dict.fromkeys(kinds))
        case {"enum": values}:
            return ", ".join(f"`{value}`" for value in values)
        case {"$ref": _}:
            return f"map{plural}"
        case {"type": "array", "items": items}:
            return f"list{plural} of {_format_type(items, 's')}"
        case {"type": "object", "additionalProperties": values}:
            return f"map{plural} of {_format_type(values, 's')}"
        case {"format": "date-time"}:
            return f"time{plural}"
    sign = "positive " if schema.get("exclusiveMinimum") == 0 else ""
    limits = [text.format(schema[name]) for name, text in _LIMITS.items() if name in schema]
    return " ".join([f"{sign}{schema['type']}{plural}", *limits])


if __name__ == "__main__":
    sys.stdout.write(build_reference())
