"""Milliseconds to decode an image on one thread, and how far the pixels are from torchvision's.

    python benchmarks/decode.py [--images 50] [--megapixel-budget 100] [--turns 2]

The reference is what a torchvision user writes: Pillow's `convert("RGB")`, then `Resize` and
`CenterCrop` of ResNet-50's transforms. `exact` and `fast` are the two values of `decode.fidelity`.
Each image goes through all of them, in alternating order, and gives one ratio; `--turns` repeats
all. Milliseconds are medians over the images. Differences are of uint8 pixels, 0 to 255.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from statistics import fmean, median
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from embedstream_core.media.image.decode import open_image
from embedstream_core.media.image.fast_jpeg import render_quickly
from embedstream_core.media.image.opened_image import Pixels
from embedstream_core.media.sandbox import SandboxedDecoder
from embedstream_core.settings import DecodeSettings, Fidelity, Isolation
from free import PREPROCESSING
from images import jpegs
from report import bars, print_table, write_result
from turns import Ratio, order_turns

SIZES = ((500, 375), (1600, 1200), (4000, 3000))

Decode = Callable[[bytes], Pixels]

_TRANSFORMS = Compose(
    [Resize(PREPROCESSING.resize_px, InterpolationMode.BILINEAR), CenterCrop(PREPROCESSING.crop_px)]
)


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(1)
    decoder = SandboxedDecoder({"image": (PREPROCESSING,)}, DecodeSettings(), isolation=Isolation())
    with closing(decoder):
        ways = {**WAYS, "isolated": lambda content: decoder.decode(content, "image")[0].parts[0]}
        measured = {
            f"{width}x{height}": _measure(ways, _contents((width, height), arguments), arguments)
            for width, height in SIZES
        }
    _report(measured, arguments)


def _contents(size: tuple[int, int], arguments: argparse.Namespace) -> list[bytes]:
    """Fewer of the larger ones."""
    affordable = int(arguments.megapixel_budget * 1e6 / (size[0] * size[1]))
    return list(jpegs(max(4, min(arguments.images, affordable)), size=size))


def _reference(content: bytes) -> Pixels:
    return np.asarray(_TRANSFORMS(Image.open(io.BytesIO(content)).convert("RGB")))


def _own(fidelity: Fidelity) -> Decode:
    def decode(content: bytes) -> Pixels:
        opened = open_image(content, DecodeSettings())
        return render_quickly(content, opened, PREPROCESSING, fidelity=fidelity)[0]

    return decode


WAYS: Mapping[str, Decode] = {
    "torchvision": _reference,
    "exact": _own("exact"),
    "fast": _own("fast"),
}


def _measure(
    ways: Mapping[str, Decode], contents: list[bytes], arguments: argparse.Namespace
) -> dict[str, Any]:
    _time(ways, contents[:4])
    seconds = _time(ways, contents * arguments.turns)
    reference = seconds["torchvision"]
    return {
        "images": len(contents),
        "ms_an_image": {way: 1000 * median(own) for way, own in seconds.items()},
        "times_as_fast": {
            way: Ratio.of([one / other for one, other in zip(reference, own, strict=True)])
            for way, own in seconds.items()
        },
        "difference": {way: _difference(contents, WAYS[way]) for way in ("exact", "fast")},
    }


def _time(ways: Mapping[str, Decode], contents: Sequence[bytes]) -> dict[str, list[float]]:
    """Seconds of each image in each way."""
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for content, order in zip(contents, order_turns(list(ways), len(contents)), strict=True):
        for way in order:
            started = time.perf_counter()
            ways[way](content)
            taken[way].append(time.perf_counter() - started)
    return taken


def _difference(contents: Sequence[bytes], decode: Decode) -> dict[str, float]:
    differences = [
        np.abs(decode(content).astype(np.int16) - _reference(content)) for content in contents
    ]
    return {
        "max": float(max(each.max() for each in differences)),
        "mean": fmean(float(each.mean()) for each in differences),
    }


def _report(measured: Mapping[str, dict[str, Any]], arguments: argparse.Namespace) -> None:
    rows = [
        (
            f"{size}, {way}",
            each["ms_an_image"][way],
            each["times_as_fast"][way],
            each["difference"][way]["max"] if way in each["difference"] else "",
            each["difference"][way]["mean"] if way in each["difference"] else "",
        )
        for size, each in measured.items()
        for way in each["ms_an_image"]
    ]
    columns = ["JPEG", "ms an image", "times as fast", "largest difference", "mean difference"]
    print_table("Decoding to 224x224 on one thread", columns, rows)
    write_result("decode", {"turns": arguments.turns, "sizes": measured})
    ratios = {
        f"{size}, embedstream {way}": each["times_as_fast"][way]
        for size, each in measured.items()
        for way in ("exact", "fast", "isolated")
    }
    bars("decode", "Decoding to 224x224", "times as fast as torchvision", ratios)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=50, help="of each size, at most")
    parser.add_argument("--megapixel-budget", type=float, default=100, help="of each size, at most")
    parser.add_argument("--turns", type=int, default=2, help="of each image")
    return parser.parse_args()


if __name__ == "__main__":
    main()
