"""Sessions of onnxruntime that share a machine with other tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

__all__ = ["open_session"]


def open_session(model: bytes, settings: Mapping[str, str] | None = None) -> Any:
    """Open an ONNX model on the CPU, with as many threads as torch has at that moment.

    So open it at the first pass, after the engine has set their number. `settings` are further
    entries of the session's configuration.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Spinning threads would take the cores from other tasks and from decoding.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    for name, value in (settings or {}).items():
        options.add_session_config_entry(name, value)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
