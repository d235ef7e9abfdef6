"""YAML as a configuration has it: what the texts mean is left to the keys that they belong to."""

from __future__ import annotations

import re
from typing import Any

import yaml

from embedstream.config.secrets import TruthText
from embedstream.config.sections import ConfigError

__all__ = ["parse_value", "read_yaml"]

# PyYAML quotes aliases and tags in its errors, and a password may begin like one; its own names for
# the parts of a document, as '<block end>', and single characters are left.
_QUOTED_INPUT = re.compile(r"""(['"])[^<\s]\S{2,}\1""")

_TAG = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    """YAML in which a number and a date stay the text that was written, and so does a truth value.

    A topic may be called 2024, and an application `on`.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Read a map, in which no key may stand twice: PyYAML would drop the first one."""
        seen: set[str] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and key.tag != f"{_TAG}merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        "while reading a map", node.start_mark, "found a key twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep=deep)

    def construct_truth(self, node: yaml.ScalarNode) -> TruthText:
        """Read a truth value as the text that it is."""
        return TruthText(self.construct_scalar(node))


_TYPED = {f"{_TAG}{kind}" for kind in ("int", "float", "timestamp")}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _TYPED]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_constructor(f"{_TAG}bool", _Loader.construct_truth)


def read_yaml(text: str, subject: str) -> Any:
    """Read a part of a configuration: maps, lists, texts, `TruthText`s, and None.

    Raises:
        ConfigError: it is not YAML, which is said of the subject; the text is not repeated.
    """
    return _read(text, subject, _Loader)


def parse_value(name: str, value: str) -> object:
    """Read a setting that is none of the configuration's, with numbers and truth values.

    Raises:
        ConfigError: it is not YAML; the value is not repeated.
    """
    return _read(value, f"the value of {name}", yaml.SafeLoader)


def _read(text: str, subject: str, loader: type[yaml.SafeLoader]) -> Any:
    try:
        return yaml.load(text, loader)  # noqa: S506, for both are safe ones
    except yaml.MarkedYAMLError as error:
        raise ConfigError(f"{subject} is not YAML: {_without_input(error)}") from None
    except (yaml.YAMLError, ValueError, RecursionError):
        raise ConfigError(
            f"{subject} is not YAML: a character, a number or a date in it does not exist, or it "
            "is too deep"
        ) from None


def _without_input(error: yaml.MarkedYAMLError) -> str:
    """What PyYAML says is wrong, and where, but nothing of what it read: that may be a secret."""
    parts = [(error.context, error.context_mark), (error.problem, error.problem_mark)]
    return ", ".join(
        f"{_QUOTED_INPUT.sub('…', text)} in line {mark.line + 1}, column {mark.column + 1}"
        for text, mark in parts
        if text and mark
    )
