"""Training in one process; several processes are tested over Spark."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import nn

from embedstream_core.errors import Code, SetupError
from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.models.card import PreparedModel
from embedstream_core.models.encoders.catalog import find_encoder
from embedstream_core.models.prepare import ModelSpec, load_prepared, prepare_model
from embedstream_core.settings import DecodeSettings
from embedstream_core.training.blocks import select_blocks
from embedstream_core.training.checkpoint import Epoch, export_tensors, read_finished_epochs
from embedstream_core.training.examples import Example, LabelledImages, shuffle
from embedstream_core.training.settings import TrainingSettings
from embedstream_core.training.trainer import Trainer, join_process_group

SIDE = 16
SMALL = ImagePreprocessing(SIDE, SIDE, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
SETTINGS = TrainingSettings(epochs=3, batch_size=8, learning_rate=1e-2, blocks=1)

Tensors = dict[str, torch.Tensor]


def network() -> tuple[nn.Module, ImagePreprocessing]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        convolution = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU())
        dense = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 8), nn.Dropout(0.1)]
        return nn.Sequential(convolution, *dense).eval(), SMALL


@pytest.fixture(scope="module")
def model() -> PreparedModel:
    return prepare_model(ModelSpec(f"{__name__}:network"))


@pytest.fixture(autouse=True)
def group(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Create a group of this process alone."""
    environment = {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 0}
    for name, value in environment.items():
        monkeypatch.setenv(name, str(value))
    with join_process_group(torch.device("cpu")):
        yield


def picture(label: int, random: np.random.Generator) -> bytes:
    """Return noise whose upper half is brighter in one class, and the lower half in the other."""
    pixels = random.integers(100, size=(SIDE, SIDE, 3), dtype=np.uint8)
    half = slice(SIDE // 2) if label else slice(SIDE // 2, None)
    pixels[half] += 100
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def examples(count: int, *, seed: int) -> list[Example]:
    random = np.random.default_rng(seed)
    return [Example(picture(index % 2, random), index % 2) for index in range(count)]


def pictures(folder: Path, rows: Sequence[Example], *, files: int = 3) -> LabelledImages:
    folder.mkdir(exist_ok=True)
    for index in range(files):
        columns = {"content": [], "label": []} | {
            name: [getattr(row, name) for row in rows[index::files]] for name in Example._fields
        }
        schema = pa.schema({"content": pa.binary(), "label": pa.int32()})
        pq.write_table(pa.table(columns, schema), folder / f"{index}.parquet")
    return LabelledImages(tuple(sorted(folder.iterdir())), SMALL, DecodeSettings())


def run(
    model: PreparedModel,
    folder: Path,
    settings: TrainingSettings = SETTINGS,
    *,
    rows: Sequence[Example] | None = None,
    end_after: int | None = None,
) -> list[Epoch]:
    """Train in a folder and return the reports; `end_after` is an epoch that fails at its end."""
    folder.mkdir(exist_ok=True)
    reports: list[Epoch] = []

    def on_epoch(epoch: Epoch) -> None:
        reports.append(epoch)
        if epoch.number == end_after:
            raise InterruptedError

    trainer = Trainer(
        model.card,
        load_prepared(model).network,
        training=pictures(folder / "train", rows or examples(60, seed=1)),
        held_out=pictures(folder / "held_out", examples(20, seed=2)),
        classes=2,
        settings=settings,
        device=torch.device("cpu"),
    )
    trainer.run(folder / "checkpoint.pt", on_epoch=on_epoch)
    return reports


def tensors(model: PreparedModel, folder: Path) -> Tensors:
    return safetensors.torch.load(export_tensors(folder / "checkpoint.pt", model.card))


def changed(model: PreparedModel, folder: Path) -> set[str]:
    before, after = safetensors.torch.load(model.tensors), tensors(model, folder)
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_training_learns_and_the_result_is_an_encoder(model: PreparedModel, tmp_path: Path) -> None:
    reports = run(model, tmp_path)

    assert [epoch.number for epoch in reports] == [1, 2, 3]
    assert reports[-1].accuracy > 0.9
    assert (reports[-1].judged, reports[-1].rows, reports[-1].skipped) == (20, (60,), {})
    assert reports[-1].loss < reports[0].loss
    content = export_tensors(tmp_path / "checkpoint.pt", model.card)
    path = tmp_path / "encoder.safetensors"
    path.write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    again = prepare_model(ModelSpec(model.card.encoder, str(path), sha256))
    assert again.card.dimension == model.card.dimension
    assert again.card.tensors_sha256 != model.card.tensors_sha256


@pytest.mark.parametrize(
    ("trainable", "expected"),
    [
        ("head", set()),
        ("last_blocks", {"3.weight", "3.bias"}),
        # Batch norms keep their statistics.
        (
            "all",
            {f"{layer}.{name}" for layer in ("0.0", "0.1", "3") for name in ("weight", "bias")},
        ),
    ],
)
def test_only_the_chosen_blocks_change(
    model: PreparedModel, tmp_path: Path, trainable: str, expected: set[str]
) -> None:
    settings = replace(SETTINGS, trainable=trainable)  # type: ignore[arg-type]
    reports = run(model, tmp_path, settings)

    assert changed(model, tmp_path) == expected
    assert reports[-1].loss < reports[0].loss
    assert {"(none).weight", "(none).bias"} <= tensors(model, tmp_path).keys()


def test_an_interrupted_training_gives_the_same_result(
    model: PreparedModel, tmp_path: Path
) -> None:
    whole, interrupted = tmp_path / "whole", tmp_path / "interrupted"
    run(model, whole)
    with pytest.raises(InterruptedError):
        run(model, interrupted, end_after=1)
    done = read_finished_epochs(interrupted / "checkpoint.pt")

    resumed = run(model, interrupted)

    assert [epoch.number for epoch in done] == [1]
    assert [epoch.number for epoch in resumed] == [2, 3]
    assert read_finished_epochs(interrupted / "checkpoint.pt") == [*done, *resumed]
    one, other = tensors(model, whole), tensors(model, interrupted)
    for name in one:
        torch.testing.assert_close(other[name], one[name])
    assert run(model, interrupted) == []


def test_another_seed_gives_another_result(model: PreparedModel, tmp_path: Path) -> None:
    run(model, tmp_path / "one")
    run(model, tmp_path / "other", replace(SETTINGS, seed=1))

    one, other = tensors(model, tmp_path / "one"), tensors(model, tmp_path / "other")
    assert not torch.allclose(one["3.weight"], other["3.weight"])


@pytest.mark.parametrize("trainable", ["head", "last_blocks"])
def test_undecodable_images_are_skipped_and_counted_once(
    model: PreparedModel, tmp_path: Path, trainable: str
) -> None:
    broken = [Example(b"", 0), Example(b"no picture", 1), Example(b"nor this", 0)]
    rows = [*examples(21, seed=1), *broken]

    reports = run(model, tmp_path, replace(SETTINGS, trainable=trainable), rows=rows)  # type: ignore[arg-type]

    for epoch in reports:
        assert epoch.rows == (21,)
        assert epoch.skipped == {Code.IMAGE_EMPTY: 1, Code.IMAGE_UNSUPPORTED: 2}


def test_a_share_without_a_decodable_image_is_a_setup_error(
    model: PreparedModel, tmp_path: Path
) -> None:
    with pytest.raises(SetupError, match=r"none of the 2 images.*image_empty"):
        run(model, tmp_path, rows=[Example(b"", 0), Example(b"", 1)])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", ["layer3", "layer4.0", "layer4.1"]),
        ("efficientnet_lite0", ["_blocks.15", "_conv_head", "_bn1"]),
        # Its last children are heads that only its first training used.
        ("googlenet", ["inception4e", "inception5a", "inception5b"]),
        ("timm/vit_tiny_patch16_224", ["blocks.10", "blocks.11", "norm"]),
    ],
)
def test_the_last_blocks(name: str, expected: list[str]) -> None:
    encoder = find_encoder(name)
    body = encoder.build()
    encoder.cut(body)
    side = 224 if "vit" in name else 64
    preprocessing = replace(SMALL, resize_px=side, crop_px=side)

    assert select_blocks(body, preprocessing, TrainingSettings()) == expected


