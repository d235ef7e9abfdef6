"""The machine that a result was measured on.

Only the standard library and torch are imported, for machines that have little else.
"""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

__all__ = ["describe_machine"]

_CPU_INFO = Path("/proc/cpuinfo")

_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve")
"""Those of /proc/cpuinfo on which the speed of a forward pass depends."""


def describe_machine() -> dict[str, Any]:
    """Return what a result file says of the machine.

    The flags tell more than the processor's name where that is vague.
    """
    processor, flags = _read_processor()
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": processor,
        "flags": flags,
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _read_processor() -> tuple[str, list[str]]:
    """Return the name and the known flags; Linux has no name of an Arm processor."""
    lines = _CPU_INFO.read_text().splitlines() if _CPU_INFO.exists() else []
    fields = {
        key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)
    }
    name = fields.get("model name") or platform.processor() or platform.machine()
    flags = fields.get("flags", fields.get("Features", "")).split()
    return name, [flag for flag in _FLAGS if flag in flags]
