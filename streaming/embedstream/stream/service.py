"""What a stream runs, and how other models are made ready while it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from pyspark.sql import SparkSession

from embedstream.config.sections import EncoderConfig, StreamConfig
from embedstream.recovery.doctor import run_checks
from embedstream.spark.session import warm_workers
from embedstream.spark.sizing import count_parallel_tasks
from embedstream.stream.encoder_checks import EncoderChecks
from embedstream.stream.job import build_featurizer, list_ids
from embedstream.table.address import TableAddress
from embedstream.worker.messages import Featurizer
from embedstream_core.errors import SetupError
from embedstream_core.models.card import PreparedModel

__all__ = ["Service", "prepare_service"]

# A worker that was busy when the others loaded the models gets another task.
_WARMING_ROUNDS = 4


@dataclass(frozen=True, slots=True)
class Service:
    """A configuration, the models of its encoders, and the function that has both."""

    config: StreamConfig
    models: tuple[PreparedModel, ...]
    function: Featurizer

    @property
    def loads(self) -> int:
        """How often a worker loaded one of the models."""
        return sum(model.loads for model in self.function.embedder.models)


def prepare_service(
    spark: SparkSession,
    running: Service,
    encoders: tuple[EncoderConfig, ...],
    note: Callable[[str], object],
) -> Service | None:
    """Check other encoders as a start does, and load their models in the workers.

    Returns None if these models run already, with these settings. `note` takes a line for each
    check.

    Raises:
        SetupError: a model cannot be used.
    """
    decode_device = running.config.decode.device
    checks = EncoderChecks(spark, encoders, decode_device=decode_device)
    failed = []
    for finding in run_checks(checks.list_all(TableAddress.of(running.config.table))):
        mark = "ok  " if finding.passed else "FAIL"
        note(f"{mark} {finding.subject:<11} {finding.detail}")
        if not finding.passed:
            failed.append(finding.detail)
    if failed or checks.models is None:
        raise SetupError(failed[0])
    present = running.config.all_encoders, list_ids(running.models)
    if (encoders, list_ids(checks.models)) == present:
        return None
    config = running.config.with_encoders(encoders)
    function = build_featurizer(spark, config, checks.models)
    prepared = Service(config, checks.models, replace(function, tallies=running.function.tallies))
    wanted = count_parallel_tasks(spark) * len(checks.models)
    for _ in range(_WARMING_ROUNDS):
        warm_workers(spark, function.embedder.load)
        if prepared.loads >= wanted:
            break
    note("the workers have loaded the new models")
    return prepared
