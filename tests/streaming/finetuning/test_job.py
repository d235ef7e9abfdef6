"""Two processes train an encoder over Spark, with an interruption; `featurize` uses it."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import psutil
import pytest
from pyspark.sql import DataFrame, SparkSession

from doors import ENCODER, SMALL, digits
from embedstream import (
    FinetunedEncoder,
    TrainingSettings,
    featurize,
    finetune,
)
from embedstream.worker.model import prepare
from embedstream_core.errors import Code, SetupError, SystemicError
from embedstream_core.training.checkpoint import Epoch, read_finished_epochs

pytestmark = [
    pytest.mark.spark,
    # PySpark leaves sockets of its log server to the garbage collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

COUNT, BROKEN = 300, 4
SETTINGS = TrainingSettings(epochs=2, batch_size=16, blocks=2)


@pytest.fixture(scope="module")
def labelled(spark: SparkSession) -> DataFrame:
    """Return digits, some undecodable images, and one image without a label."""
    contents, labels = digits(COUNT)
    rows: list[tuple[bytes, str | None]] = [
        (content, f"digit {label}") for content, label in zip(contents, labels, strict=True)
    ]
    rows += [(b"no picture %d" % index, "digit 0") for index in range(BROKEN)]
    rows.append((contents[0] + b" ", None))
    return spark.createDataFrame(rows, "content binary, label string").repartition(2).cache()


def training_processes() -> list[psutil.Process]:
    """Return the processes that `torchrun` started below this process."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        if words[1:2] == ["-u"] and words[-1].endswith("train.py"):
            found.append(process)
    return found


def kill_in_the_second_epoch(checkpoint: Path) -> None:
    while not checkpoint.exists():
        time.sleep(0.01)
    training_processes()[-1].kill()


def train(images: DataFrame, output: Path, **changed: Any) -> FinetunedEncoder:
    return finetune(
        images,
        label_col="label",
        output=output,
        encoder=SMALL,
        num_processes=2,
        settings=replace(SETTINGS, **changed),
    )


class Trained(NamedTuple):
    """The result of two processes; `left` are the files that torchrun left outside its folder."""

    encoder: FinetunedEncoder
    folder: Path
    left: set[Path]

    @property
    def epochs(self) -> list[Epoch]:
        return read_finished_epochs(self.folder / "checkpoint.pt")