def test_a_network_without_parameters_cannot_be_trained() -> None:
    body = nn.Sequential(nn.AvgPool2d(2), nn.Flatten())

    with pytest.raises(SetupError, match="Sequential has no parameter that can be trained"):
        select_blocks(body, SMALL, SETTINGS)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": 0}, "epochs is 0; it is 1 or more"),
        ({"blocks": 0}, "blocks is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"held_out": 1.0}, "held_out is 1.0; it is between 0 and 1"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; it is more than 0"),
        ({"trainable": "body"}, "trainable is 'body'; it is head, last_blocks or all"),
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(SetupError, match=message):
        TrainingSettings(**wrong)  # type: ignore[arg-type]


def test_shuffling_stays_within_the_window() -> None:
    rows = [Example(bytes(10), label) for label in range(100)]

    by_rows = [row.label for row in shuffle(rows, np.random.default_rng(0), rows=10)]
    by_bytes = [row.label for row in shuffle(rows, np.random.default_rng(0), bytes=100)]

    for labels in (by_rows, by_bytes):
        assert sorted(labels) == list(range(100)) != labels
        # An example can move forward by at most the nine others of the window.
        assert all(place >= label - 9 for place, label in enumerate(labels))


def test_each_random_reading_has_another_order(tmp_path: Path) -> None:
    source = pictures(tmp_path, [Example(*row) for row in examples(30, seed=1)])
    random = np.random.default_rng(0)

    first, second = (
        [pixels.sum() for pixels, _ in source.read(random, Counter())] for _ in range(2)
    )
    fixed, again = ([label for _, label in source.read(None, Counter())] for _ in range(2))

    assert first != second
    assert sorted(first) == sorted(second)
    assert fixed == again
    assert source.rows == 30
