"""The kinds of store that `index.kind` may name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Literal, overload

from embedstream.config.sections import IndexConfig
from embedstream.index.rows import check_attributes
from embedstream.index.stores.contract import Store, StoreWriter
from embedstream_core.errors import SetupError
from embedstream_core.extras import require_extra

__all__ = ["KINDS", "Kind", "open_store"]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of store: the module whose function `open_store` opens it.

    The extra with its packages has the kind's name.
    """

    module: str


KINDS: Mapping[str, Kind] = {
    "lancedb": Kind("embedstream.index.stores.lancedb"),
    "pgvector": Kind("embedstream.index.stores.pgvector"),
}


@overload
def open_store(config: IndexConfig, *, table: str, mode: Literal["read"]) -> Store: ...
@overload
def open_store(config: IndexConfig, *, table: str, mode: Literal["write"]) -> StoreWriter: ...
def open_store(config: IndexConfig, *, table: str, mode: Literal["read", "write"]) -> Store:
    """Open the store of a table's index; the caller closes it.

    Opening one for writing creates it if there is none, undoes what an interrupted `write` left,
    and keeps other writers out until it is closed or the process ends.

    Raises:
        MissingExtra: the packages of this kind are not installed.
        SetupError: there is no such kind, the store cannot be reached, or another process writes.
    """
    if config.kind not in KINDS:
        raise SetupError(f"unknown index.kind '{config.kind}'; known: {', '.join(KINDS)}")
    check_attributes(config.attributes)
    with require_extra(config.kind, feature=f"index.kind '{config.kind}'"):
        module = import_module(KINDS[config.kind].module)
    opener: Callable[..., Store] = module.open_store
    return opener(config, table=table, mode=mode)
