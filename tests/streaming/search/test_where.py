"""A condition selects the same rows in the table, in LanceDB and in PostgreSQL."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedstream.config.sections import IndexConfig
from embedstream.follow.table_reader import open_table
from embedstream.index.rows import build_row_schema, name_attribute_column
from embedstream.index.stores.contract import Store, Write
from embedstream.index.stores.kinds import KINDS, open_store
from embedstream.search.scan import scan_table
from embedstream.search.where import Dialect, parse_where
from embedstream_core.errors import SetupError
from outcome_tables import MODEL, row, write_table

Row = Mapping[str, Any]
Truth = bool | None
Test = Callable[[Row], Truth]

ATTRIBUTES = ["shop", "it's", "Größe"]
TEXTS = [
    "images", "Images", "ÄÖÜ", "äöü", "ÄПривет", "ab", "aB", "a_b", "a%b", "a\\b", "it's", "", " ",
    "a\nb", 'say "x"', "z", "é", "e\u0301", "\ue000", "😀", "null", "1", "a'; --",
    "\U0010ffff", "ß",
]  # fmt: skip
START = datetime(2026, 1, 1, tzinfo=UTC)
TIMES = [
    START,
    START + timedelta(microseconds=1),
    START - timedelta(microseconds=1),
    datetime(1969, 12, 31, 23, 59, tzinfo=UTC),
    datetime(2, 1, 1, tzinfo=UTC),
    datetime(9999, 12, 30, tzinfo=UTC),
]
SECONDS = [0.0, 1.5, -2.0, 1e300, 0.1, 3.0]


def make_rows() -> list[dict[str, Any]]:
    """Rows of all texts and times; every third value or so is missing, each in its own rhythm."""
    rows = []
    for index in range(75):

        def choose(values: list[Any], step: int, lack: int, index: int = index) -> Any:
            return None if index % lack == 0 else values[index * step % len(values)]

        attributes = {
            name: choose(TEXTS, place, place + 3) for place, name in enumerate(ATTRIBUTES, 1)
        }
        rows.append(
            {
                "topic": TEXTS[index % len(TEXTS)],
                "partition": [0, 1, 2**31 - 1][index % 3],
                "offset": 2**60 + index if index % 2 else index,
                "image_id": choose(TEXTS, 3, 7),
                "uri": choose(TEXTS, 7, 3),
                "media_type": choose(["image/png", "text/plain"], 1, 5),
                "duration_s": choose(SECONDS, 1, 4),
                "timestamp": choose(TIMES, 1, 6),
                "attributes": {name: one for name, one in attributes.items() if one is not None},
            }
        )
    return rows


ROWS = make_rows()


@dataclass(frozen=True)
class Engines:
    """The same rows in a Delta table and in the stores."""

    table: str
    stores: Mapping[str, Store]

    def select(self, text: str) -> dict[str, list[int]]:
        """Return the offsets of the rows that satisfy a condition, by engine."""
        where = parse_where(text)
        vector = np.array([1, 0], np.float32)
        scanned = scan_table(open_table(self.table), vector, model_id=MODEL, k=1000, where=where)
        found = {"table": sorted(scanned["offset"].to_pylist())}
        columns = {name: name_attribute_column(name) for name in ATTRIBUTES}
        for kind, store in self.stores.items():
            dialect: Dialect = "postgres" if kind == "pgvector" else "datafusion"
            condition = where.render(dialect, attribute_columns=columns)
            rows = store.search("one", vector, 1000, where=condition)
            found[kind] = sorted(rows["offset"].to_pylist())
        return found


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory, postgres: str) -> Iterator[Engines]:
    folder = tmp_path_factory.mktemp("where")
    outcomes = [
        row("", [1, 0])
        | one
        | {"media": {"type": one["media_type"], "duration_s": one["duration_s"]}}
        for one in ROWS
    ]
    table = write_table(folder, outcomes[:40], outcomes[40:])
    flat = [
        one
        | {name_attribute_column(name): one["attributes"].get(name) for name in ATTRIBUTES}
        | {"embedding": [1, 0]}
        for one in ROWS
    ]
    written = Write("one", 2, pa.Table.from_pylist(flat, schema=build_row_schema(2, ATTRIBUTES)))
    configs = {
        "lancedb": IndexConfig(path=str(folder / "index")),
        "pgvector": IndexConfig(kind="pgvector", url=postgres, db_schema="where"),
    }
    assert configs.keys() == KINDS.keys()
    with ExitStack() as stack:
        stores: dict[str, Store] = {}
        for kind, config in configs.items():
            writer = stack.enter_context(closing(open_store(config, table=table, mode="write")))
            writer.write([written], "{}")
            stores[kind] = writer
        yield Engines(table, stores)


def check(engines: Engines, text: str, test: Test) -> None:
    expected = sorted(one["offset"] for one in ROWS if test(one) is True)
    assert engines.select(text) == dict.fromkeys(["table", *engines.stores], expected), text


def get(name: str) -> Callable[[Row], Any]:
    return lambda row: row[name]


def attribute(name: str) -> Callable[[Row], Any]:
    return lambda row: row["attributes"].get(name)


def matches(value: str | None, pattern: str) -> Truth:
    """LIKE, with a backslash before characters that mean themselves."""
    if value is None:
        return None
    parts = re.findall(r"\\.|.", pattern, re.DOTALL)
    wild = {"%": ".*", "_": "."}
    regex = "".join(wild.get(one, re.escape(one[-1])) for one in parts)
    return re.fullmatch(regex, value, re.DOTALL) is not None


def lower(value: str | None) -> str | None:
    return None if value is None else value.lower()


@pytest.mark.parametrize(
    ("text", "test"),
    [
        ("topic = 'images'", lambda r: r["topic"] == "images"),
        (
            "TOPIC = 'images' and Partition = 0",
            lambda r: r["topic"] == "images" and not r["partition"],
        ),
        ("\"topic\" <> 'it''s' -- a comment", lambda r: r["topic"] != "it's"),
        ("topic > 'a'", lambda r: r["topic"].encode() > b"a"),
        ("topic BETWEEN 'A' AND 'é'", lambda r: b"A" <= r["topic"].encode() <= "é".encode()),
        ("'z' <= topic", lambda r: r["topic"].encode() >= b"z"),
        ("offset = 1152921504606846977", lambda r: r["offset"] == 2**60 + 1),
        ("offset > -1 AND offset < 9223372036854775807", lambda _: True),
        ("partition = 2147483647", lambda r: r["partition"] == 2**31 - 1),
        ("partition IN (0, 2147483647)", lambda r: r["partition"] != 1),
        ("offset > partition", lambda r: r["offset"] > r["partition"]),
        ("duration_s > 1", lambda r: (r["duration_s"] or 0) > 1),
        ("duration_s = 0.1 OR duration_s = 1e300", lambda r: r["duration_s"] in (0.1, 1e300)),
        ("uri IS NULL", lambda r: r["uri"] is None),
        ("NOT uri IS NULL", lambda r: r["uri"] is not None),
        ("uri IS NOT NULL AND NOT (uri = 'ab')", lambda r: r["uri"] not in (None, "ab")),
        (
            "NOT (uri = 'ab' OR image_id = 'ab')",
            lambda r: (
                None not in (r["uri"], r["image_id"]) and "ab" not in (r["uri"], r["image_id"])
            ),
        ),
        ("uri NOT IN ('ab', '')", lambda r: r["uri"] not in (None, "ab", "")),
        (
            "uri NOT BETWEEN 'a' AND 'b'",
            lambda r: r["uri"] is not None and not b"a" <= r["uri"].encode() <= b"b",
        ),
        ("uri = image_id", lambda r: r["uri"] is not None and r["uri"] == r["image_id"]),
        ("attributes['shop'] = 'ab'", lambda r: r["attributes"].get("shop") == "ab"),
        ("attributes['it''s'] = 'it''s'", lambda r: r["attributes"].get("it's") == "it's"),
        ("attributes['Größe'] IS NULL", lambda r: "Größe" not in r["attributes"]),
        (
            "attributes['shop'] = attributes['Größe']",
            lambda r: (
                attribute("shop")(r) is not None and attribute("shop")(r) == attribute("Größe")(r)
            ),
        ),
        (
            "timestamp > '2026-01-01'",
            lambda r: r["timestamp"] is not None and r["timestamp"] > START,
        ),
        ("timestamp = '2026-01-01T05:30+05:30'", lambda r: r["timestamp"] == START),
        (
            "timestamp = TIMESTAMP '2026-01-01 00:00:00.000001'",
            lambda r: r["timestamp"] == TIMES[1],
        ),
        ("timestamp < DATE '1970-01-01'", lambda r: r["timestamp"] in TIMES[3:5]),
        (
            "timestamp BETWEEN '0001-01-01' AND '9999-12-31T23:59:59Z'",
            lambda r: r["timestamp"] is not None,
        ),
        (
            "timestamp IN ('2026-01-01', '9999-12-30')",
            lambda r: r["timestamp"] in (TIMES[0], TIMES[5]),
        ),
        ("topic LIKE 'a_b'", lambda r: matches(r["topic"], "a_b")),
        ("topic LIKE 'a\\_b' OR topic LIKE 'a\\%b'", lambda r: r["topic"] in ("a_b", "a%b")),
        ("topic LIKE 'a\\\\b'", lambda r: r["topic"] == "a\\b"),
        ("topic LIKE '\\ab'", lambda r: r["topic"] == "ab"),
        ("topic LIKE '_'", lambda r: len(r["topic"]) == 1),
        ("topic NOT LIKE '%b%'", lambda r: "b" not in r["topic"]),
        (
            "uri NOT ILIKE 'A%'",
            lambda r: r["uri"] is not None and not r["uri"].lower().startswith("a"),
        ),
        ("topic ILIKE 'ÄÖ%'", lambda r: r["topic"].lower() == "äöü"),
        ("lower(topic) = 'äпривет'", lambda r: r["topic"].lower() == "äпривет"),
        ("upper(lower(topic)) = 'ÄÖÜ'", lambda r: r["topic"] in ("ÄÖÜ", "äöü")),
        (
            "lower(attributes['shop']) IN ('ab', 'images')",
            lambda r: lower(r["attributes"].get("shop")) in ("ab", "images"),
        ),
        ("topic = 'null' OR topic = '1'", lambda r: r["topic"] in ("null", "1")),
        ("topic = 'a''; --'", lambda r: r["topic"] == "a'; --"),
        (" OR ".join(["topic = 'no'"] * 99 + ["topic = 'ab'"]), lambda r: r["topic"] == "ab"),
        ("(" * 30 + "topic = 'ab'" + ")" * 30, lambda r: r["topic"] == "ab"),
        (f"offset IN ({', '.join(map(str, range(0, 5000, 2)))})", lambda r: r["offset"] < 5000),
    ],
)
def test_all_engines_select_what_the_condition_says(
    engines: Engines, text: str, test: Test
) -> None:
    check(engines, text, test)


Condition = tuple[str, Test]


def quote(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def compare(sign: str, left: Any, right: Any) -> Truth:
    if left is None or right is None:
        return None
    if isinstance(left, str):
        left, right = left.encode(), right.encode()
    signs: dict[str, bool] = {
        "=": left == right,
        "<>": left != right,
        "<": left < right,
        "<=": left <= right,
        ">": left > right,
        ">=": left >= right,
    }
    return signs[sign]


def either(*truths: Truth) -> Truth:
    return True if True in truths else None if None in truths else False


def negate(truth: Truth) -> Truth:
    return None if truth is None else not truth


TEXT_COLUMNS = {
    **{name: get(name) for name in ("topic", "image_id", "uri", "media_type")},
    **{f"attributes[{quote(name)}]": attribute(name) for name in ATTRIBUTES},
}
# No letters that engines fold differently; docs/search.md names them.
SOME_TEXT = st.sampled_from(TEXTS) | st.text(st.sampled_from("abzAÄöП_%'\"\\\n 😀"), max_size=4)
SIGNS = st.sampled_from(["=", "<>", "<", "<=", ">", ">="])


@st.composite
def text_conditions(draw: st.DrawFn) -> Condition:
    column, read = draw(st.sampled_from(sorted(TEXT_COLUMNS.items())))
    values = draw(st.lists(SOME_TEXT, min_size=2, max_size=3))
    folds = draw(st.booleans())
    name = f"lower({column})" if folds else column

    def value(row: Row) -> str | None:
        return lower(read(row)) if folds else read(row)

    match draw(st.sampled_from(["sign", "in", "between", "like", "null"])):
        case "sign":
            sign = draw(SIGNS)
            return f"{name} {sign} {quote(values[0])}", lambda r: compare(sign, value(r), values[0])
        case "in":
            listed = ", ".join(map(quote, values))
            return f"{name} IN ({listed})", lambda r: either(
                *(compare("=", value(r), one) for one in values)
            )
        case "between":
            low, high = values[:2]
            return f"{name} BETWEEN {quote(low)} AND {quote(high)}", lambda r: negate(
                either(compare("<", value(r), low), compare(">", value(r), high))
            )
        case "like":
            pattern = re.sub(r"(?<!\\)((?:\\\\)*)\\$", r"\1", values[0])
            return f"{name} LIKE {quote(pattern)}", lambda r: matches(value(r), pattern)
    return f"{name} IS NULL", lambda r: value(r) is None


@st.composite
def number_conditions(draw: st.DrawFn) -> Condition:
    sign = draw(SIGNS)
    name, numbers = draw(
        st.sampled_from(
            [
                ("partition", st.integers(-3, 2**31 - 1) | st.integers(-1, 3)),
                ("offset", st.integers(-(2**63), 2**63 - 1) | st.integers(2**60, 2**60 + 75)),
                ("duration_s", st.floats(allow_nan=False, allow_infinity=False) | st.just(1.5)),
            ]
        )
    )
    number = draw(numbers)
    return f"{name} {sign} {number!r}", lambda r: compare(sign, r[name], number)


@st.composite
def time_conditions(draw: st.DrawFn) -> Condition:
    sign = draw(SIGNS)
    zone = timezone(timedelta(minutes=draw(st.integers(-14 * 60, 14 * 60))))
    years = st.datetimes(datetime(2, 1, 2), datetime(9998, 1, 1), timezones=st.just(UTC))
    time = draw(st.sampled_from(TIMES[:4]) | years)
    text = time.astimezone(zone).isoformat()
    return f"timestamp {sign} '{text}'", lambda r: compare(sign, r["timestamp"], time)


def join(children: st.SearchStrategy[Condition]) -> st.SearchStrategy[Condition]:
    def connect(word: str, left: Condition, right: Condition) -> Condition:
        text = f"({left[0]}) {word} ({right[0]})"
        if word == "OR":
            return text, lambda r: either(left[1](r), right[1](r))
        return text, lambda r: negate(either(negate(left[1](r)), negate(right[1](r))))

    return st.builds(connect, st.sampled_from(["AND", "OR"]), children, children) | st.builds(
        lambda one: (f"NOT ({one[0]})", lambda r: negate(one[1](r))), children
    )


@given(
    st.recursive(text_conditions() | number_conditions() | time_conditions(), join, max_leaves=5)
)
def test_all_engines_agree_with_python(engines: Engines, condition: Condition) -> None:
    check(engines, *condition)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("  ", "it is not one condition"),
        ("topic = 'a\0'", "NUL"),
        ("topic = '\ud800'", "not text in UTF-8"),
        ("topic = 'a'; DROP TABLE outcomes", "it is not one condition; leave out semicolons"),
        ("topic = 'a", "it cannot be parsed"),
        ("topic = 'a' LIMIT 1", "it cannot be parsed"),
        ("shop = 'a'", "unknown column `shop`; known: topic, partition, offset, image_id, uri"),
        (
            "attributes.shop = 'a'",
            r"column `attributes\.shop`; known: .*attributes\['NAME'\]",
        ),
        ("embedding = 'a'", "unknown column `embedding`"),
        ('topic = "a"', "unknown column `\"a\"`; write a text in single quotes: 'a'"),
        ("attributes[1] = 'a'", r"`attributes\[1\]` is not supported"),
        ("topic", "`topic` is not supported as a condition"),
        ("TRUE", "`TRUE` is not supported as a condition"),
        ("'a' = 'a'", "compares no column"),
        ("topic = NULL", "nothing equals NULL; write IS NULL"),
        ("topic IN ('a', NULL)", "nothing equals NULL; write IS NULL"),
        ("topic IN ()", "is not supported as a condition"),
        ("topic IN (SELECT 'a')", "is not supported as a condition"),
        ("topic IN (uri)", "`uri` is not a literal"),
        ("EXISTS (SELECT 1)", "is not supported as a condition"),
        ("(SELECT 'a') = topic", "is not supported"),
        ("topic = 'a' UNION SELECT 1", "is not supported; a condition is made of"),
        ("timestamp > now()", r"`NOW\(\)` is not supported"),
        ("topic || 'a' = 'b'", "is not supported"),
        ("offset + 1 = 2", "is not supported"),
        ("offset::text = '1'", "is not supported"),
        ("topic LIKE 'a!%' ESCAPE '!'", "is not supported as a condition"),
        ("topic LIKE uri", "LIKE takes a column of text and a literal"),
        ("topic LIKE 'a\\'", "ends in a backslash"),
        ("offset LIKE '1'", "LIKE takes a column of text and a literal"),
        ("topic BETWEEN SYMMETRIC 'b' AND 'a'", "symmetric is not supported"),
        ("topic IS DISTINCT FROM 'a'", "is not supported as a condition"),
        ("topic = 1", '`1` is compared with "topic"; write a text in single quotes'),
        ("offset = '1'", "`'1'` is compared with \"offset\"; write a number"),
        ("offset = uri", "compares integer with text; compare columns of one type"),
        ("offset = 1.5", "write a whole number from 0 to 9223372036854775807"),
        ("offset = 9223372036854775808", "write a whole number from 0 to 9223372036854775807"),
        ("partition = 2147483648", "write a whole number from 0 to 2147483647"),
        ("duration_s > 1e400", "the number 1e400 is too large"),
        ("timestamp > 'yesterday'", "'yesterday' is not a time; write one such as '2026-01-31'"),
        ("timestamp > '0001-01-01T00:00+14:00'", "is not a time"),
        ("lower(offset) = 'a'", "it takes text"),
        ("NOT " * 20 + "topic = 'a'", "it is nested more than 12 deep"),
        ("(" * 900 + "topic = 'a'" + ")" * 900, "it cannot be parsed"),
        (" OR ".join(["topic = 'a'"] * 1001), "it has 1001 parts joined by OR, more than 1000"),
    ],
)
def test_what_engines_may_not_agree_on_is_refused(text: str, message: str) -> None:
    with pytest.raises(SetupError, match=message) as error:
        parse_where(text)
    assert len(str(error.value)) < 700
