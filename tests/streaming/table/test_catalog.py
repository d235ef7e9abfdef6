"""Tables that are named by a catalog: Spark's own, in memory."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import skimage.data
from pyspark.sql import SparkSession

from embedstream.config.load import load_files_config
from embedstream.config.sections import BulkFilesConfig, StreamConfig, TableConfig
from embedstream.recovery.claim import claim_stream
from embedstream.recovery.doctor import Finding, diagnose
from embedstream.recovery.resume import NO_CONSENT, prepare_resumption
from embedstream.search.nearest import nearest
from embedstream.stream.job import list_ids, start_stream
from embedstream.stream.preflight import check_start
from embedstream.table.address import TableAddress
from embedstream.table.catalog import find_address, resolve_table
from embedstream.table.delta import check_table, compact, create_table, read_models, read_properties
from embedstream.table.delta_log import read_writers
from embedstream.table.forget import Forgetting, count_rows, delete_rows
from embedstream.table.views import embeddings
from embedstream_core.errors import SetupError
from oracle import check_outcomes
from streams import Topic, image

pytestmark = pytest.mark.spark

COFFEE = (Path(skimage.data.__file__).parent / "coffee.png").read_bytes()


@pytest.fixture
def schema(spark: SparkSession, tmp_path: Path) -> str:
    """A schema of the session's catalog, with a view and a table of Parquet."""
    name = f"schema_{uuid.uuid4().hex[:8]}"
    spark.sql(f"CREATE SCHEMA {name} LOCATION '{tmp_path}/{name}'")
    spark.sql(f"CREATE VIEW {name}.a_view AS SELECT 1 AS one")
    spark.sql(f"CREATE TABLE {name}.a_parquet (one INT) USING parquet")
    return name


def settings(**table: str) -> BulkFilesConfig:
    return load_files_config({"table": table})


def describe(spark: SparkSession, name: str) -> dict[str, str]:
    """What the catalog itself says of a table."""
    rows = spark.sql(f"DESCRIBE EXTENDED {name}").collect()
    return {row.col_name: row.data_type for row in rows}


def test_a_stream_fills_a_table_that_only_its_catalog_locates(
    spark: SparkSession,
    schema: str,
    topic: Topic,
    configure: Callable[..., StreamConfig],
    tmp_path: Path,
) -> None:
    name = f"spark_catalog.{schema}.images"
    given = configure(table={"name": name, "properties": {"team": "vectors"}})
    folder = tmp_path / schema / "images"

    def run(total: int, found: str) -> None:
        topic.send(image(f"{n}", COFFEE) for n in range(total - 2, total))
        config = resolve_table(spark, given)
        findings: dict[str, Finding] = {}
        checked = check_start(spark, config, lambda one: findings.update({one.subject: one}))
        assert checked is not None, findings
        assert findings["table"].detail == f"{name} in file://{folder}: {found}"
        create_table(spark, config.table, model_ids=list_ids(checked.models))
        with claim_stream(spark, config):
            prepare_resumption(spark, config, checked.writers, NO_CONSENT)
            stream = start_stream(spark, config, checked.models, until="drained")
            stream.query.awaitTermination()

    run(2, "will be created")
    run(4, "2 rows")

    config = resolve_table(spark, given)
    table = TableAddress.of(config.table)
    assert describe(spark, name)["Type"] == "MANAGED"
    assert read_properties(spark, table)["team"] == "vectors"
    check_outcomes(folder, topic.positions())
    assert embeddings(spark, spark.table(name)).count() == 4
    assert [one.passed for one in diagnose(spark, config)] == [True] * 4
    position = min(topic.positions())
    found = nearest((topic.name, position.partition, position.offset), config=given, k=4)
    assert found["similarity"].to_pylist() == pytest.approx([1.0] * 4)
    compacted = compact(spark, table)
    assert (compacted.files_removed > 1, compacted.files_added) == (True, 1)
    asked = Forgetting(ids=["0"])
    assert delete_rows(spark, table, asked, count_rows(spark, table, asked)) == Counter(id=1)
    assert spark.table(name).count() == 3


def test_a_table_at_a_path_is_registered_with_its_rows_and_properties(
    spark: SparkSession, schema: str, tmp_path: Path
) -> None:
    path = str(tmp_path / "a table")
    create_table(spark, TableConfig(path=path), model_ids=["one"])
    named = resolve_table(spark, settings(path=path, name=f"{schema}.images"))
    table = TableAddress.of(named.table)
    assert find_address(spark, named.table) == TableAddress(path)

    create_table(spark, named.table, model_ids=["another"])
    create_table(spark, named.table, model_ids=["another"])

    assert find_address(spark, named.table) == table
    assert check_table(spark, table) == 0
    assert describe(spark, table.sql)["Type"] == "EXTERNAL"
    assert read_models(spark, table) == read_models(spark, TableAddress(path)) == ("one",)
    alone = resolve_table(spark, settings(name=f"{schema}.images"))
    assert alone.table.path == f"file://{path}"


