"""The table's property names the models that fill it; a start with others is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from embedstream.config.sections import TableConfig
from embedstream.table.address import TableAddress
from embedstream.table.delta import check_models, create_table, read_models, set_models
from embedstream_core.errors import SetupError

pytestmark = pytest.mark.spark

ONE, OTHER, THIRD = "a/b/0123456789ab", "it's/c/0123456789ab@bfloat16", "d/e/f"


@pytest.fixture
def table(spark: SparkSession, tmp_path: Path) -> str:
    path = str(tmp_path / "table")
    create_table(spark, TableConfig(path=path), model_ids=[ONE, OTHER])
    return path


def test_the_property_has_a_line_for_each_model_in_order(spark: SparkSession, table: str) -> None:
    assert read_models(spark, TableAddress(table)) == (ONE, OTHER)

    set_models(spark, TableAddress(table), [THIRD])

    assert read_models(spark, TableAddress(table)) == (THIRD,)
    properties = spark.sql(f"SHOW TBLPROPERTIES delta.`{table}` ('embedstream.model_id')")
    assert properties.collect()[0].value == THIRD


def test_models_are_compared_as_a_set(spark: SparkSession, table: str) -> None:
    check_models(spark, TableAddress(table), [OTHER, ONE], remedy="stop")

    for given, difference in (
        ([ONE], f"leaves out '{OTHER}'"),
        ([ONE, OTHER, THIRD], f"adds '{THIRD}'"),
        ([THIRD, OTHER], f"adds '{THIRD}', leaves out '{ONE}'"),
    ):
        with pytest.raises(SetupError) as refused:
            check_models(spark, TableAddress(table), given, remedy="stop")
        assert str(refused.value) == (
            f"the table holds embeddings of '{ONE}', '{OTHER}', and the configuration {difference};"
            " stop"
        )

    set_models(spark, TableAddress(table), [ONE])
    with pytest.raises(SetupError, match=f"of '{ONE}', and encoder gives '{THIRD}'; stop"):
        check_models(spark, TableAddress(table), [THIRD], remedy="stop")


def test_a_table_that_names_no_model_takes_any(spark: SparkSession, table: str) -> None:
    spark.sql(f"ALTER TABLE delta.`{table}` UNSET TBLPROPERTIES ('embedstream.model_id')")
    assert read_models(spark, TableAddress(table)) == ()
    check_models(spark, TableAddress(table), [ONE], remedy="stop")
