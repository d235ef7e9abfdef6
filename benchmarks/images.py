"""JPEG pictures of one size, cut from the real ones of scikit-image and scikit-learn.

    python benchmarks/images.py --out images.parquet [--count 256]

writes a Parquet file of them, for a machine that has neither package.
"""

from __future__ import annotations

import argparse
import io
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import skimage.data
import sklearn.datasets
from PIL import Image

__all__ = ["jpegs", "write_images"]

SCENES = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "hubble_deep_field.jpg",
    "motorcycle_left.png",
    "rocket.jpg",
    "china.jpg",
    "flower.jpg",
)


def jpegs(
    count: int,
    *,
    size: tuple[int, int] = (500, 375),
    share: tuple[float, float] = (0.6, 1.0),
    seed: int = 0,
) -> Iterator[bytes]:
    """Crops of real pictures, scaled to `size`, each with bytes of its own.

    A crop has a random `share` of the picture's width and height.
    """
    choose = random.Random(seed)
    scenes = [Image.open(_path(name)).convert("RGB") for name in SCENES]
    for index in range(count):
        yield _jpeg(_crop(scenes[index % len(scenes)], choose, share).resize(size), choose)


def write_images(path: Path, contents: Sequence[bytes]) -> Path:
    """A Parquet file of `id` and `content`."""
    ids = [f"picture-{index:05}" for index in range(len(contents))]
    content = pa.array(contents, pa.binary())
    pq.write_table(pa.table({"id": ids, "content": content}), path, row_group_size=100)
    return path


def _crop(image: Image.Image, choose: random.Random, share: tuple[float, float]) -> Image.Image:
    drawn = choose.uniform(*share)
    width, height = int(image.width * drawn), int(image.height * drawn)
    left, top = choose.randint(0, image.width - width), choose.randint(0, image.height - height)
    return image.crop((left, top, left + width, top + height))


def _jpeg(image: Image.Image, choose: random.Random) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=choose.randint(80, 95))
    return file.getvalue()


def _path(name: str) -> Path:
    folders = (
        Path(skimage.data.__file__).parent,
        Path(sklearn.datasets.__file__).parent / "images",
    )
    return next(folder / name for folder in folders if (folder / name).exists())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=256)
    arguments = parser.parse_args()
    write_images(arguments.out, list(jpegs(arguments.count)))


if __name__ == "__main__":
    main()
