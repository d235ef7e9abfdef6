"""Every exception class of both packages is in the tree that the docstring of `errors` draws."""

from __future__ import annotations

import inspect
import pkgutil
import re
from importlib import import_module

import embedstream
import embedstream_core
from embedstream_core import errors


def exception_classes() -> set[type[BaseException]]:
    """Return the exceptions that the modules of both packages define."""
    modules = [
        import_module(found.name)
        for package in (embedstream_core, embedstream)
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    ]
    return {
        kind
        for module in modules
        for _, kind in inspect.getmembers(module, inspect.isclass)
        if issubclass(kind, BaseException) and kind.__module__ == module.__name__
    }


def drawn_parents() -> dict[str, str]:
    """Return the parent of each class in the docstring's tree; a level is four characters deep."""
    parents: dict[str, str] = {}
    path = ["EmbedstreamError"]
    for branch, name in re.findall(r"^((?:│   |    )*[├└]── )(\w+)", str(errors.__doc__), re.M):
        del path[len(branch) // 4 :]
        parents[name] = path[-1]
        path.append(name)
    return parents


def test_the_docstring_draws_every_exception_under_its_base_class() -> None:
    bases = {kind.__name__: kind.__bases__[0].__name__ for kind in exception_classes()}

    assert bases == {"EmbedstreamError": "Exception", **drawn_parents()}
