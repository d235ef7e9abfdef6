"""Alerts and dashboard: they are valid, name only what embedstream serves, and say what to do.

No registry serves Grafana, so its dashboard is checked by its structure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from embedstream.monitor.metrics import METRICS
from promtool import MONITORING, RULES, run_promtool

# What Prometheus itself, its client and the rules add.
ADDED = {
    "up": set[str](),
    "process_start_time_seconds": set[str](),
    "embedstream:append_rate:messages_per_second": {"topic"},
    "embedstream:retention_margin:seconds": {"topic"},
}
OF_SCRAPE = {"job", "instance"}

WORDS = {
    "absent", "and", "by", "changes", "clamp_min", "count", "deriv", "histogram_quantile",
    "increase", "max", "min", "offset", "on", "or", "rate", "sum", "time",
}  # fmt: skip


def declared() -> dict[str, set[str]]:
    """Each series that a scrape has, with its labels."""
    series = dict(ADDED)
    for metric in METRICS:
        labels = set(metric.labels)
        if metric.kind == "histogram":
            series[f"{metric.name}_bucket"] = labels | {"le"}
            series |= dict.fromkeys([f"{metric.name}_sum", f"{metric.name}_count"], labels)
        else:
            series[metric.name] = labels
    return series


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return list(group["rules"])


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((MONITORING / "dashboard.json").read_text(encoding="utf-8"))
    return loaded


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def targets() -> list[dict[str, Any]]:
    return [target for panel in panels() for target in panel["targets"]]


def expand(expression: str) -> str:
    """An expression of the dashboard as Grafana sends it."""
    for name, value in (("$job", ".+"), ("$__rate_interval", "1m"), ("$__range", "1h")):
        expression = expression.replace(name, value)
    return expression


def expressions() -> list[str]:
    return [rule["expr"] for rule in rules()] + [expand(one["expr"]) for one in targets()]


def scan(expression: str) -> Iterator[tuple[str, set[str]]]:
    """The series of an expression, with the labels that it selects them by."""
    text = re.sub(r"\[[^\]]*\]", "", expression)
    text = re.sub(r"offset \w+", "", text)
    groups = set(re.findall(r"\w+", " ".join(re.findall(r"\b(?:by|on) \(([^)]*)\)", text))))
    text = re.sub(r"\b(?:by|on) \([^)]*\)", "", text)
    for name, selectors in re.findall(r"(?<![\w:\"])([a-zA-Z_:][\w:]*)\b(?:\{([^}]*)\})?", text):
        if name not in WORDS:
            yield name, set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selectors))
    for group in groups:
        yield "", {group}


def test_promtool_accepts_rules_and_configuration() -> None:
    for kind, path in (("rules", RULES), ("config", MONITORING / "prometheus.yaml")):
        done = run_promtool("check", kind, "--lint-fatal", "--lint=all", path)
        assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_fires_when_it_should_and_only_then() -> None:
    done = run_promtool("test", "rules", MONITORING / "rules_test.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", [alert["alert"] for alert in alerts()])
def test_the_unit_tests_notice_an_alert_that_never_fires(tmp_path: Path, name: str) -> None:
    tree = yaml.safe_load(RULES.read_text(encoding="utf-8"))
    for rule in tree["groups"][0]["rules"]:
        if rule.get("alert") == name:
            rule["expr"] = "vector(1) > 1"
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    tests = (MONITORING / "rules_test.yaml").read_text(encoding="utf-8")
    (tmp_path / "rules_test.yaml").write_text(tests, encoding="utf-8")
    assert run_promtool("test", "rules", tmp_path / "rules_test.yaml").returncode != 0


def test_expressions_name_only_what_is_declared() -> None:
    series = declared()
    labels = OF_SCRAPE.union(*series.values())
    for expression in expressions():
        found = list(scan(expression))
        assert any(name for name, _ in found), expression
        for name, selected in found:
            known = labels if not name else series.get(name)
            assert known is not None, f"{name} is not declared: {expression}"
            assert selected <= known | OF_SCRAPE, f"{name} has no {selected - known}: {expression}"


def test_each_expression_of_the_dashboard_is_promql(tmp_path: Path) -> None:
    made = [{"record": f"panel:{n}", "expr": one} for n, one in enumerate(expressions())]
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": made}]}))
    done = run_promtool("check", "rules", path)
    assert done.returncode == 0, done.stdout + done.stderr
    broken = tmp_path / "broken.yaml"
    broken.write_text(path.read_text().replace("sum by (outcome)", "sum by outcome"))
    assert run_promtool("check", "rules", broken).returncode != 0


def test_the_scan_sees_what_is_not_declared() -> None:
    expression = 'sum by (pod) (rate(embedstream_rows{colour="a"}[5m])) > on (job) up offset 3m'
    assert list(scan(expression))[:2] == [("embedstream_rows", {"colour"}), ("up", set())]
    assert ("", {"pod"}) in list(scan(expression))


def test_each_metric_has_a_panel_or_an_alert() -> None:
    named = {name for expression in expressions() for name, _ in scan(expression)}
    shown = {re.sub("_(bucket|sum|count)$", "", name) for name in named}
    # Cards of the live page.
    rest = {"embedstream_model_info", "embedstream_null_values_total"}
    assert {metric.name for metric in METRICS} - shown == rest | {"embedstream_micro_batches_total"}


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert["alert"])
def test_an_alert_says_what_one_sees_and_does(alert: dict[str, Any]) -> None:
    assert alert["labels"].keys() == {"severity"}
    assert alert["labels"]["severity"] in ("critical", "warning")
    notes = alert["annotations"]
    assert notes.keys() == {"summary", "description", "runbook_url"}
    assert all(text.strip().endswith(".") for text in (notes["summary"], notes["description"]))
    anchor = re.sub(r"(?<!^)(?=[A-Z])", "-", alert["alert"]).lower()
    assert notes["runbook_url"] == f"docs/operations.md#{anchor}"


def test_the_dashboard_can_be_imported() -> None:
    board = dashboard()
    assert board["schemaVersion"] >= 39
    assert board["id"] is None
    variables = {one["name"]: one for one in board["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    assert variables["job"]["query"]["query"] == "label_values(embedstream_build_info, job)"
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel["title"])
def test_a_panel_asks_the_chosen_source_for_the_chosen_job(panel: dict[str, Any]) -> None:
    source = {"type": "prometheus", "uid": "${datasource}"}
    assert panel["type"] in ("timeseries", "stat", "heatmap")
    assert panel["datasource"] == source
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    for target in panel["targets"]:
        assert target["datasource"] == source
        assert 'job=~"$job"' in target["expr"]
    references = [target["refId"] for target in panel["targets"]]
    assert len(set(references)) == len(references)


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])
        }
        assert not taken & cells, panel["title"]
        taken |= cells
