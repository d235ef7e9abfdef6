"""Check the encoders of a configuration: before a start, and before a running stream takes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from pyspark.sql import SparkSession

from embedstream.config.sections import EncoderConfig
from embedstream.table.address import TableAddress
from embedstream.worker.model import Choice, choose_precision, prepare
from embedstream_core.engine.backends import find_obstacle
from embedstream_core.engine.engine import choose_batch_size, find_device
from embedstream_core.errors import SetupError
from embedstream_core.models.card import PreparedModel
from embedstream_core.models.files.file_formats import is_fixed
from embedstream_core.models.probe import NOUNS
from embedstream_core.pipeline.jpeg_batches import open_batch_decoder
from embedstream_core.settings import DecodeDevice, DecodeSettings

__all__ = ["EncoderChecks", "Preparation"]

Preparation = Callable[[], PreparedModel]
"""Returns a prepared model; raises SetupError if it cannot be prepared."""


@dataclass(eq=False)
class _Encoder:
    """An encoder and what is known of it so far."""

    config: EncoderConfig
    prepare: Preparation
    model: PreparedModel | None = None
    choice: Choice | None = None


class EncoderChecks:
    """The checks of some encoders; each returns a detail, and keeps what later checks need."""

    def __init__(
        self,
        spark: SparkSession,
        encoders: Sequence[EncoderConfig],
        preparations: Sequence[Preparation] | None = None,
        *,
        decode_device: DecodeDevice = "cpu",
    ) -> None:
        """Check nothing yet. `preparations` have one for each encoder, if they have begun."""
        self._spark = spark
        self._decode_device = decode_device
        begun = preparations or [partial(prepare, one) for one in encoders]
        self._encoders = [_Encoder(*pair) for pair in zip(encoders, begun, strict=True)]

    @property
    def models(self) -> tuple[PreparedModel, ...] | None:
        """The models in their precisions, in the order of the configuration; None before that."""
        choices = [one.choice for one in self._encoders]
        return tuple(one.model for one in choices if one) if all(choices) else None

    def list_all(self, table: TableAddress) -> Mapping[str, Callable[[], str]]:
        """Return all checks by subject, for models whose rows an existing table may have."""
        return {**self.list_preparations(), **self.list_choices(table)}

    def list_preparations(self) -> Mapping[str, Callable[[], str]]:
        """Return the checks that prepare each encoder and look for its device, by subject."""
        checks: dict[str, Callable[[], str]] = {
            self._name(subject, one): partial(check, one)
            for one in self._encoders
            for subject, check in (("encoder", self._prepare), ("device", self._check_device))
        }
        if self._decode_device == "cuda":
            checks["decode device"] = self._check_decode_device
        return checks

    def list_choices(self, table: TableAddress | None = None) -> Mapping[str, Callable[[], str]]:
        """Return the checks that say in which precision each encoder runs, by subject."""
        return {
            self._name("precision", one): partial(self._describe_choice, one, table)
            for one in self._encoders
        }

    def choose_precisions(
        self, table: TableAddress | None = None
    ) -> tuple[PreparedModel, ...] | None:
        """Choose the precision of each encoder that was prepared; return `models`.

        The rows of an existing `table` decide first.

        Raises:
            SetupError: a worker cannot start a model.
        """
        for one in self._encoders:
            self._choose(one, table)
        return self.models

    def _choose(self, one: _Encoder, table: TableAddress | None) -> None:
        if one.choice is None and one.model is not None:
            one.choice = choose_precision(self._spark, one.model, one.config, table=table)

    def _name(self, subject: str, one: _Encoder) -> str:
        return subject if len(self._encoders) == 1 else f"{subject} {self._encoders.index(one)}"

    def _prepare(self, one: _Encoder) -> str:
        card, tensors = one.model = one.prepare()
        megabytes = len(tensors) / 1e6
        return f"{card.model_id}, {card.dimension} floats, {megabytes:.0f} MB, {card.license}"

    def _check_device(self, one: _Encoder) -> str:
        encoder = one.config
        if self._is_local():
            device = find_device(encoder.device)
            # The encoder of a model from a registry is named by its card alone.
            name = one.model.card.encoder if one.model else encoder.name
            modalities = one.model.card.modalities if one.model else ("image",)
            reason = find_obstacle(
                encoder.backend, device, modalities=modalities, fixed=is_fixed(name)
            )
            unusable = f"torch ({encoder.backend} is not usable: {reason})"
            used = unusable if reason else encoder.backend
            sizes = [
                f"{encoder.batch_size or choose_batch_size(device, modality)} {NOUNS[modality]}"
                for modality in modalities
            ]
            return f"{device.type}, {used}, {' or '.join(sizes)} a forward pass"
        granted = self._get_gpu_amount()
        if encoder.device == "cuda" and not granted:
            raise SetupError(
                "encoder.device is cuda, but spark.executor.resource.gpu.amount is not set; grant "
                "the executors GPUs in spark.options, or set encoder.device to auto or cpu"
            )
        return f"{encoder.device}; {granted or 0} GPUs an executor"

    def _check_decode_device(self) -> str:
        devices = [one.config.device for one in self._encoders]
        if self._is_local():
            settings = DecodeSettings(device=self._decode_device)
            open_batch_decoder(settings, [find_device(one) for one in devices])
            return "cuda, common JPEGs in batches"
        granted = self._get_gpu_amount()
        if not granted or set(devices) == {"cpu"}:
            raise SetupError(
                f"decode.device is cuda, but {granted or 0} GPUs are granted to an executor and "
                f"encoder.device is {' and '.join(devices)}; grant the executors GPUs "
                "(spark.executor.resource.gpu.amount) for an encoder on cuda, or set "
                "decode.device to cpu"
            )
        return f"cuda; {granted} GPUs an executor"

    def _is_local(self) -> bool:
        return str(self._spark.sparkContext.master).startswith("local[")

    def _get_gpu_amount(self) -> str:
        """Return how many GPUs Spark grants an executor, as a text that is empty for none."""
        key = "spark.executor.resource.gpu.amount"
        granted = str(self._spark.sparkContext.getConf().get(key, "0"))
        return "" if granted == "0" else granted

    def _describe_choice(self, one: _Encoder, table: TableAddress | None) -> str:
        if one.model is None:
            raise SetupError("not chosen, because there is no encoder")
        self._choose(one, table)
        assert one.choice is not None
        model_id = one.choice.model.card.model_id
        for other in self._encoders[: self._encoders.index(one)]:
            if other.choice and other.choice.model.card.model_id == model_id:
                raise SetupError(
                    f"{self._name('encoder', other)} is '{model_id}' too, and a message has one "
                    "row of each model; leave one of them out"
                )
        return f"{one.choice.precision}, {one.choice.reason}"
