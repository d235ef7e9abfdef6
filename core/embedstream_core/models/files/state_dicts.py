"""Read the tensors of one network from weights files as training scripts write them.

A checkpoint may hold a network's tensors at any place, next to optimizers, settings and averages of
themselves, and under names with prefixes: `module.` of DataParallel, `_orig_mod.` of a compiled
network, `model.` of Lightning, or the name of an attribute. No key has a fixed meaning here: the
tensors whose names fit the network are taken, without the prefix whose removal makes most of them
fit. If two choices fit equally well and differ, only the user can choose.
"""

from __future__ import annotations

import logging
import pickle
import re
import warnings
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
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

# torch's wrappers add these parts to names, at any place: modules may be wrapped one by one.
_WRAPPERS = re.compile(
    r"(?<![^.])(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)


# The first elements of a list in a checkpoint that are searched.
_MAX_LISTED = 8


def read_checkpoint(path: Path) -> Any:
    """Read a file of tensors and its other contents without running code from it.

    Raises:
        SetupError: it is not a file of tensors, is broken, or only its own code can read it.
        OSError: it cannot be read.
    """
    refuse_other_kinds(path, wanted=("safetensors", "torch"))
    kind = identify_file(path)
    try:
        if kind == "safetensors" or (kind is None and path.suffix == ".safetensors"):
            return safetensors.torch.load_file(path)
        return _load_pickled(path, is_zip=kind == "torch")
    except pickle.UnpicklingError as error:
        raise SetupError(
            f"the weights file '{path}' holds more than tensors, or is broken, and was not opened: "
            "save the network's state_dict(), or use safetensors"
        ) from error
    except SetupError:
        raise
    except Exception as error:
        # For broken files both libraries raise types of their own and many others.
        raise SetupError(
            f"the weights file '{path}' is broken, or of an unknown kind ({error}): fetch or save "
            "it again"
        ) from error


class _IgnoredMap:
    """Replaces a class that a checkpoint names by a dict: torch sets items in no other class."""

    def __new__(cls, *arguments: object) -> Any:
        return OrderedDict()


class _IgnoredNumber:
    """Replaces numpy's types, whose state is not a dict."""

    def __new__(cls, *arguments: object) -> Any:
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        pass


def _load_pickled(path: Path, *, is_zip: bool) -> Any:
    named: list[str] = []
    if is_zip:
        named = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    # Settings, metrics and the like become empty: no code is imported or run for them.
    stand_ins: list[Any] = [
        (_IgnoredNumber if name.startswith("numpy.") else _IgnoredMap, name) for name in named
    ]
    with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
        # torch warns of pickles that another tool wrote, then reads or refuses them.
        warnings.filterwarnings("ignore", message="Detected pickle protocol")
        try:
            # An open file, because torch chooses the format of a path by its suffix.
            with path.open("rb") as file:
                content = torch.load(file, map_location="cpu", weights_only=True)
        except (TypeError, AttributeError) as error:
            # Some kinds of state do not suit the class that replaces theirs.
            raise pickle.UnpicklingError(str(error)) from error
    if named and not any(_find_tensors(content)):
        # Classes of the user or of a library say more than those of torch.
        classes = sorted(named, key=lambda name: (name.startswith("torch."), name))
        raise SetupError(
            f"the weights file '{path}' holds a whole pickled object ({', '.join(classes[:3])}), "
            "which only its own code can open, and no state dict: save model.state_dict()"
        )
    return content


def _find_tensors(content: Any, place: str = "", depth: int = 4) -> Iterator[tuple[str, State]]:
    """Yield all dicts of tensors in a checkpoint, with their place in it."""
    if isinstance(content, list | tuple):
        # Such as a network's state and its optimizer's.
        content = dict(enumerate(content[:_MAX_LISTED]))
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
    """One way to read a checkpoint: the tensors below a prefix in one of its dicts.

    `total` is the number of tensors in that dict.
    """

    score: int
    place: str
    prefix: str
    state: State
    total: int

    def __str__(self) -> str:
        """Describe the reading for the user who has to choose."""
        names = f"the names that begin with '{self.prefix}'" if self.prefix else "all names"
        return f"{names} in checkpoint{self.place}"

    def convert(self, wanted: Mapping[str, torch.Tensor], path: Path) -> State:
        """Return the tensors in float32; raise SetupError for those it cannot use."""
        if foreign := self.total - len(self.state):
            _log.info("%d tensors of '%s' do not belong to the network", foreign, path)
        converted: State = {}
        for name, tensor in self.state.items():
            is_plain = tensor.layout is torch.strided and not tensor.is_quantized
            is_float = tensor.is_floating_point()
            if name in wanted and tensor.is_meta:
                raise SetupError(
                    f"the weights file '{path}' holds '{name}' without its values (on the device "
                    "'meta'): load the model's weights before its state dict is saved"
                )
            if name in wanted and not (is_plain and is_float == wanted[name].is_floating_point()):
                raise SetupError(
                    f"the weights file '{path}' holds '{name}' as {tensor.dtype}, {tensor.layout}, "
                    "which the encoder cannot compute with: save the network's float weights, "
                    "neither quantized nor sparse"
                )
            converted[name] = tensor.float() if is_float else tensor
        return converted


def select_state(
    checkpoint: Any,
    wanted: Mapping[str, torch.Tensor],
    *,
    rename: Callable[[str], str | None],
    path: Path,
) -> State:
    """Choose the tensors that fit a network's state dict best, as float32 under its names.

    Names that already fit are not changed.

    Raises:
        SetupError: there are no tensors, none fits, two choices fit equally well and differ, or
            the tensors are quantized, sparse or without values.
    """
    dicts = list(_find_tensors(checkpoint))
    if not dicts:
        raise SetupError(f"the weights file '{path}' holds no state dict: save model.state_dict()")
    readings = [
        one for place, state in dicts for one in _list_readings(place, state, wanted, rename)
    ]
    if not readings:
        known, given = next(iter(wanted), "none"), next(iter(dicts[0][1]))
        raise SetupError(
            f"the weights file '{path}' does not fit the encoder: it names its tensors like "
            f"'{given}', and the encoder like '{known}'; correct encoder.name"
        )
    most = max(one.score for one in readings)
    best, *others = (one for one in readings if one.score == most)
    differing = [
        one
        for one in others
        if one.state.keys() != best.state.keys()
        or not all(torch.equal(one.state[name], best.state[name]) for name in best.state)
    ]
    if differing:
        raise SetupError(
            f"the weights file '{path}' holds several networks that fit the encoder: "
            f"{'; '.join(map(str, [best, *differing]))}; save the one that is meant into a file "
            "of its own"
        )
    return best.convert(wanted, path)


def _list_readings(
    place: str,
    state: State,
    wanted: Mapping[str, torch.Tensor],
    rename: Callable[[str], str | None],
) -> list[_Reading]:
    """Return the readings of one dict that fit most tensors; only the unprefixed one if it does."""
    found: list[_Reading] = []
    for change in (str, partial(_WRAPPERS.sub, "")):
        renamed = {new: tensor for old, tensor in state.items() if (new := rename(change(old)))}
        targets = {change(name): name for name in wanted}
        fitting: Counter[str] = Counter()
        for name, tensor in renamed.items():
            for start in [0, *(dot.end() for dot in re.finditer(r"\.", name))]:
                if target := targets.get(name[start:]):
                    # Shapes distinguish networks with the same names, such as ResNets.
                    is_same = tensor.shape == wanted[target].shape
                    fitting[name[:start]] += 2 if is_same else 1
        most = max(fitting.values(), default=0)
        if most <= max((one.score for one in found), default=0):
            continue
        best = [prefix for prefix, count in fitting.items() if count == most]
        found = []
        for prefix in [""] if "" in best else best:
            below = {
                name.removeprefix(prefix): tensor
                for name, tensor in renamed.items()
                if name.startswith(prefix)
            }
            named = {targets.get(name, name): tensor for name, tensor in below.items()}
            found.append(_Reading(most, place, prefix, named, len(state)))
    return found


def pack_state(network: nn.Module) -> bytes:
    """Return a network's tensors in safetensors format; one with several names is written once.

    Raises:
        SetupError: its state is more than tensors, or some have no values.
    """
    tensors: State = {}
    storages: set[int] = set()
    state = network.state_dict()
    for name, *_ in _list_tied_names(network):
        tensor = state[name]
        if not torch.is_tensor(tensor) or is_lazy(tensor) or tensor.is_meta:
            raise SetupError(
                f"'{name}' of the network is not a tensor with values, and cannot be sent to "
                "workers; make it a parameter or a buffer with values"
            )
        packed = tensor.detach().contiguous()
        storage = packed.untyped_storage().data_ptr()
        # The format refuses memory that two tensors share, such as that of a view.
        tensors[name] = packed.clone() if storage in storages else packed
        storages.add(storage)
    return safetensors.torch.save(tensors)


def load_state(network: nn.Module, state: State) -> tuple[list[str], list[str]]:
    """Load tensors into a network without copying them; return its missing and unknown names.

    Raises:
        RuntimeError: some tensor has another shape.
    """
    complete = OrderedDict(state)
    for names in _list_tied_names(network):
        if given := [complete[name] for name in names if name in complete]:
            for name in names:
                complete.setdefault(name, given[0])
    # MNASNet reads its own version there. Other modules need no version: without one they assume
    # the oldest, whose names they still convert.
    version = {"": {"version": network._version}}
    complete._metadata = version  # type: ignore[attr-defined]
    missing, unknown = network.load_state_dict(complete, strict=False, assign=True)
    return missing, unknown


def _list_tied_names(network: nn.Module) -> list[list[str]]:
    """Return the names of each tensor: more than one if a module is registered twice."""
    names = defaultdict(list)
    # While this dict exists, no two tensors in it have the same id.
    state = network.state_dict(keep_vars=True)
    for name, tensor in state.items():
        names[id(tensor)].append(name)
    return list(names.values())
