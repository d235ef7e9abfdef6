"""What each further Python worker of a machine costs in memory.

    python benchmarks/workers.py [--encoder resnet50] [--images 128]

The same topic is drained with 1, 2 and 4 tasks at once. Memory is the proportional set size of the
Python daemon and its workers together, once all is done: what they share, such as torch and the
weights that they map, counts once.
"""

from __future__ import annotations

import argparse

import psutil
import torch

from images import jpegs
from report import bars, print_table, write_result
from stream_runs import drain, fill, opened, settings, workplace

TASKS = (1, 2, 4)


def main() -> None:
    arguments = _arguments()
    with workplace() as place:
        fill(place.servers, "images", list(jpegs(arguments.images)), partitions=max(TASKS))
        mib = {}
        for tasks in TASKS:
            config = settings(
                place,
                "images",
                encoder=arguments.encoder,
                weights=arguments.weights,
                master=f"local[{tasks},4]",
            )
            with opened(config) as (spark, model):
                drain(spark, config, model)
                mib[tasks] = _python_bytes() / 2**20
            weights = len(model.tensors) / 2**20
    _report(mib, weights, arguments)


def _python_bytes() -> int:
    return sum(map(_worker_bytes, psutil.Process().children(recursive=True)))


def _worker_bytes(process: psutil.Process) -> int:
    try:
        of_worker = "embedstream.worker.daemon" in process.cmdline()
        return int(process.memory_full_info().pss) if of_worker else 0
    except psutil.ZombieProcess:
        # Of the session before.
        return 0


def _report(mib: dict[int, float], weights: float, arguments: argparse.Namespace) -> None:
    further = (mib[TASKS[-1]] - mib[TASKS[0]]) / (TASKS[-1] - TASKS[0])
    print_table(
        f"{arguments.encoder}, weights of {weights:.0f} MiB, torch {torch.__version__}",
        ["", "MiB"],
        [
            *((f"{tasks} at once", round(size)) for tasks, size in mib.items()),
            ("each further worker", round(further)),
        ],
    )
    result = {"encoder": arguments.encoder, "weights_mib": weights, "mib": mib, "further": further}
    write_result("workers", result)
    labelled = {f"embedstream, tasks at once: {tasks}": size for tasks, size in mib.items()}
    bars("workers", "Memory of all Python workers", "MiB", labelled)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--encoder", default="resnet50")
    parser.add_argument("--weights", default="random")
    parser.add_argument("--images", type=int, default=128)
    return parser.parse_args()


if __name__ == "__main__":
    main()
