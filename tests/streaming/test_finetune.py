"""An encoder is trained by two processes over Spark, interrupted, and taken by `featurize`."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as f

from doors import ENCODER, SMALL, digits
from embedstream import (
    EncoderConfig,
    FinetunedEncoder,
    TrainingSettings,
    featurize,
    finetune,
)
from embedstream.check import prepare
from embedstream_core.errors import Code, SetupError, SystemicError
from embedstream_core.training import finished_epochs

pytestmark = [
    pytest.mark.spark,
    # PySpark leaves sockets of its log server to the garbage collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

COUNT, BROKEN = 300, 4
SETTINGS = TrainingSettings(epochs=2, batch_size=16, blocks=2)


@pytest.fixture(scope="module")
def labelled(spark: SparkSession) -> DataFrame:
    """Digits, some that no longer are pictures, and one whose label is not known."""
    contents, labels = digits(COUNT)
    rows: list[tuple[bytes, str | None]] = [
        (content, f"digit {label}") for content, label in zip(contents, labels, strict=True)
    ]
    rows += [(b"no picture %d" % index, "digit 0") for index in range(BROKEN)]
    rows.append((contents[0] + b" ", None))
    return spark.createDataFrame(rows, "content binary, label string").repartition(2).cache()


def vectors(df: DataFrame, encoder: EncoderConfig) -> np.ndarray:
    rows = featurize(df, encoder=encoder).orderBy(f.xxhash64("content")).collect()
    return np.array([row.embedding for row in rows if row.error is None])


def told(folder: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / "encoder.json").read_text())
    return read


def test_two_processes_train_an_encoder_that_featurize_takes(
    labelled: DataFrame, tmp_path: Path
) -> None:
    made = finetune(
        labelled,
        label_col="label",
        output=tmp_path,
        encoder=SMALL,
        num_processes=2,
        settings=SETTINGS,
    )

    assert made.accuracy > 0.5
    assert made.labels == tuple(f"digit {digit}" for digit in range(10))
    last = told(tmp_path)["epochs"][-1]
    assert len(last["rows"]) == 2
    assert min(last["rows"]) > COUNT / 4
    assert sum(last["rows"]) + last["judged"] == COUNT
    assert last["skipped"] == {Code.IMAGE_UNSUPPORTED: BROKEN}
    assert made.path == tmp_path / "encoder.safetensors"
    assert made.sha256 == hashlib.sha256(made.path.read_bytes()).hexdigest()
    assert told(tmp_path)["sha256"] == made.sha256
    assert made.config.preprocessing == SMALL.preprocessing
    before, after = prepare(SMALL).card, prepare(made.config).card
    assert after.dimension == before.dimension
    assert after.model_id == f"efficientnet_lite0/encoder/{made.sha256[:12]}"
    some = labelled.limit(8)
    assert np.abs(vectors(some, SMALL) - vectors(some, made.config)).max() > 0.1


def training_processes() -> list[psutil.Process]:
    """Those that `torchrun` started below this process."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        if words[1:2] == ["-u"] and words[-1].endswith("train.py"):
            found.append(process)
    return found


def test_after_a_kill_it_goes_on_after_the_last_whole_epoch(
    labelled: DataFrame, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint.pt"

    def train(**changed: Any) -> FinetunedEncoder:
        return finetune(
            labelled,
            label_col="label",
            output=tmp_path,
            encoder=SMALL,
            num_processes=2,
            settings=replace(SETTINGS, **changed),
        )

    def kill_in_the_second_epoch() -> None:
        while not checkpoint.exists():
            time.sleep(0.01)
        training_processes()[-1].kill()

    killer = threading.Thread(target=kill_in_the_second_epoch, daemon=True)
    killer.start()
    with pytest.raises(SystemicError, match="the training ended after 1 of 2 epochs; call again"):
        train()
    killer.join()
    before = finished_epochs(checkpoint)
    with pytest.raises(SetupError, match=r"a training with epochs 2, not 4: give what it was"):
        train(epochs=4)

    made = train()

    epochs = finished_epochs(checkpoint)
    assert [epoch.number for epoch in epochs] == [1, 2]
    # Its seconds too: it was not trained again.
    assert epochs[:1] == before
    assert not training_processes()
    written = checkpoint.stat().st_mtime_ns
    assert train() == made
    assert checkpoint.stat().st_mtime_ns == written


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
def test_what_is_wrong_is_told_before_anything_is_trained(
    labelled: DataFrame, tmp_path: Path, columns: list[str], given: dict[str, Any], message: str
) -> None:
    images = labelled.selectExpr(*columns)

    with pytest.raises(SetupError, match=message):
        finetune(
            images,
            **{"label_col": "label", "output": tmp_path / "new", "encoder": SMALL, **given},
        )
    assert not (tmp_path / "new" / "settings.json").exists()


def test_other_images_in_the_same_folder_are_refused(labelled: DataFrame, tmp_path: Path) -> None:
    few = labelled.limit(3).selectExpr("content", "hash(content) AS label")
    for images, message in ((few, "there are too few images"), (labelled, "with images 3, not")):
        with pytest.raises(SetupError, match=message):
            finetune(images, label_col="label", output=tmp_path, encoder=SMALL)
