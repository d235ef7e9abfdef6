"""The events are a closed set: what the code logs is what the page lists."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from embedstream.follow.process import Kind
from embedstream.index.reports import INDEX
from embedstream.logs.events import DESCRIPTIONS, Event
from embedstream.logs.reference import build_reference
from embedstream.publish.reports import PUBLISH
from embedstream_core.redaction import names_secret

ROOT = Path(__file__).parents[3]
# The parameters of `log_event` that are no fields, and what is given as **mapping.
PARAMETERS = {"level", "exc_info"}
MAPPINGS = {
    "_count_rows(report)": {"rows", "embeddings", "failures", "deleted"},
    "_count_rows(totals)": {"rows", "embeddings", "failures", "deleted"},
    "asdict(compacted)": {"files_removed", "files_added"},
    "asdict(loss)": {"topic", "partition", "first", "last"},
    "fields": set[str](),
}
# The events of a process that follows the table.
FOLLOWED: Mapping[Kind, set[str]] = {
    "progress": {"version", "report"},
    "trouble": {"version"},
    "recovered": {"version"},
    "behind": {"version", "table_version"},
    "output": set(),
}


def calls() -> Iterator[ast.Call]:
    for path in sorted((ROOT / "streaming").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and "Event." in ast.unparse(node):
                yield node


def find_logged() -> dict[str, set[str]]:
    """The fields of each event that a call of `log_event`, or of a function around it, names."""
    logged: dict[str, set[str]] = defaultdict(set)
    for call in calls():
        events = [
            one.attr
            for one in call.args
            if isinstance(one, ast.Attribute) and ast.unparse(one).startswith("Event.")
        ]
        for name in events:
            for keyword in call.keywords:
                given = {keyword.arg} if keyword.arg else MAPPINGS[ast.unparse(keyword.value)]
                logged[Event[name]] |= {one for one in given if one and one not in PARAMETERS}
            logged[Event[name]] |= set()
    # Where a function around `log_event` adds fields, or `Follower.get_event` the event's name.
    for follower in (INDEX, PUBLISH):
        for kind, fields in FOLLOWED.items():
            logged[follower.get_event(kind)] |= fields
    logged[PUBLISH.get_event("skipped")] |= {"version", "report"}
    for name in (Event.CLAIM_LOST, Event.CLAIM_NOT_RENEWED):
        logged[name] |= {"claim_id", "table"}
    logged[Event.STOPPING].add("interrupted")
    return logged


def test_what_is_logged_is_what_is_described() -> None:
    described = {name: set(one.fields) for name, one in DESCRIPTIONS.items()}
    assert find_logged() == described
    assert set(DESCRIPTIONS) == set(Event)


def test_no_field_is_named_like_a_secret() -> None:
    names = {name for one in DESCRIPTIONS.values() for name in one.fields}
    assert [name for name in names if names_secret(name)] == []


def test_the_page_is_up_to_date() -> None:
    page = (ROOT / "docs" / "logging.md").read_text(encoding="utf-8")
    assert page == build_reference(), "docs/logging.md differs from the code: run `make docs`"
