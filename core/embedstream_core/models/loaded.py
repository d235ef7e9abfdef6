"""A network with the preprocessings of its modalities, ready for an engine.

Apart from `prepare`, so that an engine needs neither safetensors nor pydantic.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from embedstream_core.media.modalities import Preprocessing
from embedstream_core.settings import ModalityName

__all__ = ["LoadedModel"]


class LoadedModel(NamedTuple):
    """A network, and the preprocessings of its modalities, complete with their tokenizers.

    A network of several modalities is a ModuleDict with a branch for each, see `get_branch`.
    """

    network: nn.Module
    inputs: tuple[Preprocessing, ...]

    def get_branch(self, modality: ModalityName) -> nn.Module:
        """Return the module that embeds a modality."""
        if isinstance(self.network, nn.ModuleDict):
            return self.network[modality]
        return self.network
