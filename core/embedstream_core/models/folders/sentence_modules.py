"""What follows the transformer in a folder of sentence-transformers, as `modules.json` names it.

A plain folder of transformers gets the mean over its tokens, as sentence-transformers gives it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import nn

from embedstream_core.errors import SetupError
from embedstream_core.models.failures import convert_errors
from embedstream_core.models.folders.packed_folders import WAY_OUT, read_json

__all__ = ["Pooling", "SentenceModule", "build_head", "read_modules", "read_pooling"]

_SUPPORTED = ("Transformer", "Pooling", "Dense", "Normalize")

_LEGACY_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""The switches of older folders, in the order in which several modes are concatenated."""


class SentenceModule(NamedTuple):
    """A line of `modules.json`: a class's name, and the folder of its files; None without one."""

    kind: str
    folder: Path | None


def read_modules(folder: Path) -> tuple[SentenceModule, ...]:
    """Return the modules of a folder, the first of which is the transformer.

    Raises:
        SetupError: a module is not supported, or is in an order that is not.
    """
    path = folder / "modules.json"
    if not path.exists():
        return SentenceModule("Transformer", folder), SentenceModule("Pooling", None)
    with convert_errors(f"'{path}' cannot be read", "write it with sentence-transformers"):
        modules = [_read_module(folder, line) for line in read_json(path)]
    kinds = [module.kind for module in modules]
    if kinds[:2] != ["Transformer", "Pooling"] or {"Transformer", "Pooling"} & {*kinds[2:]}:
        raise SetupError(
            f"'{path}' has the modules {', '.join(kinds) or '(none)'}; a transformer and its "
            f"pooling come first, and once; {WAY_OUT}"
        )
    return tuple(modules)


def _read_module(folder: Path, line: Mapping[str, str]) -> SentenceModule:
    package, _, kind = line["type"].rpartition(".")
    if package.partition(".")[0] != "sentence_transformers" or kind not in _SUPPORTED:
        raise SetupError(
            f"'{folder}' has the module '{line['type']}', which is not supported; known: "
            f"{', '.join(_SUPPORTED)}; {WAY_OUT}"
        )
    inner = folder / line["path"]
    if not inner.resolve().is_relative_to(folder.resolve()):
        raise SetupError(f"'{folder}' has a module at '{line['path']}', outside of it; {WAY_OUT}")
    return SentenceModule(kind, inner)


def read_pooling(module: SentenceModule) -> tuple[str, ...]:
    """Return the modes of a pooling module, whose vectors are concatenated.

    Raises:
        SetupError: a mode is not known.
    """
    config = {} if module.folder is None else read_json(module.folder / "config.json")
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [mode for key, mode in _LEGACY_MODES.items() if config.get(key)] or ["mean"]
    modes = (modes,) if isinstance(modes, str) else tuple(modes)
    for mode in modes:
        if mode not in _MODES:
            raise SetupError(f"the pooling mode '{mode}' is not known; known: {', '.join(_MODES)}")
    return modes


def build_head(modules: tuple[SentenceModule, ...]) -> nn.ModuleList:
    """Build what follows the pooling, with its weights; each takes and gives (n, dimension).

    Raises:
        SetupError: a setting is not supported, or weights are missing or pickled.
    """
    return nn.ModuleList(_BUILDERS[module.kind](module.folder) for module in modules[2:])


class Pooling(nn.Module):
    """Makes one vector of the tokens' vectors for each of its modes, and concatenates them."""

    def __init__(self, modes: tuple[str, ...]) -> None:
        super().__init__()
        self.modes = modes

    def forward(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Pool (n, tokens, dimension) in float32; the mask (n, tokens) is padded at the end."""
        # A sum in bfloat16 would lose digits.
        states = states.float()
        return torch.cat([_MODES[mode](states, mask) for mode in self.modes], dim=-1)


def _take_first(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return states[:, 0]


def _take_last(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return states[torch.arange(len(states), device=states.device), mask.sum(1) - 1]


def _take_maximum(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return states.masked_fill(mask.unsqueeze(-1) == 0, -torch.inf).amax(1)


def _average(states: torch.Tensor, mask: torch.Tensor, *, power: float = 1.0) -> torch.Tensor:
    weights = mask.unsqueeze(-1).to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1) ** power


def _average_by_position(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return _average(states, mask * torch.arange(1, mask.shape[1] + 1, device=mask.device))


_MODES: Mapping[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "cls": _take_first,
    "max": _take_maximum,
    "mean": _average,
    "mean_sqrt_len_tokens": partial(_average, power=0.5),
    "weightedmean": _average_by_position,
    "lasttoken": _take_last,
}
"""The modes of sentence-transformers' Pooling, by their names there."""


class _Dense(nn.Module):
    def __init__(self, config: Mapping[str, Any], activation: nn.Module) -> None:
        super().__init__()
        sizes = config["in_features"], config["out_features"]
        self.linear = nn.Linear(*sizes, bias=config.get("bias", True))
        self.activation = activation
        self.residual: nn.Module | None = None
        if config.get("use_residual"):
            same = sizes[0] == sizes[1]
            self.residual = nn.Identity() if same else nn.Linear(*sizes, bias=False)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        vectors = vectors.to(self.linear.weight.dtype)
        output: torch.Tensor = self.activation(self.linear(vectors))
        return output if self.residual is None else output + self.residual(vectors)


class _Normalize(nn.Module):
    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(vectors.float(), dim=-1)


def _build_dense(folder: Path) -> nn.Module:
    config = _read_vector_config(folder)
    name = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    package, _, class_name = name.rpartition(".")
    activation = getattr(nn, class_name, None) if package.startswith("torch.nn.") else None
    if not (isinstance(activation, type) and issubclass(activation, nn.Module)):
        raise SetupError(
            f"'{folder}' names the activation '{name}', which is not torch's; {WAY_OUT}"
        )
    dense = _Dense(config, activation())
    weights = folder / "model.safetensors"
    if not weights.exists():
        raise SetupError(
            f"'{folder}' holds no model.safetensors; weights in .bin files are pickles, and are "
            "not opened: save the model again with sentence-transformers"
        )
    dense.load_state_dict(safetensors.torch.load_file(weights))
    return dense


def _build_normalize(folder: Path) -> nn.Module:
    _read_vector_config(folder)
    return _Normalize()


def _read_vector_config(folder: Path) -> Mapping[str, Any]:
    """Read a module's settings; raise SetupError if it is not for the vectors of whole texts."""
    config: Mapping[str, Any] = read_json(folder / "config.json")
    for key in ("module_input_name", "module_output_name"):
        if (value := config.get(key) or "sentence_embedding") != "sentence_embedding":
            raise SetupError(f"'{folder}' has {key} '{value}', which is not supported; {WAY_OUT}")
    return config


_BUILDERS: Mapping[str, Callable[[Any], nn.Module]] = {
    "Dense": _build_dense,
    "Normalize": _build_normalize,
}
