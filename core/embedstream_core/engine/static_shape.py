"""Compute model batches in one shape, for what is compiled or captured for that shape alone."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch.nn import functional

__all__ = ["Compute", "StaticShape", "capture_graph", "replay_if_possible"]

Compute: TypeAlias = Callable[..., torch.Tensor]
"""Computes float32 of shape (n, dimension) on the device of its inputs."""

_log = logging.getLogger(__name__)

# As in torch's documentation of CUDA graphs: cuDNN and cuBLAS choose and allocate in them.
_WARM_UPS = 3


@dataclass(frozen=True, slots=True)
class StaticShape:
    """Pads a model batch to `rows` rows for `static`, which computes no other shape.

    A batch of at most half the rows goes to `flexible` as it is: padding would more than double its
    work, and a batch that was halved because memory ran out would grow again.
    """

    static: Compute
    flexible: Compute
    rows: int

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Compute the vectors of uint8 (n, side, side, 3), n being up to `rows`."""
        count = len(pixels)
        if 2 * count <= self.rows:
            return self.flexible(pixels)
        missing = self.rows - count
        padded = functional.pad(pixels, (0, 0, 0, 0, 0, 0, 0, missing)) if missing else pixels
        return self.static(padded)[:count]


def capture_graph(compute: Compute, inputs: torch.Tensor) -> Compute:
    """Capture the kernels of a computation as a CUDA graph, which starts them all at once.

    The graph takes inputs of the same shape as these; it keeps them, and writes all results to the
    same memory: a result is valid until the next call. Steps are those of torch's documentation.

    Raises:
        RuntimeError: it cannot be captured, such as a computation that waits for its own results.
    """
    device = inputs.device
    current = torch.cuda.current_stream(device)
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    side.wait_stream(current)
    with torch.cuda.stream(side):
        for _ in range(_WARM_UPS):
            compute(inputs)
    current.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with (
        # A capture that fails leaves its stream the current one; this context restores it.
        torch.cuda.stream(current),
        # Other threads may use the device, to decode for example.
        torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"),
    ):
        outputs = compute(inputs)

    def replay(given: torch.Tensor) -> torch.Tensor:
        inputs.copy_(given)
        graph.replay()
        return outputs

    return replay


@torch.inference_mode()
def replay_if_possible(
    compute: Compute,
    inputs: torch.Tensor,
    *,
    capture: Callable[[Compute, torch.Tensor], Compute] = capture_graph,
) -> Compute:
    """Return a computation that replays a graph for batches of the shape of `inputs`.

    Where capturing fails, return `compute` as it is; the log says why.
    """
    try:
        static = capture(compute, inputs)
    except RuntimeError as error:
        # torch and the libraries below it raise various kinds of RuntimeError.
        reason = str(error).partition("\n")[0]
        _log.warning("no CUDA graph is used, because capturing it failed: %s", reason)
        _log.debug("capturing a CUDA graph failed", exc_info=True)
        return compute
    return StaticShape(static, compute, rows=len(inputs))
