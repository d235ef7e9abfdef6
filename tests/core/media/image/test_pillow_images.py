"""Every image in Pillow's own tests, including those that once broke it."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path

import PIL
import psutil
import pytest
import torch
from torch import nn

from embedstream_core.errors import Code
from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.pipeline.pipeline import Pipeline
from embedstream_core.records import Failure, Item, Outcome
from embedstream_core.settings import IMAGE_FORMATS, DecodeSettings
from engines import run_only, start_engine

CACHE = Path(__file__).parents[4] / ".tools" / "pillow-images"
DEADLINE_S = 10
MOST_MEMORY = 500 * 2**20


@pytest.fixture(scope="module")
def images() -> list[Path]:
    """Return the images in the source archive of the installed Pillow, downloaded once."""
    folder = CACHE / PIL.__version__
    if not folder.exists():
        _fetch(folder)
    return sorted(path for path in folder.rglob("Tests/images/**/*") if path.is_file())


def _fetch(folder: Path) -> None:
    download = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--no-binary=:all:",
    ]
    subprocess.run([*download, f"--dest={CACHE}", f"pillow=={PIL.__version__}"], check=True)
    (archive,) = CACHE.glob(f"pillow-{PIL.__version__}.tar.gz")
    draft = folder.with_suffix(".draft")
    with tarfile.open(archive) as tar:
        inside = [member for member in tar if "/Tests/images/" in member.name]
        tar.extractall(draft, members=inside, filter="data")
    draft.rename(folder)
    archive.unlink()


class MeanColour(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3)) + 1


def never(uri: str) -> bytes:
    raise AssertionError(uri)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("settings", "decoded"),
    [
        (DecodeSettings(), 500),
        (DecodeSettings(formats=IMAGE_FORMATS, color="srgb"), 590),
    ],
    ids=["by default", "all formats, in sRGB"],
)
def test_each_has_an_outcome_in_time_and_memory_stays_flat(
    images: list[Path], settings: DecodeSettings, decoded: int
) -> None:
    preprocessing = ImagePreprocessing(256, 224, "bilinear", (0, 0, 0), (1, 1, 1))
    engine = start_engine(MeanColour(), preprocessing)
    pipeline = Pipeline([engine], fetch=never, decode_settings=settings)
    before = psutil.Process().memory_info().rss
    outcomes: dict[str, Outcome] = {}
    for path in images:
        start = time.monotonic()
        item = Item(path.name, content=path.read_bytes())
        ((outcomes[path.name],),) = run_only(pipeline, [[item]])
        assert time.monotonic() - start < DEADLINE_S, path.name
        assert psutil.Process().memory_info().rss - before < MOST_MEMORY, path.name

    codes = Counter(
        outcome.code if isinstance(outcome, Failure) else None for outcome in outcomes.values()
    )
    assert len(images) > 900
    assert codes[None] > decoded
    assert set(codes) == {
        None,
        Code.IMAGE_UNSUPPORTED,
        Code.IMAGE_CORRUPT,
        Code.IMAGE_TOO_LARGE,
    }
    broken = [name for name in outcomes if name.startswith(("crash-", "oom-", "timeout-"))]
    assert len(broken) > 25
    assert all(isinstance(outcomes[name], Failure) for name in broken)
