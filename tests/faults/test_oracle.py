"""The judge of the fault tests refuses every kind of wrong table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from deltalake import write_deltalake

from embedstream_core.errors import Code, Stage
from embedstream_core.records import Embedding, Failure, Media, Outcome
from oracle import Position, check_messages
from outcome_tables import SCHEMA

MEDIA = Media("image/png", width=1, height=1)
EXPECTED: dict[str, tuple[Outcome, ...]] = {
    "image": (
        Embedding(np.array([1, 2], np.float32), MEDIA, "hash", "first/a/1"),
        Embedding(np.array([2, 1], np.float32), MEDIA, "hash", "second/b/2"),
    ),
    "noise": (Failure(Code.MEDIA_UNSUPPORTED, Stage.DECODE, "no type"),),
}

Rows = list[dict[str, Any]]


def right_rows() -> Rows:
    now = datetime.now(UTC)
    rows = []
    for offset, (key, outcomes) in enumerate(EXPECTED.items()):
        for one in outcomes:
            row = {
                "topic": "mixed",
                "partition": 0,
                "offset": offset,
                "timestamp": now,
                "key": key.encode(),
                "model_id": one.model_id,
                "media": one.media and asdict(one.media),
                "content_sha256": one.content_sha256,
                "processed_at": now,
            }
            if isinstance(one, Embedding):
                row["embedding"] = one.vector.tolist()
            else:
                row["error"] = {"code": one.code, "stage": one.stage, "message": one.message}
            rows.append(row)
    return rows


def check(rows: Rows, folder: Path) -> None:
    write_deltalake(folder / "table", pa.Table.from_pylist(rows, schema=SCHEMA))
    positions = [Position("mixed", 0, offset) for offset in range(len(EXPECTED))]
    check_messages(folder / "table", positions, EXPECTED.__getitem__)


def test_the_right_table_is_accepted(tmp_path: Path) -> None:
    check(right_rows(), tmp_path)


def swap_models(rows: Rows) -> None:
    rows[0]["model_id"], rows[1]["model_id"] = rows[1]["model_id"], rows[0]["model_id"]


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda rows: rows.pop(0), id="a row is lost"),
        pytest.param(lambda rows: rows.pop(), id="a message is lost"),
        pytest.param(lambda rows: rows.append(rows[0]), id="a row is doubled"),
        pytest.param(lambda rows: rows.append(rows[2]), id="a row without a model is doubled"),
        pytest.param(lambda rows: rows.append({**rows[0], "offset": 9}), id="an unknown message"),
        pytest.param(lambda rows: rows.append({**rows[0], "model_id": "c"}), id="a further model"),
        pytest.param(swap_models, id="another model's vector"),
        pytest.param(lambda rows: rows[0].update(embedding=[1.0, 2.001]), id="another vector"),
        pytest.param(lambda rows: rows[0].update(embedding=None), id="no outcome"),
        pytest.param(lambda rows: rows[0].update(media=None), id="no media"),
        pytest.param(lambda rows: rows[0].update(content_sha256="other"), id="another content"),
        pytest.param(lambda rows: rows[2]["error"].update(code="media_empty"), id="another code"),
        pytest.param(lambda rows: rows[2].update(model_id="first/a/1"), id="a model too many"),
    ],
)
def test_a_wrong_table_is_refused(spoil: Callable[[Rows], object], tmp_path: Path) -> None:
    rows = right_rows()
    spoil(rows)

    with pytest.raises(AssertionError):
        check(rows, tmp_path)
