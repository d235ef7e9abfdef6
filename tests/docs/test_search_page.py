"""The Python code of docs/search.md runs."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pytest

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
