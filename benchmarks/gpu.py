"""From JPEG bytes to 2048 floats with ResNet-50 on one GPU, without Spark: core's pipeline alone.

    python benchmarks/gpu.py [--images 8192] [--decode-threads 16] [--pictures images.parquet]
        [--switches off pinned in-flight graphs compile gpu-decode]

The pipeline runs as a task runs it: items of bytes in batches of 256, decoded by many threads ahead
of one engine in bfloat16. Each turn runs it with each set of switches of `SWITCHES`, so that one
run shows what each brings, and with them their limits: decoding alone with the same threads, and
each engine alone on decoded pictures. No pipeline is faster than the slower of the two. The split
is of the engine's work for one full batch, each step waited for: stacking, the copy to the device,
the forward pass with its normalization, and the copy back.

CPU time is that of all threads, user and system. The GPU's utilisation is the mean of what
nvidia-smi reports each quarter of a second: the share of time in which any kernel ran.

It imports nothing but torch, torchvision, numpy, Pillow, pyarrow and the core. Pictures come from
`python benchmarks/images.py --out images.parquet`; without one they are made here, of coloured
noise. `--device cpu` runs it on a CPU, which ignores the switches.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image

HERE = Path(__file__).resolve().parent
# Where the package is not installed.
sys.path.append(str(HERE.parent / "core"))

from embedstream_core.engine.engine import Engine
from embedstream_core.engine.transfer import Finish
from embedstream_core.errors import SetupError
from embedstream_core.media.image.modality import IMAGE
from embedstream_core.media.image.opened_image import Pixels
from embedstream_core.media.modality import Sample
from embedstream_core.records import Embedding, Item, Media
from gpu_passes import Pass, measure
from gpu_report import report
from gpu_runs import SWITCHES, Run, open_run

ARROW_ROWS = 256
"""Messages in a batch, as `pipeline.arrow_batch_rows` has it."""

DISTINCT = 256

Split = dict[str, float]


def main() -> None:
    arguments = _arguments()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no NVIDIA GPU that torch can use is here: nothing was measured")
    contents = _contents(arguments)
    device = torch.device(arguments.device)
    skipped: dict[str, str] = {}
    runs: dict[str, Run] = {}
    for name in arguments.switches:
        try:
            runs[name] = open_run(
                SWITCHES[name],
                device,
                precision=arguments.precision,
                batch_size=arguments.batch_size,
            )
        except (SetupError, RuntimeError) as error:
            skipped[name] = str(error).partition("\n")[0]
            print(f"{name}: skipped: {skipped[name]}")
    if not runs:
        raise SystemExit("nothing was measured")
    size = next(iter(runs.values())).engine.batch_sizes["image"]
    _measure_turn(runs, contents[: 4 * size], arguments)
    turns = [_measure_turn(runs, contents, arguments) for _ in range(arguments.turns)]
    splits = {name: _split(run, arguments.split_passes) for name, run in runs.items()}
    switches = {name: asdict(run.switches) for name, run in runs.items()}
    report(turns, switches, splits, skipped, arguments, size)


def _measure_turn(
    runs: Mapping[str, Run], contents: Sequence[bytes], arguments: argparse.Namespace
) -> dict[str, dict[str, Pass]]:
    """Measure each system once; those that decode on the same device share that limit."""
    decoding: dict[str, Pass] = {}
    pictures: Sequence[Pixels] = []
    measured = {}
    for name, run in runs.items():
        kind = run.switches.decode_device
        if kind not in decoding:
            decoding[kind], pictures = _decode_all(run, contents, arguments)
        measured[name] = {
            "decoding alone": decoding[kind],
            "forward alone": _forward_all(run.engine, pictures, len(contents)),
            "pipeline": _run_pipeline(run, contents, arguments),
        }
    return measured


def _contents(arguments: argparse.Namespace) -> list[bytes]:
    """As many images as asked for; a few hundred of them, again and again."""
    if arguments.pictures is None:
        distinct = [_noise(seed) for seed in range(min(DISTINCT, arguments.images))]
    else:
        distinct = pq.read_table(arguments.pictures, columns=["content"])["content"].to_pylist()
    return list(islice(cycle(distinct), arguments.images))


def _noise(seed: int) -> bytes:
    """A 500x375 JPEG of about 60 kB, as photographs of that size are."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (24, 32, 3), np.uint8)).resize((500, 375))
    grain = random.normal(0, 10, (375, 500, 1))
    pixels = (np.asarray(coarse) + grain).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    return file.getvalue()


