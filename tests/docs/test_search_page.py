"""The code of docs/search.md runs, and its SQL quantizes as the benchmark does."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyspark.sql import SparkSession

from contents import MINILM, TEXTS
from doors import core_vectors
from embedstream.worker.model import prepare
from outcome_tables import row, write_table

PAGE = Path(__file__).parents[2] / "docs" / "search.md"


@pytest.mark.long
def test_the_code_of_the_page_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    vectors = core_vectors([text.encode() for text in TEXTS.values()], MINILM)
    model_id = prepare(MINILM).card.model_id
    rows = [
        row(name, vector.tolist(), offset=offset, model_id=model_id)
        | {"topic": "docstrings", "attributes": {"shop": "a"}}
        for offset, (name, vector) in enumerate(zip(TEXTS, vectors, strict=True), 1)
    ]
    names = {"table": write_table(tmp_path, rows, model_id=model_id)}

    exec(code, names)

    found = names["rows"]
    assert isinstance(found, pa.Table)
    assert found["image_id"].to_pylist()[0] == "gzip.txt"
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first == "compared all rows of the table, version 1"
    assert second.split() == ["1.0", "tower.txt"]


@pytest.mark.long
def test_the_quantizing_views_do_what_the_benchmark_measures(
    spark: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(PAGE.parents[1] / "benchmarks"))
    from quantization import quantize_bits, quantize_int8

    int8, bits, query = re.findall(
        r"^```sql\n((?:CREATE OR REPLACE TEMP|WITH).*?)^```$",
        PAGE.read_text(),
        re.MULTILINE | re.DOTALL,
    )
    vectors = np.random.default_rng(5).standard_normal((40, 128)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[7] = 0
    columns = "topic string, partition int, offset long, model_id string, image_id string"
    spark.createDataFrame(
        [
            ("docstrings", 0, offset, "minilm", f"text {offset}", vector.tolist())
            for offset, vector in enumerate(vectors)
        ],
        f"{columns}, embedding array<float>",
    ).coalesce(1).createOrReplaceTempView("embeddings")
    for statement in (int8, bits):
        spark.sql(statement.rstrip().removesuffix(";"))

    found = spark.sql("SELECT numbers, scale FROM embeddings_int8").collect()
    numbers, scales = quantize_int8(vectors)
    assert [one.numbers for one in found] == numbers.tolist()
    assert [one.scale for one in found] == scales.tolist()
    packed = spark.sql("SELECT bits FROM embeddings_bits").collect()
    assert [one.bits for one in packed] == quantize_bits(vectors).view(np.int64).tolist()
    nearest = spark.sql(query.rstrip().removesuffix(";")).collect()
    order = np.argsort(-(vectors @ vectors[3]))[:10]
    assert [one.image_id for one in nearest] == [f"text {one}" for one in order]
