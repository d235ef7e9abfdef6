"""Weights files as training scripts write them, read as the tensors of one network.

A network's tensors lie anywhere in a checkpoint, among optimizers, settings and averages of
themselves, and under names with prefixes: `module.` of DataParallel, `_orig_mod.` of a compiled
network, `model.` of Lightning, or whatever the attribute was called. Nothing is known by its key
here: the tensors whose names fit the network are taken, with the prefix taken off that makes most
of them fit. Where two fit equally and differ, nobody but the user can choose.
"""

from __future__ import annotations

import logging
import pickle
import warnings
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from embedstream_core.errors import SetupError
from embedstream_core.models.files.file_kinds import identify_file, refuse_other_kinds

__all__ = ["State", "load_state", "pack_state", "read_checkpoint", "select_state"]

State = dict[str, torch.Tensor]

_log = logging.getLogger(__name__)

# What torch's wrappers put into names, at any place: modules may be wrapped one by one.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


def read_checkpoint(path: Path) -> Any:
    """Read a file of tensors, whatever else is in it; no code in it is run.

    Raises:
        SetupError: it is no file of tensors, broken, or holds what only code of its own can read.
        OSError: it cannot be read.
    """
    refuse_other_kinds(path, wanted=("safetensors", "torch"))
    try:
        kind = identify_file(path) or ("safetensors" if path.suffix == ".safetensors" else None)
        return safetensors.torch.load_file(path) if kind == "safetensors" else _load_pickled(path)
    except pickle.UnpicklingError as error:
        raise SetupError(
            f"the weights file '{path}' holds more than tensors, or is broken, and was not opened: "
            "save the network's state_dict(), or use safetensors"
        ) from error
    except SetupError:
        raise
    except Exception as error:
        # On broken files both libraries raise types of their own and many others.
        raise SetupError(
            f"the weights file '{path}' is broken, or of a kind that is not known ({error}): fetch "
            "or save it again"
        ) from error


class _IgnoredMap:
    """Stands for a class that a checkpoint names besides tensors: makes an empty dict."""

    def __new__(cls, *arguments: object) -> Any:
        return OrderedDict()


class _IgnoredNumber:
    """Stands for numpy's types, whose state is no dict."""

    def __new__(cls, *arguments: object) -> Any:
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        pass


def _load_pickled(path: Path) -> Any:
    named: list[str] = []
    if identify_file(path) == "torch":
        named = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    # Settings, metrics and the like are read as nothing: no code is imported or run for them.
    stand_ins: list[Any] = [
        (_IgnoredNumber if name.startswith("numpy.") else _IgnoredMap, name) for name in named
    ]
    with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
        # Of a pickle that another tool wrote torch warns, and then reads or refuses it.
        warnings.filterwarnings("ignore", message="Detected pickle protocol")
        try:
            # Of a path torch goes by its suffix, whatever the file is.
            with path.open("rb") as file:
                content = torch.load(file, map_location="cpu", weights_only=True)
        except (TypeError, AttributeError) as error:
            # Some state does not suit what stands for its class.
            raise pickle.UnpicklingError(str(error)) from error
    if named and not any(_find_tensors(content)):
        # The user's own classes, or a library's, say more than torch's.
        classes = sorted(named, key=lambda name: (name.startswith("torch."), name))
        raise SetupError(
            f"the weights file '{path}' holds a whole pickled object ({', '.join(classes[:3])}), "
            "which only its own code can open, and no state dict: save model.state_dict()"
        )
    return content


def _find_tensors(content: Any, place: str = "", depth: int = 4) -> Iterator[tuple[str, State]]:
    """All dicts of tensors in a checkpoint, with their place in it."""
    if not isinstance(content, dict) or depth == 0:
        return
    tensors = {
        key: value
        for key, value in content.items()
        if isinstance(key, str) and torch.is_tensor(value)
    }
    if tensors:
        yield place, tensors
    for key, value in content.items():
        yield from _find_tensors(value, f"{place}[{key!r}]", depth - 1)


class _Reading(NamedTuple):
    """One way to read a checkpoint: the tensors below a prefix in one of its dicts."""

    fitting: int
    place: str
    prefix: str
    state: State
    of: int

    def __str__(self) -> str:
        names = f"the names that begin with '{self.prefix}'" if self.prefix else "all names"
        return f"{names} in checkpoint{self.place}"


