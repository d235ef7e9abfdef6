"""Embed a query by the model that made the rows: an image, a text or an audio file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

from embedstream.config.sections import EncoderConfig
from embedstream.index.stores.contract import Vector
from embedstream.worker.model_spec import build_spec
from embedstream_core.engine.engine import Engine, find_device
from embedstream_core.errors import SetupError
from embedstream_core.fetch.fetcher import deny_references
from embedstream_core.media.detect import detect_type, find_modality
from embedstream_core.media.modalities import Preprocessing
from embedstream_core.media.text.preprocessing import TextPreprocessing
from embedstream_core.model_id import MLFLOW, ModelId
from embedstream_core.models.card import PreparedModel
from embedstream_core.models.encoders.listing import list_modalities
from embedstream_core.models.files.file_formats import PROGRAMS
from embedstream_core.models.loaded import LoadedModel
from embedstream_core.models.mlflow_store import format_registered_uri
from embedstream_core.models.networks import RANDOM_NAME
from embedstream_core.models.prepare import ModelSpec, prepare_and_load
from embedstream_core.pipeline.pipeline import Pipeline
from embedstream_core.records import Failure, Item
from embedstream_core.settings import IMAGE_FORMATS, DecodeSettings, Isolation, ModalityName

__all__ = ["QueryEmbedder", "Vector", "embed_queries"]

_Prepared = tuple[PreparedModel, LoadedModel]


def embed_queries(
    queries: Sequence[bytes | str], *, model_ids: Sequence[str], weights: str | None = None
) -> tuple[str, list[Vector]]:
    """Embed queries once; see `QueryEmbedder.embed`."""
    return QueryEmbedder().embed(queries, model_ids=model_ids, weights=weights)


class QueryEmbedder:
    """Embeds queries on this machine, and keeps the models that it has loaded.

    `encoders` are those of a configuration that made the rows: they know what a `model_id` does not
    hold, which is a declared preprocessing and the paths of weights. `isolation` decodes queries in
    a child process within these limits, for those that come from strangers.
    """

    def __init__(
        self,
        encoders: Sequence[EncoderConfig] = (),
        *,
        decode_settings: DecodeSettings | None = None,
        isolation: Isolation | None = None,
    ) -> None:
        self._encoders = encoders
        # Without a configuration, a query may have any format that a table's images have.
        self._decode_settings = decode_settings or DecodeSettings(formats=IMAGE_FORMATS)
        self._isolation = isolation
        self._started: dict[tuple[str, ...], tuple[str, Engine]] = {}

    def embed(
        self, queries: Sequence[bytes | str], *, model_ids: Sequence[str], weights: str | None
    ) -> tuple[str, list[Vector]]:
        """Embed queries of one modality by the model that a `model_id` names.

        A query is the bytes of an image, of an audio file or of a text, or a text itself. Of
        several models, the only one that accepts the queries' modality embeds them. `weights` is
        the file or the folder that the model's weights came from, or the MLflow URI of a run's
        weights.

        Returns:
            The `model_id`, and the vectors in order: float32 of shape (dimension,).

        Raises:
            SetupError: no model or several accept the queries, the model cannot be prepared again,
                or a query cannot be embedded.
        """
        first = queries[0]
        kind = "text/plain" if isinstance(first, str) else detect_type(first)
        key = (find_modality(kind) or kind, weights or "", *model_ids)
        if key not in self._started:
            self._started[key] = self._start(kind, model_ids, weights=weights)
        model_id, engine = self._started[key]
        items = [
            Item("query", content=query.encode("utf-8", "surrogatepass"), media_type="text/plain")
            if isinstance(query, str)
            else Item("query", content=query)
            for query in queries
        ]
        pipeline = Pipeline(
            [engine],
            fetch=deny_references,
            decode_settings=self._decode_settings,
            isolation=self._isolation,
        )
        (entries,) = pipeline.run([items])
        vectors = []
        for (outcome,) in entries:
            if isinstance(outcome, Failure):
                raise SetupError(f"the query cannot be used: {outcome.message}")
            vectors.append(outcome.vector)
        return model_id, vectors

    def _start(
        self, kind: str, model_ids: Sequence[str], *, weights: str | None
    ) -> tuple[str, Engine]:
        """Load the model that accepts content of a MIME type."""
        model_id, modality, (model, loaded) = self._choose_model(kind, model_ids, weights=weights)
        inputs = [one for one in loaded.inputs if one.modality == modality]
        engine = Engine.start(
            loaded._replace(inputs=tuple(map(_use_query_prefix, inputs))),
            device=find_device("auto"),
            precision=ModelId.parse(model_id).precision,
            normalize=model.card.normalize,
        )
        return model_id, engine

    def _choose_model(
        self, kind: str, model_ids: Sequence[str], *, weights: str | None
    ) -> tuple[str, ModalityName, _Prepared]:
        """Prepare the only model that accepts content of a MIME type.

        What an encoder accepts is mostly known by its name, so few others are prepared. `weights`
        are of one model: the others' hashes refuse them.
        """
        accepting = {one: list_modalities(ModelId.parse(one).encoder) for one in model_ids}
        modality = find_modality(kind)
        prepared: dict[str, _Prepared] = {}
        refused: dict[str, SetupError] = {}
        for model_id in [one for one in model_ids if modality in (None, *accepting[one])]:
            try:
                prepared[model_id] = made = self._prepare_again(model_id, weights=weights)
                accepting[model_id] = made[0].card.modalities
            except SetupError as error:
                refused[model_id] = error
        known = sorted({*chain.from_iterable(accepting.values())})
        if modality is None and len(known) == 1:
            # The modality itself says what is wrong with the query.
            (modality,) = known
        fitting = [one for one in prepared if modality in accepting[one]]
        possible = fitting if weights else [*fitting, *refused]
        if modality is not None and len(possible) > 1:
            raise SetupError(
                f"several models of the table may embed {modality}: {', '.join(possible)}; choose "
                "one with --model-id"
            )
        if modality is not None and fitting:
            return fitting[0], modality, prepared[fitting[0]]
        if modality is not None and refused:
            raise next(iter(refused.values()))
        accepted = " and ".join(known)
        raise SetupError(
            f"the query is {kind}, and the table's models embed {accepted}: "
            f"{', '.join(model_ids)}; give a query of {accepted}, or choose another table"
        )

    def _prepare_again(self, model_id: str, *, weights: str | None) -> _Prepared:
        named = ModelId.parse(model_id)
        for encoder in self._encoders:
            if _may_have_made(encoder, named):
                spec = build_spec(encoder)
                try:
                    made = prepare_and_load(replace(spec, weights=weights or spec.weights))
                except SetupError:
                    # Its weights are not here, or those of another model; the id may say more.
                    continue
                if ModelId.parse(made[0].card.model_id).in_precision(named.precision) == named:
                    return made
        return prepare_and_load(_read_spec(named, model_id, weights=weights))


def _may_have_made(encoder: EncoderConfig, named: ModelId) -> bool:
    """Return whether a configured encoder can have this id, without reading its weights."""
    return (
        named.encoder in (encoder.name, MLFLOW)
        and named.normalize == encoder.normalize
        and bool(named.preprocessing) == bool(encoder.preprocessing)
    )


def _read_spec(named: ModelId, model_id: str, *, weights: str | None) -> ModelSpec:
    """Return the model that an id describes."""
    if named.preprocessing:
        raise SetupError(
            f"'{model_id}' was made with an encoder.preprocessing of its configuration, which a "
            "model_id does not hold; give the configuration that made the rows (--config)"
        )
    if (
        weights is None
        and named.encoder in PROGRAMS
        and named.weights != "default"
        and not Path(named.weights).exists()
    ):
        raise SetupError(
            f"'{model_id}' was made by a file or folder '{named.weights}', which is not in the "
            "table; give its path as --weights"
        )
    if named.encoder == MLFLOW:
        spec = ModelSpec(MLFLOW, weights or format_registered_uri(named.weights), named.sha256)
    elif named.weights == RANDOM_NAME and weights is None:
        spec = ModelSpec(named.encoder, "random")
    else:
        spec = ModelSpec(named.encoder, weights or named.weights, named.sha256)
    return replace(spec, normalize=named.normalize)


def _use_query_prefix(preprocessing: Preprocessing) -> Preprocessing:
    if isinstance(preprocessing, TextPreprocessing):
        return replace(preprocessing, prefix=preprocessing.query_prefix)
    return preprocessing
