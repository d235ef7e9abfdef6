"""Read YAML as a configuration needs it: each key decides what its text means."""

from __future__ import annotations

import re
from typing import Any

import yaml

from embedstream.config.errors import ConfigError

__all__ = ["BooleanText", "read_yaml"]

# PyYAML quotes aliases and tags in its errors, and a password may begin like one. Its own names of
# the parts of a document, such as '<block end>', and single characters are kept.
_QUOTED_INPUT = re.compile(r"""(['"])[^<\s]\S{2,}\1""")

_TAG = "tag:yaml.org,2002:"


class BooleanText(str):
    """The text of a boolean in YAML: `true`, `Yes`, `off`."""

    __slots__ = ()

    @property
    def value(self) -> bool:
        """The value of the text."""
        return self.lower() in ("true", "yes", "on")


class _Loader(yaml.SafeLoader):
    """Loads numbers, dates and booleans as the text that was written.

    A topic may be called 2024, and an application `on`.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Read a map; refuse a key that occurs twice, of which PyYAML would drop the first."""
        seen: set[str] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and key.tag != f"{_TAG}merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        "while reading a map", node.start_mark, "found a key twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep=deep)

    def construct_boolean(self, node: yaml.ScalarNode) -> BooleanText:
        """Read a boolean as its text."""
        return BooleanText(self.construct_scalar(node))


_TYPED = {f"{_TAG}{kind}" for kind in ("int", "float", "timestamp")}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _TYPED]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_constructor(f"{_TAG}bool", _Loader.construct_boolean)


def read_yaml(text: str, subject: str, *, typed: bool = False) -> Any:
    """Read a part of a configuration: maps, lists, texts, `BooleanText`s, and None.

    With `typed`, for settings without a key, numbers, dates and booleans are Python's.

    Raises:
        ConfigError: the text is not YAML. The message names the subject and repeats no input.
    """
    loader = yaml.SafeLoader if typed else _Loader
    try:
        return yaml.load(text, loader)  # noqa: S506, since both loaders are safe
    except yaml.MarkedYAMLError as error:
        # PyYAML's words and the place, but nothing of what it read, which may be a secret.
        marked = [(error.context, error.context_mark), (error.problem, error.problem_mark)]
        parts = [
            f"{_QUOTED_INPUT.sub('…', words)} in line {mark.line + 1}, column {mark.column + 1}"
            for words, mark in marked
            if words and mark
        ]
        raise ConfigError(f"{subject} is not YAML: {', '.join(parts)}") from None
    except (yaml.YAMLError, ValueError, RecursionError):
        raise ConfigError(
            f"{subject} is not YAML: it contains a character, a number or a date that does not "
            "exist, or it is nested too deeply"
        ) from None
