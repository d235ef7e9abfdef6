"""The configuration and the core agree on each default and on each choice."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import fields
from typing import get_args

import pytest
from pydantic import TypeAdapter
from pyspark.sql import SparkSession

from doors import SMALL
from embedstream.config.sections import (
    DataFrameConfig,
    DecodeConfig,
    EncoderConfig,
    GpuConfig,
    PreprocessingConfig,
    ReferencesConfig,
)
from embedstream.worker.model import prepare
from embedstream.worker.task import build_embedder
from embedstream_core.engine.backends import BACKENDS
from embedstream_core.engine.engine import Engine
from embedstream_core.errors import MissingExtra
from embedstream_core.fetch.fetcher import SCHEMES
from embedstream_core.media.image.decode import render
from embedstream_core.media.image.fast_jpeg import render_quickly
from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.settings import (
    Backend,
    DecodeSettings,
    EngineSettings,
    FetchPolicy,
    GpuSettings,
    Isolation,
    PipelineLimits,
    SchemeName,
)


def test_fetching_has_one_set_of_defaults() -> None:
    policy = ReferencesConfig().build_policy(max_bytes=DecodeConfig().max_image_bytes)

    assert policy == FetchPolicy()


def test_decoding_has_one_set_of_limits() -> None:
    assert DecodeConfig().settings == DecodeSettings()


@pytest.mark.spark
def test_workers_get_the_defaults_of_the_core(
    spark: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = prepare(SMALL)

    embedder = build_embedder(spark, [(model, EncoderConfig())], DataFrameConfig())

    assert embedder.fetch_policy == FetchPolicy()
    assert embedder.decode_settings == DecodeSettings()
    assert embedder.isolation == Isolation()
    assert embedder.model.settings == EngineSettings()
    # Spark decides the threads: those of a task here.
    assert embedder.pipeline_limits == PipelineLimits(decode_threads=1)
    # Every door refuses a format that cannot be decoded here, before any work.
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    bounds = DataFrameConfig(decode=DecodeConfig(formats=("JPEG", "HEIC")))
    with pytest.raises(MissingExtra, match="HEIC in decode"):
        build_embedder(spark, [(model, EncoderConfig())], bounds)


def test_decode_threads_are_chosen_where_the_work_runs() -> None:
    assert DataFrameConfig().pipeline.decode_threads is None
    assert PipelineLimits().decode_threads is None


@pytest.mark.parametrize("function", [DecodeSettings, render, render_quickly])
def test_fidelity_has_one_default(function: Callable[..., object]) -> None:
    default = inspect.signature(function).parameters["fidelity"].default

    assert default == DecodeConfig().fidelity


def test_the_backend_has_one_default() -> None:
    default = inspect.signature(Engine.start).parameters["backend"].default

    assert default == EncoderConfig().backend == EngineSettings().backend


def test_the_engine_gets_the_settings_of_its_encoder() -> None:
    gpu = GpuConfig(pinned_memory=True, in_flight=2, cuda_graphs=True)
    config = EncoderConfig(device="cuda", backend="compile", batch_size=3, gpu=gpu)

    assert EncoderConfig().settings == EngineSettings()
    assert config.settings == EngineSettings("cuda", "compile", 3, GpuSettings(True, 2, True))
    # A logged model keeps them as MLflow does.
    kept = config.model_dump(include={field.name for field in fields(EngineSettings)})
    assert TypeAdapter(EngineSettings).validate_python(kept) == config.settings


def test_a_declared_preprocessing_has_the_cores_fields() -> None:
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    declared = PreprocessingConfig(resize_px=256, crop_px=224, mean=mean, std=std)

    assert ImagePreprocessing(**dict(declared)) == ImagePreprocessing(
        256, 224, "bilinear", mean, std
    )


def test_the_choices_are_exactly_the_implemented_schemes_and_backends() -> None:
    assert set(get_args(SchemeName)) == set(SCHEMES)
    assert set(get_args(Backend)) == set(BACKENDS)
