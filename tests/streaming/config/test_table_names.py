"""Names of tables in a catalog."""

from __future__ import annotations

from pathlib import Path

import pytest

from embedstream.config.errors import ConfigError
from embedstream.config.load import load_config, load_files_config
from embedstream.config.table_names import quote_table_name, split_table_name

LOCAL = Path(__file__).parents[3] / "conf/local.yaml"


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("main.vectors.images", ("main", "vectors", "images")),
        ("vectors.images", ("vectors", "images")),
        ("`my catalog`.a.`b.c`", ("my catalog", "a", "b.c")),
        ("a.`tick``s`", ("a", "tick`s")),
        ("été.zürich-1", ("été", "zürich-1")),
    ],
)
def test_a_name_has_parts_and_is_quoted_part_by_part(name: str, parts: tuple[str, ...]) -> None:
    assert split_table_name(name) == parts
    assert split_table_name(quote_table_name(name)) == parts


@pytest.mark.parametrize(
    "name",
    [
        "images",
        "a.b.c.d",
        "a..b",
        ".a.b",
        "a.b.",
        "a.`b",
        "a.b c",
        "a.``",
        "",
        "s3a://b/t",
        "`a`b.c",
    ],
)
def test_another_text_is_refused_with_what_to_write(name: str) -> None:
    with pytest.raises(ConfigError, match=r"write catalog\.schema\.table or schema\.table"):
        load_config(LOCAL, [f"table.name='{name}'"], environment={})


def test_a_table_needs_a_path_or_a_name() -> None:
    with pytest.raises(ConfigError, match="table: give path, a folder, or name"):
        load_files_config({"table": {}})


def test_a_name_alone_leaves_the_locations_to_the_catalog() -> None:
    named = load_config(LOCAL, ["table.path=null", "table.name=a.b.c"], environment={})
    assert (named.table.path, named.locations) == ("", [named.checkpoint])
    both = load_config(LOCAL, ["table.name=a.b.c"], environment={})
    assert both.locations == [both.table.path, both.checkpoint]
    assert load_files_config({"table": {"name": "a.b"}}).locations == []