def select_state(
    checkpoint: Any,
    wanted: Mapping[str, torch.Tensor],
    *,
    rename: Callable[[str], str | None],
    path: Path,
) -> State:
    """Choose the tensors that fit a network's state dict best, as float32 under its names.

    Names that fit as they are stay as they are.

    Raises:
        SetupError: there are no tensors, none fits, or two choices fit equally and differ.
    """
    dicts = list(_find_tensors(checkpoint))
    if not dicts:
        raise SetupError(f"the weights file '{path}' holds no state dict: save model.state_dict()")
    readings = [one for place, state in dicts for one in _readings(place, state, wanted, rename)]
    if not readings:
        known, given = next(iter(wanted), "none"), next(iter(dicts[0][1]))
        raise SetupError(
            f"the weights file '{path}' does not fit the encoder: it names its tensors like "
            f"'{given}', and the encoder like '{known}'; correct encoder.name"
        )
    most = max(one.fitting for one in readings)
    best, *others = (one for one in readings if one.fitting == most)
    if differing := [one for one in others if not _are_equal(best.state, one.state)]:
        raise SetupError(
            f"the weights file '{path}' holds several networks that fit the encoder: "
            f"{'; '.join(map(str, [best, *differing]))}; save the one that is meant into a file "
            "of its own"
        )
    if len(best.state) < best.of:
        _log.info("of '%s' %d tensors are not the network's", path, best.of - len(best.state))
    for name, tensor in best.state.items():
        if name in wanted and not _is_like(tensor, wanted[name]):
            raise SetupError(
                f"the weights file '{path}' holds '{name}' as {tensor.dtype}, {tensor.layout}, "
                "which the encoder cannot compute with: save the network's float weights, neither "
                "quantized nor sparse"
            )
    return {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in best.state.items()
    }


def _is_like(tensor: torch.Tensor, wanted: torch.Tensor) -> bool:
    is_plain = tensor.layout is torch.strided and not tensor.is_quantized
    return is_plain and tensor.is_floating_point() == wanted.is_floating_point()


def _readings(
    place: str,
    state: State,
    wanted: Mapping[str, torch.Tensor],
    rename: Callable[[str], str | None],
) -> list[_Reading]:
    """The ways to read one dict by which most tensors fit, and as it is if that is one of them."""
    found: list[_Reading] = []
    for change in (str, _unwrap):
        renamed = {new: tensor for old, tensor in state.items() if (new := rename(change(old)))}
        targets = {change(name): name for name in wanted}
        fitting: Counter[str] = Counter()
        for name, tensor in renamed.items():
            for prefix in _prefixes(name, targets):
                # Of networks with the same names, such as ResNets, the shapes decide.
                same = tensor.shape == wanted[targets[name.removeprefix(prefix)]].shape
                fitting[prefix] += 2 if same else 1
        most = max(fitting.values(), default=0)
        if most > max((one.fitting for one in found), default=0):
            best = [prefix for prefix, count in fitting.items() if count == most]
            prefixes = [""] if "" in best else best
            found = [
                _Reading(most, place, prefix, _below(prefix, renamed, targets), len(state))
                for prefix in prefixes
            ]
    return found


def _unwrap(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _prefixes(name: str, targets: Mapping[str, str]) -> Iterator[str]:
    """What stands before one of the network's names; usually nothing, or one prefix."""
    start = 0
    while True:
        if name[start:] in targets:
            yield name[:start]
        start = name.find(".", start) + 1
        if start == 0:
            return


def _below(prefix: str, state: State, targets: Mapping[str, str]) -> State:
    below = {
        name.removeprefix(prefix): tensor
        for name, tensor in state.items()
        if name.startswith(prefix)
    }
    return {targets.get(name, name): tensor for name, tensor in below.items()}


def _are_equal(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def pack_state(network: nn.Module) -> bytes:
    """A network's tensors in safetensors format; one that has several names is written once.

    Raises:
        SetupError: its state is more than tensors, or some have no values.
    """
    tensors: State = {}
    storages: set[int] = set()
    state = network.state_dict()
    for name, *_ in _tied_names(network):
        tensor = state[name]
        if not torch.is_tensor(tensor) or is_lazy(tensor) or tensor.is_meta:
            raise SetupError(
                f"'{name}' of the network is no tensor with values, and cannot be sent to workers; "
                "make it a parameter or a buffer that has some"
            )
        packed = tensor.detach().contiguous()
        storage = packed.untyped_storage().data_ptr()
        # The format refuses memory that two tensors share, such as a view's.
        tensors[name] = packed.clone() if storage in storages else packed
        storages.add(storage)
    return safetensors.torch.save(tensors)


def load_state(network: nn.Module, state: State) -> tuple[list[str], list[str]]:
    """Put tensors into a network as they are, without a copy; return its missing and unknown names.

    Raises:
        RuntimeError: some tensor has another shape.
    """
    complete = OrderedDict(state)
    for names in _tied_names(network):
        if given := [complete[name] for name in names if name in complete]:
            for name in names:
                complete.setdefault(name, given[0])
    # MNASNet reads its own version there. Other modules need none: that stands for the oldest,
    # whose names they still convert.
    version = {"": {"version": network._version}}
    complete._metadata = version  # type: ignore[attr-defined]
    missing, unknown = network.load_state_dict(complete, strict=False, assign=True)
    return missing, unknown


def _tied_names(network: nn.Module) -> list[list[str]]:
    """The names of each tensor: more than one where a module is registered twice."""
    names = defaultdict(list)
    # As long as it is held, no two tensors in it have one id.
    state = network.state_dict(keep_vars=True)
    for name, tensor in state.items():
        names[id(tensor)].append(name)
    return list(names.values())
