"""How a table is laid out and which of its properties may be set: checked before Spark starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = ["STATISTICS_COLUMNS", "check_cluster_columns", "check_properties", "find_property"]

STATISTICS_COLUMNS = (
    *("topic", "partition", "offset", "timestamp", "image_id", "uri", "model_id"),
    *("content_sha256", "processed_at", "error.code"),
)
"""The columns of the outcome table whose smallest and largest value Delta keeps for each file.

Statistics of long arrays and texts take time, and no query can skip files by them. By those of
`error.code`, files without tombstones are skipped.
"""

_STATISTICS = "delta.dataSkippingStatsColumns"
# A limit of Delta.
_MOST_CLUSTER_COLUMNS = 4

_REFUSED_PROPERTIES: Mapping[str, str] = {
    "delta.setTransactionRetentionDuration": (
        "the table would forget which micro-batches it has, and a restart after that time could "
        "add a micro-batch twice"
    ),
}
"""Properties that break what the stream promises, and how."""


def check_cluster_columns(columns: Sequence[str], properties: Mapping[str, str]) -> None:
    """Check `table.cluster_by` against the table's columns and its other properties.

    Raises:
        ValueError: Delta could not cluster the table by these columns.
    """
    given = find_property(properties, _STATISTICS)
    kept = STATISTICS_COLUMNS if given is None else [one.strip(" `") for one in given.split(",")]
    possible = [name for name in STATISTICS_COLUMNS if "." not in name]
    for name in columns:
        if name not in possible:
            raise ValueError(
                f"cluster_by names '{name}', which is not a column with statistics; choose from "
                f"{', '.join(possible)}"
            )
        if name not in kept:
            raise ValueError(
                f"cluster_by names '{name}', of which table.properties keeps no statistics: add "
                f"it to {_STATISTICS}"
            )
    if len(columns) > _MOST_CLUSTER_COLUMNS or len(set(columns)) < len(columns):
        raise ValueError(
            f"cluster_by has {len(columns)} columns ({', '.join(columns)}): name up to "
            f"{_MOST_CLUSTER_COLUMNS} different ones"
        )


def check_properties(properties: Mapping[str, str]) -> None:
    """Check the properties of a table, those of the configuration or of a table that exists.

    Raises:
        ValueError: one of them breaks what the stream promises.
    """
    for name, effect in _REFUSED_PROPERTIES.items():
        if (value := find_property(properties, name)) is not None:
            raise ValueError(f"the table property {name} is '{value}': {effect}; remove it")


def find_property(properties: Mapping[str, str], name: str) -> str | None:
    """Return the value of a property; Delta ignores the case of its own."""
    return next((properties[one] for one in properties if one.lower() == name.lower()), None)
