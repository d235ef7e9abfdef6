"""The archive of Spark's classes is used where it fits, and nothing changes where it does not."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from pyspark import SparkContext
from pyspark.sql import functions as f

from embedstream.config.sections import PipelineConfig, SparkConfig
from embedstream.spark import launch
from embedstream.spark.class_archive import add_class_archive, find_class_archive
from embedstream.spark.jars import fetch_jars, find_jars_folder
from embedstream.spark.java import find_java
from embedstream.spark.launch import Launch, plan_launch
from embedstream.spark.session import open_session
from embedstream.stream.rehearsal import build_class_archive

OPTION = "spark.driver.defaultJavaOptions"


def test_without_an_archive_the_options_stay(tmp_path: Path) -> None:
    assert add_class_archive("-Xss8m", folder=tmp_path, java=find_java()) == "-Xss8m"


def test_each_java_has_its_archive(tmp_path: Path) -> None:
    other = tmp_path / "java/bin/java"
    other.parent.mkdir(parents=True)
    other.touch()

    assert find_class_archive(tmp_path, other) != find_class_archive(tmp_path, find_java())


def test_an_archive_is_not_used_while_another_is_written(tmp_path: Path) -> None:
    find_class_archive(tmp_path, find_java()).touch()
    writing = '-XX:ArchiveClassesAtExit="new.jsa"'

    assert add_class_archive(writing, folder=tmp_path, java=find_java()) == writing


def test_a_local_session_has_it_and_the_jars_on_its_class_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "delta.jar"
    monkeypatch.setattr(launch, "fetch_jars", lambda *_: [own])
    monkeypatch.setattr(SparkContext, "_gateway", None)
    monkeypatch.setenv("EMBEDSTREAM_JARS", str(tmp_path))
    archive = find_class_archive(tmp_path, find_java())
    archive.touch()

    def plan(master: str) -> Launch:
        config = SparkConfig(master=master, options={OPTION: "-Xss8m", "spark.jars": "/my/udf.jar"})
        return plan_launch(config, PipelineConfig(), java=find_java())

    local, cluster = plan("local[2,4]"), plan("spark://host:7077")
    assert local.settings[OPTION].split()[:2] == ["-Xss8m", f'-XX:SharedArchiveFile="{archive}"']
    assert (local.class_path, local.settings["spark.jars"]) == ([own], "/my/udf.jar")
    assert cluster.settings[OPTION] == "-Xss8m"
    assert (cluster.class_path, cluster.settings["spark.jars"]) == ((), f"{own},/my/udf.jar")

    # Spark's launcher would take the script's class path instead of ours.
    monkeypatch.setenv("SPARK_CONF_DIR", str(tmp_path))
    script = tmp_path / "spark-env.sh"
    script.write_text("# - SPARK_DIST_CLASSPATH=to set it\n")
    assert plan("local[2,4]").class_path == [own]
    script.write_text("export SPARK_DIST_CLASSPATH=$(hadoop classpath)\n")
    replaced = plan("local[2,4]")
    assert replaced.settings[OPTION] == "-Xss8m"
    assert (replaced.class_path, replaced.settings["spark.jars"]) == ((), f"{own},/my/udf.jar")
    script.unlink()

    # Under spark-submit the JVM runs already.
    monkeypatch.setattr(SparkContext, "_gateway", object())
    submitted = plan("local[2,4]")
    assert submitted.settings[OPTION] == "-Xss8m"
    assert (submitted.class_path, submitted.settings["spark.jars"]) == ((), f"{own},/my/udf.jar")


@pytest.mark.spark
@pytest.mark.long
def test_an_archive_holds_the_classes_of_spark_and_of_its_jars(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for jar in fetch_jars(["spark"], find_jars_folder()):
        (tmp_path / jar.name).hardlink_to(jar)
    monkeypatch.setenv("EMBEDSTREAM_JARS", str(tmp_path))
    build_class_archive(tmp_path)
    log = tmp_path / "classes.log"
    options = {"spark.driver.extraJavaOptions": f"-Xlog:class+load:file={log}"}

    config = SparkConfig(master="local[1,4]", options=options)
    with open_session(config, PipelineConfig()) as spark:
        jvm: Any = spark.sparkContext._jvm
        jvm.org.apache.kafka.clients.admin.AdminClientConfig.configNames()
        rows = spark.range(3).withColumn("name", f.lit("x"))
        rows.write.format("delta").save(str(tmp_path / "table"))

    shared = [line.split()[1] for line in log.read_text().splitlines() if "(top)" in line]
    for package in ("org.apache.spark.sql.delta.", "org.apache.kafka.", "org.apache.spark.sql."):
        assert any(name.startswith(package) for name in shared), package


def test_java_says_nothing_of_an_archive_that_is_broken(tmp_path: Path) -> None:
    find_class_archive(tmp_path, find_java()).write_text("not an archive")
    options = add_class_archive("", folder=tmp_path, java=find_java()).split()

    ended = subprocess.run(
        [find_java(), *options, "-version"], capture_output=True, text=True, check=True
    )

    assert len(options) == 3
    assert ended.stdout == ""
    assert "archive" not in ended.stderr
