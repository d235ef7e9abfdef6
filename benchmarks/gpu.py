"""From JPEG bytes to 2048 floats with ResNet-50 on one GPU, without Spark: core's pipeline alone.

    python benchmarks/gpu.py [--images 8192] [--decode-threads 16] [--pictures images.parquet]

The pipeline runs as a task runs it: items of bytes in batches of 256, decoded by many threads ahead
of one engine in bfloat16. In the same rounds: decoding alone with the same threads, and
the engine alone on decoded pictures. No pipeline is faster than the slower of the two. The split is
of the engine's work for one full batch: stacking, the copy to the device, the forward pass with its
normalization, and the copy back.

It imports nothing but torch, torchvision, numpy, Pillow and pyarrow. Pictures come from
`python benchmarks/images.py --out images.parquet`; without one they are made here, of coloured
noise.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
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
from embedstream_core.media.image.decode import open_image
from embedstream_core.media.image.fast_jpeg import render_quickly
from embedstream_core.media.image.opened_image import Pixels
from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.media.modality import Sample
from embedstream_core.models.encoders.catalog import find_encoder
from embedstream_core.models.loaded import LoadedModel
from embedstream_core.pipeline.pipeline import Pipeline
from embedstream_core.records import Embedding, Item, Media
from embedstream_core.settings import DecodeSettings, PipelineLimits

ARROW_ROWS = 256
"""Messages in a batch, as `pipeline.arrow_batch_rows` has it."""

DISTINCT = 256
SPLIT_PASSES = 20

Round = dict[str, float]


def main() -> None:
    arguments = _arguments()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no NVIDIA GPU that torch can use is here: nothing was measured")
    contents = _contents(arguments)
    engine, preprocessing = _engine(torch.device(arguments.device), arguments)

    def one_round(images: Sequence[bytes]) -> Round:
        decoding, pictures = _decode_rate(images, preprocessing, arguments.decode_threads)
        return {
            "decoding alone": decoding,
            "forward alone": _forward_rate(engine, pictures, len(images)),
            "embedstream's pipeline": _pipeline_rate(engine, images, arguments),
        }

    one_round(contents[: 4 * engine.batch_sizes["image"]])
    rounds = [one_round(contents) for _ in range(arguments.rounds)]
    split = _split(engine, preprocessing.crop_px)
    _report(rounds, split, engine.batch_sizes["image"], arguments)


def _engine(
    device: torch.device, arguments: argparse.Namespace
) -> tuple[Engine, ImagePreprocessing]:
    """ResNet-50 with random weights, which are as fast as trained ones."""
    encoder = find_encoder("resnet50")
    torch.manual_seed(0)
    model = encoder.build()
    encoder.cut(model)
    preprocessing = encoder.default_weights.preprocessing
    assert preprocessing is not None
    engine = Engine.start(
        LoadedModel(model.eval(), (preprocessing,)),
        device=device,
        precision=arguments.precision,
        backend=arguments.backend,
        batch_size=arguments.batch_size,
    )
    return engine, preprocessing


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


def _decode_rate(
    contents: Sequence[bytes], preprocessing: ImagePreprocessing, threads: int
) -> tuple[float, list[Pixels]]:
    def decode(content: bytes) -> Pixels:
        opened = open_image(content, DecodeSettings())
        return render_quickly(content, opened, preprocessing)[0]

    with ThreadPoolExecutor(threads) as pool:
        started = time.perf_counter()
        pictures = list(pool.map(decode, contents))
        return len(contents) / (time.perf_counter() - started), pictures[:DISTINCT]


def _forward_rate(engine: Engine, pictures: Sequence[Pixels], count: int) -> float:
    """The engine as the pipeline calls it: from pixels of single pictures to floats in memory."""
    media = Media("image/jpeg")
    size = engine.batch_sizes["image"]
    batch = [Sample((pixels,), media) for pixels in islice(cycle(pictures), size)]
    batches = max(1, count // size)
    started = time.perf_counter()
    for _ in range(batches):
        engine.embed(batch, "image")
    return batches * size / (time.perf_counter() - started)


def _pipeline_rate(
    engine: Engine,
    contents: Sequence[bytes],
    arguments: argparse.Namespace,
) -> float:
    limits = PipelineLimits(decode_threads=arguments.decode_threads, rows=arguments.rows)
    pipeline = Pipeline([engine], fetch=_no_fetch, limits=limits)
    started = time.perf_counter()
    good = sum(
        isinstance(outcome, Embedding)
        for outcomes in pipeline.run(_batches(contents))
        for (outcome,) in outcomes
    )
    seconds = time.perf_counter() - started
    if good != len(contents):
        raise SystemExit(f"only {good} of {len(contents)} images have an embedding")
    return good / seconds


def _batches(contents: Sequence[bytes]) -> Iterator[list[Item]]:
    for start in range(0, len(contents), ARROW_ROWS):
        rows = contents[start : start + ARROW_ROWS]
        yield [Item(f"picture-{start + row}", content=each) for row, each in enumerate(rows)]


def _no_fetch(uri: str) -> bytes:
    raise ValueError(f"{uri} is not fetched: all images come as bytes")


def _split(engine: Engine, side: int) -> Round:
    """Milliseconds of each piece of a full batch, the median of some passes."""
    forward: Any = engine.forwards["image"]
    if not hasattr(forward, "compute"):
        return {}
    pictures = [np.zeros((side, side, 3), np.uint8) for _ in range(engine.batch_sizes["image"])]
    passes = [_split_once(forward, pictures) for _ in range(SPLIT_PASSES)][1:]
    return {name: 1000 * median(each[name] for each in passes) for name in passes[0]}


@torch.inference_mode()
def _split_once(forward: Any, pictures: Sequence[Pixels]) -> Round:
    """The steps of the engine's own forward pass, each waited for."""
    seconds: Round = {}

    def timed(name: str, step: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = step()
        if forward.device.type == "cuda":
            torch.cuda.synchronize()
        seconds[name] = time.perf_counter() - started
        return result

    pixels = timed("stacking", lambda: np.stack(pictures))
    images = timed("copy to the device", lambda: forward.upload((pixels,)))
    vectors = timed("normalization and forward", lambda: forward.compute(*images))
    timed("copy back", lambda: vectors.cpu().numpy())
    return seconds


def _report(
    rounds: list[Round], split: Round, batch_size: int, arguments: argparse.Namespace
) -> None:
    rates = {name: median(each[name] for each in rounds) for name in rounds[0]}
    share = median(
        each["embedstream's pipeline"] / min(each["decoding alone"], each["forward alone"])
        for each in rounds
    )
    device = torch.cuda.get_device_name() if arguments.device == "cuda" else "CPU"
    print(f"ResNet-50, {arguments.precision}, on {device}, {arguments.decode_threads} threads")
    for name, rate in rates.items():
        print(f"  {name:<28}{rate:>10.1f} images/s")
    print(f"  of the slower of the two    {share:>10.1%}")
    print(f"one batch of {batch_size}")
    for name, milliseconds in split.items():
        print(f"  {name:<28}{milliseconds:>10.2f} ms")
    _write(
        {
            "device": device,
            "precision": arguments.precision,
            "backend": arguments.backend,
            "images": arguments.images,
            "batch_size": batch_size,
            "decode_threads": arguments.decode_threads,
            "read_ahead_rows": arguments.rows,
            "images_per_s": rates,
            "share_of_slower_limit": share,
            "ms_a_batch": split,
            "rounds": rounds,
        },
        arguments.out,
    )


def _write(result: dict[str, Any], out: Path) -> None:
    machine = {
        "date": datetime.now(UTC).date().isoformat(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    out.mkdir(parents=True, exist_ok=True)
    path = out / "gpu.json"
    path.write_text(json.dumps({"machine": machine, **result}, indent=2) + "\n")
    print(f"written: {path}")


def _arguments() -> argparse.Namespace:
    cores = os.cpu_count() or 1
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=8192, help="in one pass")
    parser.add_argument("--rounds", type=int, default=3, help="passes once warm")
    parser.add_argument("--decode-threads", type=int, default=cores)
    parser.add_argument("--rows", type=int, default=256, help="read ahead of the model")
    parser.add_argument("--batch-size", type=int, help="by default the engine's own")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--precision", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--backend", choices=("torch", "compile"), default="torch")
    parser.add_argument("--pictures", type=Path, help="Parquet with a column `content`")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of gpu.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
