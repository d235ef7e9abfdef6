"""The alerts, on what a real stream said of itself while its producer and its workers failed."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from embedstream.monitor.metrics import METRICS
from promtool import RULES, run_rule_tests
from recorded_metrics import BROKEN_S, HEALTHY_S, SCRAPE_S, STALLED_S, record, replay, split
from streams import Topic

RECORDING = Path(__file__).parent / "recorded_metrics.txt"
"""Written by the long test below when RECORD_METRICS is set."""

# A scrape of the recording is a minute of the alerts' time.
STEP_S = 60


def minutes(seconds: float) -> int:
    return int(seconds / SCRAPE_S)


def check_alerts(recording: str, folder: Path) -> None:
    scrapes = split(recording)
    series = [*replay(scrapes, step_s=STEP_S)]
    series.append({"series": 'up{job="embedstream",instance="a"}', "values": f"1x{len(scrapes)}"})

    def firing(at_s: float, *alerts: tuple[str, str]) -> dict[str, Any]:
        samples = [{"labels": f'{{alertname="{one}"{more}}}', "value": 1} for one, more in alerts]
        expression = 'count by (alertname, topic) (ALERTS{alertstate="firing"})'
        return {
            "expr": expression,
            "eval_time": f"{minutes(at_s)}m",
            "exp_samples": samples,
        }

    (topic,) = {
        name.split('topic="')[1].split('"')[0] for name in scrapes[-1].values if "lag_m" in name
    }
    failures = ("EmbedstreamFailureRatioHigh", f', topic="{topic}"')
    run_rule_tests(
        {
            "rule_files": [str(RULES)],
            "evaluation_interval": "1m",
            "tests": [
                {
                    "interval": f"{STEP_S}s",
                    "input_series": series,
                    "promql_expr_test": [
                        firing(HEALTHY_S),
                        firing(HEALTHY_S + BROKEN_S, failures),
                        firing(
                            HEALTHY_S + BROKEN_S + STALLED_S - SCRAPE_S,
                            ("EmbedstreamNoCommit", ""),
                            # The topic is as young as the run, so its margin is small.
                            ("EmbedstreamRetentionMarginLow", f', topic="{topic}"'),
                        ),
                    ],
                }
            ],
        },
        folder,
    )


def test_the_alerts_fire_for_what_went_wrong_in_a_real_run(tmp_path: Path) -> None:
    check_alerts(RECORDING.read_text(encoding="utf-8"), tmp_path)


@pytest.mark.long
@pytest.mark.kafka
def test_so_they_do_for_a_run_of_now(topic: Topic, tmp_path: Path) -> None:
    recording = record(topic, tmp_path)
    if os.getenv("RECORD_METRICS"):
        RECORDING.write_text(recording.replace(topic.name, "images"), encoding="utf-8")
    check_alerts(recording, tmp_path)


def test_the_recording_has_what_is_declared() -> None:
    names = {
        name for scrape in split(RECORDING.read_text(encoding="utf-8")) for name in scrape.values
    }
    found = {re.sub("_(bucket|sum|count)$", "", name.partition("{")[0]) for name in names}
    # There is no index, and nothing is published.
    absent = {"embedstream_index_version", "embedstream_index_trouble"}
    absent |= {"embedstream_published_version", "embedstream_publish_trouble"}
    assert found == {metric.name for metric in METRICS} - absent | {"process_start_time_seconds"}