@pytest.fixture(scope="module")
def trained(labelled: DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("encoder")
    there = torchrun_folders()
    encoder = train(labelled, folder)
    return Trained(encoder, folder, torchrun_folders() - there)


def torchrun_folders() -> set[Path]:
    return {*Path(tempfile.gettempdir()).glob("torchelastic_*")}


@pytest.mark.long
def test_a_killed_training_resumes_after_the_last_finished_epoch(
    labelled: DataFrame, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint.pt"
    killer = threading.Thread(target=kill_in_the_second_epoch, args=(checkpoint,), daemon=True)
    killer.start()
    with pytest.raises(SystemicError, match="failed after 1 of 2 epochs; call again"):
        train(labelled, tmp_path)
    killer.join()
    before = read_finished_epochs(checkpoint)

    train(labelled, tmp_path)

    epochs = read_finished_epochs(checkpoint)
    assert [epoch.number for epoch in epochs] == [1, 2]
    # The seconds are equal too: the epoch was not trained again.
    assert epochs[:1] == before
    assert not training_processes()


@pytest.mark.long
def test_two_processes_learn_from_the_decodable_images(trained: Trained) -> None:
    last = trained.epochs[-1]

    assert trained.encoder.accuracy == last.accuracy > 0.5
    assert trained.encoder.labels == tuple(f"digit {digit}" for digit in range(10))
    assert len(last.rows) == 2
    assert min(last.rows) > COUNT / 4
    assert sum(last.rows) + last.judged == COUNT
    assert last.skipped == {Code.IMAGE_UNSUPPORTED: BROKEN}


@pytest.mark.long
def test_the_result_is_an_encoder(trained: Trained, labelled: DataFrame) -> None:
    made = trained.encoder
    description = json.loads((trained.folder / "encoder.json").read_text())
    before, after = prepare(SMALL).card, prepare(made.config).card
    some = labelled.where("label IS NULL")

    assert made.path == trained.folder / "encoder.safetensors"
    assert (
        made.sha256 == hashlib.sha256(made.path.read_bytes()).hexdigest() == description["sha256"]
    )
    assert description["trained_blocks"] == ["_conv_head", "_bn1"]
    assert made.config.preprocessing == SMALL.preprocessing
    assert after.dimension == before.dimension
    assert after.model_id.startswith(f"efficientnet_lite0/encoder/{made.sha256[:12]}")
    one, other = (featurize(some, encoder=one).first() for one in (SMALL, made.config))
    assert one is not None
    assert other is not None
    assert np.abs(np.subtract(one.embedding, other.embedding)).max() > 0.1


@pytest.mark.long
def test_nothing_is_left_in_the_folder_for_temporary_files(trained: Trained) -> None:
    assert trained.left == set()


@pytest.mark.long
def test_a_finished_training_is_not_repeated(trained: Trained, labelled: DataFrame) -> None:
    checkpoint = trained.folder / "checkpoint.pt"
    written = checkpoint.stat().st_mtime_ns

    assert train(labelled, trained.folder) == trained.encoder
    assert checkpoint.stat().st_mtime_ns == written


@pytest.mark.long
def test_another_training_in_the_same_folder_is_refused(
    trained: Trained, labelled: DataFrame
) -> None:
    message = "holds a training with epochs 2, not 4: use the settings and images"
    with pytest.raises(SetupError, match=message):
        train(labelled, trained.folder, epochs=4)
    with pytest.raises(SetupError, match=f"a training with images {COUNT + BROKEN}, not 50"):
        train(labelled.where("label IS NOT NULL").limit(50), trained.folder)


@pytest.mark.long
def test_the_workers_keep_their_environment(spark: SparkSession, trained: Trained) -> None:
    def environments(frames: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        return (pd.DataFrame({"name": list(os.environ)}) for _ in frames)

    rows = spark.range(0, 2, 1, 2).mapInPandas(environments, "name string").collect()

    assert "PATH" in {row.name for row in rows}
    assert not {row.name for row in rows} & {"CUDA_VISIBLE_DEVICES", "RANK", "MASTER_ADDR"}


@pytest.mark.parametrize(
    ("columns", "given", "message"),
    [
        (["content"], {}, "there is no column 'label'; there are: content"),
        (["label"], {}, "there is no column 'content'"),
        (["content", "1.5D AS label"], {}, "column 'label' is of type double, not strings or"),
        (["'uri' AS content", "label"], {}, "column 'content' is of type string, not image bytes"),
        (["content", "1 AS label"], {}, r"column 'label' has 1 classes \('1'\)"),
        (["content", "label"], {"encoder": "resnet5"}, "unknown encoder 'resnet5'"),
        (["content", "label"], {"encoder": "onnx"}, "'onnx' is a program and cannot be trained"),
        (["content", "label"], {"output": "s3a://bucket/encoder"}, "output is 's3a://"),
        (["content", "label"], {"output": "/proc/encoder"}, "output '/proc/encoder' cannot be"),
        (["content", "label"], {"num_processes": 0}, "num_processes is 0; it is 1 or more"),
        (["content", "label"], {"num_processes": 3}, "num_processes is 3, but 'local"),
        (
            ["content", "label"],
            {"encoder": ENCODER.model_copy(update={"device": "cuda"})},
            "encoder.device is cuda, but spark.task.resource.gpu.amount is not 1",
        ),
    ],
)
def test_a_wrong_argument_is_refused_before_the_training(
    labelled: DataFrame, tmp_path: Path, columns: list[str], given: dict[str, Any], message: str
) -> None:
    images = labelled.selectExpr(*columns)

    with pytest.raises(SetupError, match=message):
        finetune(
            images,
            **{"label_col": "label", "output": tmp_path / "new", "encoder": SMALL, **given},
        )
    assert not (tmp_path / "new" / "settings.json").exists()


def test_too_few_images_are_refused(labelled: DataFrame, tmp_path: Path) -> None:
    # Two processes and the held-out part need three.
    few = labelled.limit(2).selectExpr("content", "hash(content) AS label")

    with pytest.raises(SetupError, match="there are too few images"):
        train(few, tmp_path)
