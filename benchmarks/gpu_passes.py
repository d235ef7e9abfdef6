"""What a pass of the benchmark for GPUs took: images a second, CPU time, the GPU's utilisation.

It imports nothing but torch, for machines that have little else.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean
from typing import TypeVar

import torch

__all__ = ["Pass", "measure"]

T = TypeVar("T")


@dataclass(frozen=True)
class Pass:
    """`gpu_percent` is None where nothing reads it."""

    images_per_s: float
    cpu_ms_an_image: float
    gpu_percent: float | None


def measure(count: int, work: Callable[[], T]) -> tuple[Pass, T]:
    """Do the work on so many images; return what it took, and what it returned."""
    with _read_utilization() as percents:
        cpu_s, started = time.process_time(), time.perf_counter()
        result = work()
        seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu_s
    percent = fmean(percents) if percents else None
    return Pass(count / seconds, 1000 * cpu_s / count, percent), result


@contextmanager
def _read_utilization() -> Iterator[list[int]]:
    """Yield a list that is full when the block has ended; it is empty where nothing reads it."""
    percents: list[int] = []
    command = shutil.which("nvidia-smi")
    if command is None or not torch.cuda.is_available():
        yield percents
        return
    gpu = f"--id=GPU-{torch.cuda.get_device_properties(0).uuid}"
    query = ["--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--loop-ms=250"]
    with subprocess.Popen(
        [command, gpu, *query], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            yield percents
        finally:
            process.terminate()
            lines = process.communicate()[0].split()
            percents += [int(line) for line in lines if line.isdecimal()]