def _decode_all(
    run: Run, contents: Sequence[bytes], arguments: argparse.Namespace
) -> tuple[Pass, list[Pixels]]:
    opened = run.open_decoder(arguments.decode_threads)
    with opened as (decode, threads), ThreadPoolExecutor(threads) as pool:
        measured, pictures = measure(len(contents), lambda: list(pool.map(decode, contents)))
        return measured, pictures[:DISTINCT]


def _forward_all(engine: Engine, pictures: Sequence[Pixels], count: int) -> Pass:
    """The engine as the pipeline calls it: from pixels of single pictures to floats in memory."""
    media = Media("image/jpeg")
    size = engine.batch_sizes["image"]
    batch = [Sample((pixels,), media) for pixels in islice(cycle(pictures), size)]
    batches = max(1, count // size)

    def embed() -> None:
        started: deque[Finish] = deque()
        for _ in range(batches):
            started.append(engine.submit(batch, "image"))
            if len(started) == engine.in_flight:
                started.popleft()()
        while started:
            started.popleft()()

    return measure(batches * size, embed)[0]


def _run_pipeline(run: Run, contents: Sequence[bytes], arguments: argparse.Namespace) -> Pass:
    pipeline = run.build_pipeline(decode_threads=arguments.decode_threads, rows=arguments.rows)

    def embed() -> int:
        return sum(
            isinstance(outcome, Embedding)
            for outcomes in pipeline.run(_batches(contents))
            for (outcome,) in outcomes
        )

    measured, good = measure(len(contents), embed)
    if good != len(contents):
        raise SystemExit(f"only {good} of {len(contents)} images have an embedding")
    return measured


def _batches(contents: Sequence[bytes]) -> Iterator[list[Item]]:
    for start in range(0, len(contents), ARROW_ROWS):
        rows = contents[start : start + ARROW_ROWS]
        yield [Item(f"picture-{start + row}", content=each) for row, each in enumerate(rows)]


def _split(run: Run, count: int) -> Split:
    """Milliseconds of each step of a full batch, the median of so many passes after the first."""
    engine, side = run.engine, run.preprocessing.crop_px
    pictures = [np.zeros((side, side, 3), np.uint8) for _ in range(engine.batch_sizes["image"])]
    passes = [_split_once(engine, pictures) for _ in range(1 + count)][1:]
    return {name: 1000 * median(each[name] for each in passes) for name in passes[0]}


@torch.inference_mode()
def _split_once(engine: Engine, pictures: Sequence[Pixels]) -> Split:
    """The steps of the engine's own forward pass, each waited for."""
    forward: Any = engine.forwards["image"]
    seconds: Split = {}

    def timed(name: str, step: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = step()
        if engine.device.type == "cuda":
            torch.cuda.synchronize()
        seconds[name] = time.perf_counter() - started
        return result

    arrays = timed("stacking", lambda: IMAGE.collate(pictures, forward.allocate))
    images = timed("copy to the device", lambda: forward.transfer.upload(arrays))
    vectors = timed("normalization and forward", lambda: forward.compute(*images))
    timed("copy back", lambda: forward.transfer.download(vectors)())
    return seconds


def _arguments() -> argparse.Namespace:
    cores = os.cpu_count() or 1
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=8192, help="in one pass")
    parser.add_argument("--turns", type=int, default=3, help="of each, once all are warm")
    parser.add_argument("--split-passes", type=int, default=20)
    parser.add_argument("--decode-threads", type=int, default=cores)
    parser.add_argument("--rows", type=int, default=256, help="read ahead of the model")
    parser.add_argument("--batch-size", type=int, help="by default the engine's own")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--precision", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument(
        "--switches",
        nargs="+",
        choices=list(SWITCHES),
        default=list(SWITCHES),
        metavar="NAME",
        help=f"sets of switches to measure: {', '.join(SWITCHES)}; all by default",
    )
    parser.add_argument("--pictures", type=Path, help="Parquet with a column `content`")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of gpu.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
