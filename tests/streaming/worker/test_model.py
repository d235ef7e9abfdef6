"""All workers use one precision: set, recorded, forced or measured, in this order."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image
from pyspark.sql import SparkSession

from doors import SMALL
from embedstream.config.sections import EncoderConfig, StreamConfig
from embedstream.search.queries import embed_queries
from embedstream.stream.preflight import Finding, check_start
from embedstream.table.address import TableAddress
from embedstream.worker.model import FORCED_PRECISION, Choice, choose_precision, prepare
from embedstream_core.errors import SetupError
from embedstream_core.model_id import ModelId, Precision
from small_models import DECLARED, onnx_model
from streams import Topic, drain, image, refusal

pytestmark = pytest.mark.spark

Configure = Callable[..., StreamConfig]


@pytest.fixture(autouse=True)
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `auto` measure, whatever the whole test run forces."""
    monkeypatch.delenv(FORCED_PRECISION, raising=False)


def choose(spark: SparkSession, precision: str = "auto", *, table: str | None = None) -> Choice:
    config = SMALL.model_copy(update={"precision": precision})
    address = None if table is None else TableAddress(table)
    return choose_precision(spark, prepare(config), config, table=address)


def test_auto_is_measured_on_a_worker_once_a_session(spark: SparkSession) -> None:
    first, second = choose(spark), choose(spark)

    assert first == second
    assert first.reason.startswith("measured on a worker: float32 ")
    assert " ms a sample, bfloat16 " in first.reason
    assert ModelId.parse(first.model.card.model_id).precision == first.precision


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_configured_precision_is_used(spark: SparkSession, precision: Precision) -> None:
    chosen = choose(spark, precision)

    assert (chosen.precision, chosen.reason) == (precision, "as set by encoder.precision")
    assert ModelId.parse(chosen.model.card.model_id).precision == precision


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_environment_sets_the_result_of_auto(
    spark: SparkSession, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FORCED_PRECISION, precision)

    assert choose(spark).precision == precision
    assert choose(spark, "float32").precision == "float32"


def test_an_unknown_forced_precision_is_refused(
    spark: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FORCED_PRECISION, "float16")

    with pytest.raises(SetupError, match="'float16'; it is float32 or bfloat16"):
        choose(spark)


def test_a_program_runs_in_float32_whatever_is_set(spark: SparkSession, tmp_path: Path) -> None:
    spec = onnx_model(tmp_path)
    config = EncoderConfig.model_validate(
        {
            "name": spec.encoder,
            "weights": spec.weights,
            "precision": "bfloat16",
            "preprocessing": {
                "resize_px": DECLARED.resize_px,
                "crop_px": DECLARED.crop_px,
                "interpolation": DECLARED.interpolation,
                "mean": DECLARED.mean,
                "std": DECLARED.std,
            },
        }
    )

    chosen = choose_precision(spark, prepare(config), config)

    assert chosen.precision == "float32"
    assert "onnx" in chosen.reason


def jpeg(name: str = "chelsea.png") -> bytes:
    data = io.BytesIO()
    path = Path(skimage.data.__file__).parent / name
    Image.open(path).convert("RGB").resize((200, 150)).save(data, "JPEG")
    return data.getvalue()


def embedding(spark: SparkSession, config: StreamConfig) -> tuple[str, np.ndarray]:
    (row,) = spark.read.format("delta").load(config.table.path).collect()
    return row["model_id"], np.array(row["embedding"], np.float32)


@pytest.mark.kafka
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_later_starts_and_search_use_the_precision_of_the_rows(
    spark: SparkSession, topic: Topic, configure: Configure, precision: Precision
) -> None:
    content = jpeg()
    topic.send([image("cat", content)])
    drain(spark, configure(encoder={"precision": precision}))
    config = configure(encoder={"precision": "auto"})

    findings: list[Finding] = []
    checked = check_start(spark, config, findings.append)

    assert all(finding.passed for finding in findings)
    assert checked is not None
    (detail,) = (finding.detail for finding in findings if finding.subject == "precision")
    assert detail == f"{precision}, as the rows in the table"
    model_id, stored = embedding(spark, config)
    assert checked.models[0].card.model_id == model_id
    assert ModelId.parse(model_id).precision == precision
    _, (query,) = embed_queries([content], model_ids=[model_id])
    np.testing.assert_allclose(query, stored, atol=2e-4)


@pytest.mark.kafka
def test_the_other_precision_is_another_model(
    spark: SparkSession, topic: Topic, configure: Configure
) -> None:
    topic.send([image("cat", jpeg())])
    drain(spark, configure(encoder={"precision": "bfloat16"}))

    reason = refusal(spark, configure(encoder={"precision": "float32"}), "table")

    assert "@bfloat16'" in reason
    assert "--allow-model-change" in reason


@pytest.mark.kafka
def test_rows_of_a_model_that_no_longer_fills_the_table_count_too(
    spark: SparkSession, topic: Topic, configure: Configure
) -> None:
    """A backfill leaves such rows, and the stream switches to its model later."""
    topic.send([image("cat", jpeg())])
    config = configure(encoder={"precision": "bfloat16"})
    drain(spark, config)
    table = f"delta.`{config.table.path}`"
    spark.sql(f"ALTER TABLE {table} SET TBLPROPERTIES ('embedstream.model_id' = 'a/b/c0ffee')")

    auto = EncoderConfig(name="efficientnet_lite0")
    chosen = choose_precision(spark, prepare(auto), auto, table=TableAddress(config.table.path))

    assert (chosen.precision, chosen.reason) == ("bfloat16", "as the rows in the table")
