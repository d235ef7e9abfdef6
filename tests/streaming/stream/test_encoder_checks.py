"""Where JPEGs are decoded on a GPU, a start without one is refused in a sentence."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import pytest
from pyspark.sql import SparkSession

from embedstream.config.sections import EncoderConfig
from embedstream.stream.encoder_checks import EncoderChecks
from embedstream_core.errors import SetupError
from embedstream_core.settings import Device


@dataclass
class Cluster:
    """What the checks ask of a session: its master and its options."""

    options: dict[str, str] = field(default_factory=dict)
    master: str = "spark://host:7077"

    @property
    def sparkContext(self) -> Cluster:  # noqa: N802
        return self

    def getConf(self) -> dict[str, str]:  # noqa: N802
        return self.options


def check(cluster: Cluster, *devices: Device) -> str:
    encoders = [EncoderConfig(name="resnet50", device=device) for device in devices]
    spark = cast("SparkSession", cluster)
    checks = EncoderChecks(spark, encoders, decode_device="cuda").list_preparations()
    return checks["decode device"]()


GRANTED = {"spark.executor.resource.gpu.amount": "2"}


def test_granted_gpus_are_told() -> None:
    assert check(Cluster(GRANTED), "cpu", "auto") == "cuda; 2 GPUs an executor"


@pytest.mark.parametrize(
    ("options", "devices", "reason"),
    [
        ({}, ["auto"], "0 GPUs are granted to an executor and encoder.device is auto"),
        (GRANTED, ["cpu", "cpu"], "2 GPUs are granted to an executor and encoder.device is cpu"),
    ],
    ids=["no GPU", "no encoder on one"],
)
def test_a_cluster_without_gpus_is_refused(
    options: dict[str, str], devices: list[Device], reason: str
) -> None:
    with pytest.raises(SetupError) as caught:
        check(Cluster(options), *devices)

    assert str(caught.value).startswith(f"decode.device is cuda, but {reason}")
    assert str(caught.value).endswith("or set decode.device to cpu")


def test_locally_an_encoder_must_run_on_a_gpu() -> None:
    with pytest.raises(SetupError, match="no encoder runs on a GPU"):
        check(Cluster(master="local[2]"), "cpu")


def test_without_the_setting_nothing_is_checked() -> None:
    checks = EncoderChecks(cast("SparkSession", Cluster()), [EncoderConfig(name="resnet50")])
    assert "decode device" not in checks.list_preparations()
