"""The metrics as Prometheus reads them: families made from a status when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final, get_args

from embedstream.monitor.counts import MAX_PARTITIONS, Histogram, Samples
from embedstream.monitor.metrics import (
    BUILD,
    INDEX_TROUBLE,
    INDEX_VERSION,
    LAG_MESSAGES,
    LAG_SECONDS,
    LAST_COMMIT,
    METRICS,
    MODEL,
    OTHER,
    PUBLISH_TROUBLE,
    PUBLISHED_VERSION,
    READY,
    RETENTION_MARGIN,
    STATE,
    TABLE_VERSION,
    Metric,
)
from embedstream.monitor.status import PartitionStatus, State, Status, StatusSource

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client import Metric as Family

__all__ = ["build_registry"]

_Values = dict[tuple[str, ...], float | Histogram]

_STATES: Final[tuple[State, ...]] = get_args(State)


def build_registry(
    source: StatusSource, *, read_counts: Callable[[], Samples] = dict
) -> CollectorRegistry:
    """Return a registry with the metrics of a source, and with those of this Python process.

    Nothing is kept: each scrape reads the source. `read_counts` gives the counters and histograms.
    """
    from prometheus_client import (
        CollectorRegistry,
        GCCollector,
        PlatformCollector,
        ProcessCollector,
    )
    from prometheus_client.registry import Collector

    class StreamCollector(Collector):
        def collect(self) -> Iterator[Family]:
            samples = {**_build_samples(source), **read_counts()}
            for metric in METRICS:
                if metric in samples:
                    yield _build_family(metric, dict(samples[metric]))

        def describe(self) -> Iterator[Family]:
            for metric in METRICS:
                yield _build_family(metric, {})

    registry = CollectorRegistry()
    for collect in (ProcessCollector, PlatformCollector, GCCollector):
        collect(registry=registry)
    registry.register(StreamCollector())
    return registry


def _build_samples(source: StatusSource) -> Samples:
    """Return the values of the metrics that a status has; unknown ones are absent."""
    status = source.read_status()
    committed = status.last_micro_batch or status.table.last_commit
    single = {
        LAG_SECONDS: status.lag_s,
        LAST_COMMIT: None if committed is None else committed.timestamp(),
        TABLE_VERSION: status.table.version,
        READY: source.is_ready,
    }
    if status.index is not None:
        single[INDEX_VERSION] = -1 if status.index.version is None else status.index.version
        single[INDEX_TROUBLE] = bool(status.index.trouble)
    if status.publish is not None:
        version = status.publish.version
        single[PUBLISHED_VERSION] = -1 if version is None else version
        single[PUBLISH_TROUBLE] = bool(status.publish.trouble)
    return {
        **{metric: {(): float(value)} for metric, value in single.items() if value is not None},
        LAG_MESSAGES: _gather(status, lambda one: one.lag, sum),
        RETENTION_MARGIN: _gather(status, lambda one: one.margin, min),
        MODEL: {
            (one.model_id, one.name, one.precision or "", str(one.dimension or "")): 1.0
            for one in status.models
        },
        STATE: {(state,): float(state == status.state) for state in _STATES},
        BUILD: {(status.version,): 1.0},
    }


def _gather(
    status: Status,
    get: Callable[[PartitionStatus], int | None],
    join: Callable[[list[int]], int],
) -> _Values:
    """Return a value of each partition; those beyond the limit are joined."""
    values: _Values = {}
    rest = []
    for one in status.partitions:
        if (value := get(one)) is None:
            continue
        if len(values) < MAX_PARTITIONS:
            values[one.topic, str(one.partition)] = float(value)
        else:
            rest.append(value)
    if rest:
        values[OTHER, OTHER] = float(join(rest))
    return values


def _build_family(metric: Metric, values: _Values) -> Family:
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
    )

    if metric.kind == "histogram":
        histogram = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
        for labels, value in values.items():
            if isinstance(value, Histogram):
                histogram.add_metric(labels, value.buckets, value.sum)
        return histogram
    # An info is a gauge of 1: the text format has no type of its own for it.
    create = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family: CounterMetricFamily | GaugeMetricFamily = create(
        metric.name, metric.help, labels=metric.labels
    )
    for labels, value in values.items():
        if not isinstance(value, Histogram):
            family.add_metric(labels, value)
    return family
