"""The declared metrics keep Prometheus's conventions, and docs/metrics.md is made from them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from embedstream.monitor.counts import Histogram, LabelLimit
from embedstream.monitor.metrics import METRICS, OTHER, Metric
from embedstream.monitor.reference import build_reference

PAGE = Path(__file__).parents[3] / "docs" / "metrics.md"

NAMED_BY_ALERTS = {
    "embedstream_rows_total": ("topic", "outcome", "code", "model_id"),
    "embedstream_lag_messages": ("topic", "partition"),
    "embedstream_lag_seconds": (),
    "embedstream_retention_margin_messages": ("topic", "partition"),
    "embedstream_stage_seconds_total": ("stage",),
    "embedstream_last_commit_timestamp_seconds": (),
}


def test_the_page_is_up_to_date() -> None:
    stale = PAGE.read_text(encoding="utf-8") != build_reference()
    assert not stale, "docs/metrics.md differs from the declarations: run `make docs`"


def test_each_metric_has_one_row_of_the_page() -> None:
    rows = re.findall(r"^\| `(embedstream_\w+)` \|", build_reference(), re.MULTILINE)
    assert rows == [one.name for one in METRICS]


def test_the_text_of_the_page_names_no_other_metric() -> None:
    named = set(re.findall(r"embedstream_[a-z_]+", build_reference()))
    assert named == {one.name for one in METRICS}


@pytest.mark.parametrize("metric", METRICS, ids=lambda one: one.name)
def test_names_say_kind_and_unit(metric: Metric) -> None:
    endings = {"counter": "_total", "info": "_info"}
    stem = metric.name.removesuffix(endings.get(metric.kind, ""))
    assert (stem != metric.name) == (metric.kind in endings)
    # What is counted need not repeat its unit.
    if metric.unit.startswith("seconds"):
        assert stem.endswith("_seconds")
    assert metric.help.endswith(".")
    assert bool(metric.buckets) == bool(metric.bucket_reason) == (metric.kind == "histogram")
    assert list(metric.buckets) == sorted(set(metric.buckets))


def test_the_labels_that_dashboards_use_stay() -> None:
    assert {one.name: one.labels for one in METRICS if one.name in NAMED_BY_ALERTS} == (
        NAMED_BY_ALERTS
    )


def test_the_declarations_need_no_package_of_the_extra() -> None:
    check = (
        "import sys, embedstream.monitor.reference as one; one.build_reference();"
        "print(sorted({'prometheus_client', 'starlette', 'uvicorn', 'jinja2'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_values_beyond_the_limit_are_called_other() -> None:
    limit = LabelLimit(2)
    assert [limit.admit(one) for one in "abcac"] == ["a", "b", OTHER, "a", OTHER]


def test_a_histogram_counts_up_to_each_bound() -> None:
    histogram = Histogram((1, 5))
    for value, count in ((0.5, 2), (1.0, 1), (4.0, 3), (9.0, 1)):
        histogram.add(value, count)
    assert histogram.buckets == [("1.0", 3.0), ("5.0", 6.0), ("+Inf", 7.0)]
    assert histogram.sum == 0.5 * 2 + 1 + 12 + 9
