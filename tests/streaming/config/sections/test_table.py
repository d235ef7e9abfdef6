"""A layout that Delta cannot have, and properties that break a promise, are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from config_files import load, problems
from embedstream.config.sections.table import STATISTICS_COLUMNS

STATISTICS = "delta.dataSkippingStatsColumns"
FORGETS = "delta.setTransactionRetentionDuration"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"partition_by": "date", "cluster_by": ["topic"]}, "give partition_by or cluster_by"),
        ({"cluster_by": ["embedding"]}, "names 'embedding', which is not a column with statistics"),
        ({"cluster_by": ["attributes"]}, "names 'attributes', which is not a column with"),
        ({"cluster_by": ["error.code"]}, "names 'error.code', which is not a column with"),
        ({"cluster_by": ["image"]}, "choose from topic, partition, offset, timestamp, image_id"),
        ({"cluster_by": ["topic", "topic"]}, "name up to 4 different ones"),
        ({"cluster_by": list(STATISTICS_COLUMNS[:5])}, "has 5 columns (topic, partition, offset,"),
        (
            {"cluster_by": ["topic", "uri"], "properties": {STATISTICS: "`topic`, offset"}},
            f"names 'uri', of which table.properties keeps no statistics: add it to {STATISTICS}",
        ),
        (
            {"properties": {FORGETS.upper(): "interval 1 day"}},
            f"property {FORGETS} is 'interval 1 day': the table would forget which micro-batches",
        ),
    ],
)
def test_a_layout_that_cannot_be_used_is_refused(
    table: dict[str, Any], message: str, tmp_path: Path
) -> None:
    (_, line) = problems(tmp_path, {"table": table})
    assert message in line


def test_another_partitioning_is_refused_with_the_choice(tmp_path: Path) -> None:
    (_, line) = problems(tmp_path, {"table": {"partition_by": "topic"}})
    assert "table.partition_by" in line
    assert "'date'" in line


def test_the_layout_is_that_of_the_file(tmp_path: Path) -> None:
    given = {"cluster_by": ["topic", "uri"], "properties": {STATISTICS: "`topic`, uri"}}
    assert load(tmp_path, {"table": given}).table.cluster_by == ("topic", "uri")
    assert load(tmp_path, {"table": {"partition_by": "date"}}).table.partition_by == "date"
