"""The table and the JSON file of the benchmark for GPUs, without libraries for tables."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch

from gpu_passes import Pass
from machine import describe_machine

__all__ = ["report"]


def report(
    turns: Sequence[Mapping[str, Mapping[str, Pass]]],
    switches: Mapping[str, Mapping[str, Any]],
    splits: Mapping[str, dict[str, float]],
    skipped: Mapping[str, str],
    arguments: argparse.Namespace,
    batch_size: int,
) -> None:
    device = torch.cuda.get_device_name() if arguments.device == "cuda" else "no GPU"
    machine = describe_machine()
    print(
        f"ResNet-50, {arguments.precision}, batches of {batch_size}, on {device}, "
        f"{arguments.decode_threads} decoding threads on {machine['processor']}"
    )
    titles = ("images/s:", "pipeline", "forward", "decoding", "share", "CPU ms", "GPU busy")
    print(f"  {titles[0]:<12}" + "".join(f"{title:>10}" for title in titles[1:]))
    results = {}
    for name in turns[0]:
        results[name] = found = _summarize([each[name] for each in turns])
        rates, busy = found["images_per_s"], found["gpu_percent"]["pipeline"]
        cells = [f"{rates[kind]:.1f}" for kind in ("pipeline", "forward alone", "decoding alone")]
        cells.append(f"{found['share_of_slower_limit']:.1%}")
        cells.append(f"{found['cpu_ms_an_image']['pipeline']:.2f}")
        cells.append("not read" if busy is None else f"{busy:.0f} %")
        print(f"  {name:<12}" + "".join(f"{cell:>10}" for cell in cells))
    print("ms of a full batch, each step waited for")
    for name, split in splits.items():
        steps = ", ".join(f"{step} {milliseconds:.2f}" for step, milliseconds in split.items())
        print(f"  {name:<12}  {steps}")
    result = {
        "device": device,
        "precision": arguments.precision,
        "images": arguments.images,
        "batch_size": batch_size,
        "decode_threads": arguments.decode_threads,
        "read_ahead_rows": arguments.rows,
        "switches": {
            name: {**switches[name], **found, "ms_a_batch": splits[name]}
            for name, found in results.items()
        },
        "skipped": skipped,
        "turns": [
            {
                name: {kind: asdict(one) for kind, one in passes.items()}
                for name, passes in each.items()
            }
            for each in turns
        ],
    }
    _write({"machine": machine, **result}, arguments.out)


def _write(result: Mapping[str, Any], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    path = out / "gpu.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written: {path}")


def _summarize(turns: Sequence[Mapping[str, Pass]]) -> dict[str, Any]:
    """Medians over the turns; the share is that of each turn's own limits."""
    kinds = list(turns[0])
    percents = {kind: [each[kind].gpu_percent for each in turns] for kind in kinds}
    return {
        "images_per_s": {kind: median(each[kind].images_per_s for each in turns) for kind in kinds},
        "share_of_slower_limit": median(
            each["pipeline"].images_per_s
            / min(each["decoding alone"].images_per_s, each["forward alone"].images_per_s)
            for each in turns
        ),
        "cpu_ms_an_image": {
            kind: median(each[kind].cpu_ms_an_image for each in turns) for kind in kinds
        },
        "gpu_percent": {
            kind: median(read) if (read := [one for one in found if one is not None]) else None
            for kind, found in percents.items()
        },
    }
