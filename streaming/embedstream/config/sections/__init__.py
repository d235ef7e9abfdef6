"""The configuration of a stream, as frozen models; inner code receives only its section."""

from __future__ import annotations

from embedstream.config.field_types import Section
from embedstream.config.sections.embedding import (
    DataFrameConfig,
    DecodeConfig,
    EncoderConfig,
    GpuConfig,
    PipelineConfig,
    PreprocessingConfig,
    ReferencesConfig,
)
from embedstream.config.sections.index import IndexConfig
from embedstream.config.sections.kafka import KafkaConfig, TriggerConfig
from embedstream.config.sections.messages import FieldsConfig, MessageConfig
from embedstream.config.sections.monitoring import GuardsConfig, LogConfig, MonitorConfig
from embedstream.config.sections.publishing import PublishConfig
from embedstream.config.sections.registry import RegistryConfig
from embedstream.config.sections.spark import SparkConfig
from embedstream.config.sections.stream import BulkFilesConfig, StreamConfig
from embedstream.config.sections.table import TableConfig

__all__ = [
    "BulkFilesConfig",
    "DataFrameConfig",
    "DecodeConfig",
    "EncoderConfig",
    "FieldsConfig",
    "GpuConfig",
    "GuardsConfig",
    "IndexConfig",
    "KafkaConfig",
    "LogConfig",
    "MessageConfig",
    "MonitorConfig",
    "PipelineConfig",
    "PreprocessingConfig",
    "PublishConfig",
    "ReferencesConfig",
    "RegistryConfig",
    "Section",
    "SparkConfig",
    "StreamConfig",
    "TableConfig",
    "TriggerConfig",
]
