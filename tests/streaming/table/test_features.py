"""Each feature of Delta works with an outcome table, or is refused before a row is written."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from pyspark.errors import StreamingQueryException
from pyspark.sql import SparkSession

from embedstream.follow.table_reader import open_table
from embedstream.search.scan import scan_table
from embedstream.table.delta import check_table, compact
from embedstream.table.features import check_fillable, explain_violation
from embedstream.table.forget import Forgetting, count_rows, delete_rows
from embedstream.table.rows import OUTCOME_SCHEMA
from embedstream_core.errors import SetupError
from outcome_tables import MODEL
from spark_tables import SparkTable
from tables_in_motion import outcome

pytestmark = pytest.mark.spark

MAPPED = "the columns have other names in the files (column mapping)"


def test_what_would_stop_the_stream_later_is_refused_or_explained(
    spark: SparkSession, tmp_path: Path
) -> None:
    table = SparkTable(spark, tmp_path)

    def refuse() -> str:
        with pytest.raises(SetupError) as error:
            check_fillable(spark, table.table, door="messages")
        return str(error.value)

    required = ("topic", "embedding")
    strict = [f"`{name}` {kind}{' NOT NULL' * (name in required)}" for name, kind in _list_types()]
    properties = f"'embedstream.model_id' = '{MODEL}'"
    table.run(f"REPLACE TABLE {{}} ({', '.join(strict)}) USING delta TBLPROPERTIES ({properties})")
    assert "ALTER COLUMN embedding DROP NOT NULL" in refuse()
    table.run("ALTER TABLE {} ALTER COLUMN embedding DROP NOT NULL")
    check_fillable(spark, table.table, door="messages")
    with pytest.raises(SetupError, match="'topic' is NOT NULL, and some outcomes have no topic"):
        check_fillable(spark, table.table, door="files")
    forgets = "delta.setTransactionRetentionDuration"
    table.run(f"ALTER TABLE {{}} SET TBLPROPERTIES ('{forgets}' = 'interval 1 day')")
    assert f"property {forgets} is 'interval 1 day': the table would forget" in refuse()
    table.run(f"ALTER TABLE {{}} UNSET TBLPROPERTIES ('{forgets}')")
    table.run("ALTER TABLE {} ADD CONSTRAINT few CHECK (`offset` < 3)")
    check_fillable(spark, table.table, door="messages")

    table.stream([outcome(one) for one in range(3)])
    with pytest.raises(StreamingQueryException) as error:
        table.stream([outcome(2), outcome(3)])
    sentence = explain_violation(error.value)
    assert sentence is not None
    assert "CHECK constraint few (offset < 3) violated" in sentence
    assert "drop the constraint with ALTER TABLE … DROP CONSTRAINT" in sentence
    assert explain_violation(ValueError("CHECK constraint")) is None
    # After what the sentence says, the same micro-batch is repeated.
    table.run("ALTER TABLE {} DROP CONSTRAINT few")
    table.drain()
    assert check_table(spark, table.address) == 5


@dataclass(frozen=True)
class Feature:
    """Statements that give a table a feature, and what without Spark is different then."""

    statements: tuple[str, ...] = ()
    properties: dict[str, str] = field(default_factory=dict)
    unreadable: bool = False
    unindexed: bool = False
    full_pass: str = ""
    rewritable: bool = True


def has(name: str, value: str, **effects: bool | str) -> Feature:
    return Feature(properties={name: value}, **effects)  # type: ignore[arg-type]


def _list_types() -> list[tuple[str, str]]:
    return [(one.name, one.dataType.simpleString()) for one in OUTCOME_SCHEMA]


def _replace(column: str) -> str:
    """Return the statement for a column that no ALTER TABLE can add."""
    columns = ", ".join(f"`{name}` {kind}" for name, kind in _list_types())
    properties = f"'embedstream.model_id' = '{MODEL}'"
    return f"REPLACE TABLE {{}} ({columns}, {column}) USING delta TBLPROPERTIES ({properties})"


FEATURES = {
    "deletion vectors": has("delta.enableDeletionVectors", "true"),
    "column mapping by name": has("delta.columnMapping.mode", "name", full_pass=MAPPED),
    "column mapping by id": has("delta.columnMapping.mode", "id", full_pass=MAPPED),
    "row tracking": has("delta.enableRowTracking", "true"),
    "in-commit timestamps": has("delta.enableInCommitTimestamps", "true"),
    "v2 checkpoints": has("delta.checkpointPolicy", "v2"),
    "append-only": has("delta.appendOnly", "true", rewritable=False),
    "no change data feed": has("delta.enableChangeDataFeed", "false"),
    "type widening": has("delta.enableTypeWidening", "true", unreadable=True),
    "vacuum protocol check": has("delta.feature.vacuumProtocolCheck", "supported", unreadable=True),
    "CHECK": Feature(("ALTER TABLE {} ADD CONSTRAINT one CHECK (topic = 'images')",)),
    "defaults": Feature(
        (
            "ALTER TABLE {} ADD COLUMN note STRING",
            "ALTER TABLE {} ALTER COLUMN note SET DEFAULT 'a'",
        ),
        {"delta.feature.allowColumnDefaults": "supported"},
    ),
    "timestamps without a zone": Feature(
        (
            "ALTER TABLE {} SET TBLPROPERTIES ('delta.feature.timestampNtz' = 'supported')",
            "ALTER TABLE {} ADD COLUMN at TIMESTAMP_NTZ",
        )
    ),
    "variants": Feature(
        (
            "ALTER TABLE {} SET TBLPROPERTIES ('delta.feature.variantType' = 'supported')",
            "ALTER TABLE {} ADD COLUMN v VARIANT",
        ),
        unindexed=True,
    ),
    "generated columns": Feature((_replace("next BIGINT GENERATED ALWAYS AS (`offset` + 1)"),)),
    "identity columns": Feature((_replace("number BIGINT GENERATED ALWAYS AS IDENTITY"),)),
}


@pytest.mark.long
@pytest.mark.parametrize("feature", FEATURES.values(), ids=FEATURES.keys())
def test_a_table_with_the_feature_is_filled_changed_and_read(
    spark: SparkSession, tmp_path: Path, feature: Feature
) -> None:
    table = SparkTable(spark, tmp_path, properties=feature.properties)
    for statement in feature.statements:
        table.run(statement)
    check_fillable(spark, table.table, door="messages")

    table.stream([outcome(one, failed=one == 6) for one in range(8)])
    follow(table, feature, first=True)
    if feature.rewritable:
        table.merge([2, 3, 40])
        asked = Forgetting(ids=["id 4"])
        planned = count_rows(spark, table.address, asked)
        assert delete_rows(spark, table.address, asked, planned) == {"id": 1}
        follow(table, feature)
    table.stream([outcome(50)])
    compact(spark, table.address)
    follow(table, feature)

    # One row more and one less, if rows may be changed.
    assert check_table(spark, table.address) == 9
    if feature.unreadable:
        with pytest.raises(SetupError, match=r"cannot be read without Spark: deltalake does not"):
            open_table(table.path)
        return
    found = scan_table(open_table(table.path), np.ones(3, np.float32), model_id=MODEL, k=20)
    assert found.num_rows == 8


def follow(table: SparkTable, feature: Feature, *, first: bool = False) -> None:
    """Bring the index in step with the table, or be refused in a sentence."""
    if feature.unreadable or feature.unindexed:
        with pytest.raises(SetupError, match=r"without Spark|features that cannot be followed"):
            table.follow()
        return
    reasons, _ = table.follow()
    if first:
        assert reasons == ["there is no index yet"]
    else:
        assert [feature.full_pass in one for one in reasons] == [True] * bool(feature.full_pass)