def test_a_new_table_with_a_path_is_external(
    spark: SparkSession, schema: str, tmp_path: Path
) -> None:
    path = str(tmp_path / "new")
    named = resolve_table(spark, settings(path=path, name=f"spark_catalog.{schema}.new"))
    create_table(spark, named.table, model_ids=["one"])
    found = describe(spark, f"{schema}.new")
    assert (found["Type"], found["Location"]) == ("EXTERNAL", f"file:{path}")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere.{}.t", "there is no catalog 'nowhere', of table.name 'nowhere.{}.t'; correct"),
        ("spark_catalog.absent.t", "the catalog 'spark_catalog' has no schema 'absent', of table"),
        ("spark_catalog.t", "table.name 'spark_catalog.t' begins with the catalog 'spark_catalog'"),
        ("{}.a_view", "table.name '{}.a_view' is a view; choose another name"),
        ("{}.a_parquet", "table.name '{}.a_parquet' is no Delta table but parquet; choose another"),
    ],
)
def test_a_name_that_cannot_be_the_table_is_refused_in_a_sentence(
    spark: SparkSession, schema: str, name: str, said: str
) -> None:
    with pytest.raises(SetupError) as refused:
        resolve_table(spark, settings(name=name.format(schema)))
    assert str(refused.value).startswith(said.format(schema))


def test_a_catalog_other_than_sparks_own_does_not_place_a_new_table(
    spark: SparkSession, tmp_path: Path
) -> None:
    jvm: Any = spark.sparkContext._jvm
    jvm.java.lang.System.setProperty("derby.stream.error.file", str(tmp_path / "derby.log"))
    package = "org.apache.spark.sql.execution.datasources.v2.jdbc"
    spark.conf.set("spark.sql.catalog.derby", f"{package}.JDBCTableCatalog")
    spark.conf.set("spark.sql.catalog.derby.url", "jdbc:derby:memory:catalog;create=true")
    spark.conf.set("spark.sql.catalog.derby.driver", "org.apache.derby.jdbc.EmbeddedDriver")

    with pytest.raises(SetupError, match=r"^the catalog 'derby' has no table 'derby\.SYS\.t', and"):
        resolve_table(spark, settings(name="derby.SYS.t"))
    placed = settings(name="derby.SYS.t", path=str(tmp_path))
    assert resolve_table(spark, placed).table.path == str(tmp_path)
    with pytest.raises(
        SetupError, match=r"^table\.name 'derby\.SYS\.SYSTABLES' is no Delta table;"
    ):
        resolve_table(spark, settings(name="derby.SYS.SYSTABLES"))


def test_a_catalog_that_cannot_be_asked_is_a_sentence(spark: SparkSession) -> None:
    spark.conf.set("spark.sql.catalog.broken", "no.such.Catalog")
    with pytest.raises(
        SetupError, match=r"^the catalog of table\.name 'broken\.a\.t' cannot be asked"
    ):
        resolve_table(spark, settings(name="broken.a.t"))


def test_a_name_and_a_path_that_disagree_are_refused(
    spark: SparkSession, schema: str, tmp_path: Path
) -> None:
    name = f"{schema}.images"
    spark.sql(f"CREATE TABLE {name} (one INT) USING delta")
    folder = f"{tmp_path}/{schema}/images"
    assert resolve_table(spark, settings(name=name, path=folder)).table.path == folder
    with pytest.raises(SetupError, match=r"leave table\.path out, or correct one of them"):
        resolve_table(spark, settings(name=name, path=str(tmp_path / "other")))


def test_a_name_whose_table_is_gone_is_refused(
    spark: SparkSession, schema: str, tmp_path: Path
) -> None:
    spark.sql(f"CREATE TABLE {schema}.gone (one INT) USING delta LOCATION '{tmp_path}/gone'")
    (tmp_path / "gone").rename(tmp_path / "moved")
    config = resolve_table(spark, settings(name=f"{schema}.gone"))
    with pytest.raises(SetupError, match=rf"table\.name '{schema}.gone' cannot be read as a Delta"):
        check_table(spark, TableAddress.of(config.table))


def test_a_table_whose_commits_only_its_catalog_knows_is_refused(
    spark: SparkSession, tmp_path: Path
) -> None:
    features = ["catalogManaged", "vacuumProtocolCheck"]
    protocol = {
        "minReaderVersion": 3,
        "minWriterVersion": 7,
        "readerFeatures": features,
        "writerFeatures": [*features, "inCommitTimestamp"],
    }
    metadata = {
        "id": "0",
        "format": {"provider": "parquet", "options": {}},
        "schemaString": json.dumps({"type": "struct", "fields": []}),
        "partitionColumns": [],
        "configuration": {"delta.enableInCommitTimestamps": "true"},
    }
    entry = [
        {"commitInfo": {"inCommitTimestamp": 1, "timestamp": 1}},
        {"protocol": protocol},
        {"metaData": metadata},
    ]
    log = tmp_path / "_delta_log"
    log.mkdir()
    (log / f"{0:020}.json").write_text("\n".join(map(json.dumps, entry)))
    refused = f"^the table '{tmp_path}' has the feature catalogManaged: its catalog alone knows"
    with pytest.raises(SetupError, match=refused):
        check_table(spark, TableAddress(str(tmp_path)))
    with pytest.raises(SetupError, match=refused):
        read_writers(spark, str(tmp_path))


def test_a_table_that_the_catalog_refuses_to_create_is_a_sentence(
    spark: SparkSession, schema: str, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    named = resolve_table(spark, settings(name=f"{schema}.t", path=str(tmp_path / "file" / "t")))
    refused = rf"^the catalog refuses to create the table '{schema}\.t' \([^\n]+\); correct"
    with pytest.raises(SetupError, match=refused):
        create_table(spark, named.table, model_ids=["one"])
