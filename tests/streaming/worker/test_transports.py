"""Both transports give Spark the same Arrow stream, by PySpark's own conversions, without a JVM."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyspark.serializers import read_int
from pyspark.sql.conversion import ArrowBatchTransformer
from pyspark.sql.pandas.serializers import ArrowStreamPandasUDFSerializer, ArrowStreamSerializer

from embedstream.config.sections import Transport
from embedstream.table.rows import OUTCOME_ARROW_SCHEMA, OUTCOME_SCHEMA
from embedstream.worker.messages import Featurizer
from embedstream.worker.task import Embedder
from embedstream_core.errors import Code, Stage
from embedstream_core.messages.parse import MessageReader
from embedstream_core.records import Deletion, Embedding, Entry, Failure, Media, Outcome

HEADERS = pa.list_(pa.struct([pa.field("key", pa.string()), pa.field("value", pa.binary())]))
INPUT = pa.struct(
    {
        "topic": pa.string(),
        "partition": pa.int32(),
        "offset": pa.int64(),
        "timestamp": pa.timestamp("us", "UTC"),
        "key": pa.binary(),
        "value": pa.binary(),
        "headers": HEADERS,
    }
)
_MEDIA = (
    Media("image/png", width=2, height=1),
    Media("text/plain", characters=7, truncated=False),
    Media("audio/wav", duration_s=1.5, truncated=True),
)


@dataclass
class Stub:
    """Gives the outcomes that a number in the item's place among all items decides."""

    kinds: Sequence[int]
    modalities: frozenset[str] = frozenset({"image", "text"})
    seen: list[Entry] = field(default_factory=list)

    def embed(self, batches: Iterable[Sequence[Entry]], _: object) -> Iterator[list[Any]]:
        for batch in batches:
            found = [self._embed(entry, len(self.seen) + at) for at, entry in enumerate(batch)]
            self.seen += batch
            yield found

    def _embed(self, entry: Entry, at: int) -> tuple[Outcome, ...]:
        if isinstance(entry, Failure):
            return (entry,)
        if isinstance(entry, Deletion):
            return (Failure(Code.DELETED, Stage.MESSAGE, "deleted"),)
        kind = self.kinds[at % len(self.kinds)]
        media = _MEDIA[kind % 3]
        bits = np.random.default_rng(at).integers(0, 2**31, 5, np.int64).astype(np.uint32)
        vector = np.concatenate([bits.view(np.float32), np.float32([0.1, -0.0, np.inf, 1e-45])])
        vector = np.nan_to_num(vector)
        good = Embedding(vector, media, "ab" * 32, "model")
        bad = Failure(Code.IMAGE_CORRUPT, Stage.DECODE, "bäd\0", "cd" * 32, media, "other")
        unseen = Failure(Code.IMAGE_EMPTY, Stage.DECODE, "")
        return ((good, good), (good,), (bad,), (good, bad), (unseen,), (good, good, bad))[kind % 6]


def convert(transport: Transport, batches: Sequence[pa.RecordBatch], kinds: Sequence[int]) -> Any:
    stub = Stub(kinds)
    reader = MessageReader()
    function = Featurizer(cast(Embedder, stub), reader, transport)
    given, taken = io.BytesIO(), io.BytesIO()
    ArrowStreamSerializer().dump_stream(batches, given)
    given.seek(0)
    if transport == "arrow":
        plain = ArrowStreamSerializer(write_start_stream=True)
        loaded = map(ArrowBatchTransformer.flatten_struct, plain.load_stream(given))
        plain.dump_stream(map(ArrowBatchTransformer.wrap_struct, function(loaded)), taken)
    else:
        frames = ArrowStreamPandasUDFSerializer(
            timezone="UTC",
            safecheck=True,
            assign_cols_by_name=True,
            df_for_struct=True,
            struct_in_pandas="dict",
            ndarray_as_list=False,
            prefer_int_ext_dtype=False,
            arrow_cast=True,
        )
        made = function(frame for (frame,) in frames.load_stream(given))
        frames.dump_stream(((one, OUTCOME_SCHEMA) for one in made), taken)
    if not taken.tell():
        return None, [], stub.seen
    taken.seek(0)
    read_int(taken)
    found = list(ArrowStreamSerializer().load_stream(taken))
    return found[0].schema, [one.column(0).flatten() for one in found], stub.seen


POINTS = st.one_of(
    st.none(),
    st.datetimes(datetime(1700, 1, 1), datetime(2250, 1, 1)).map(lambda at: at.replace(tzinfo=UTC)),
)
VALUES = st.one_of(
    st.none(),
    st.just(b""),
    st.binary(max_size=20),
    st.text(max_size=9).map(str.encode),
    st.dictionaries(
        st.sampled_from(["uri", "id", "text", "data", "shop", "a", "password", "x", "deleted"]),
        st.one_of(
            st.none(), st.text(max_size=8), st.integers(), st.lists(st.floats(0, 1), max_size=2)
        ),
        max_size=4,
    ).map(lambda value: json.dumps(value).encode()),
)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
PAIRS = st.lists(
    st.fixed_dictionaries({"key": NAMES, "value": st.none() | st.binary(max_size=6)}), max_size=3
)
MESSAGES = st.fixed_dictionaries(
    {
        "topic": NAMES,
        "partition": st.integers(0, 2**31 - 1),
        "offset": st.integers(0, 2**63 - 1),
        "timestamp": POINTS,
        "key": st.none() | st.binary(max_size=9),
        "value": VALUES,
        "headers": st.none() | PAIRS,
    }
)


@given(
    st.lists(st.lists(MESSAGES, min_size=1, max_size=6), min_size=1, max_size=4),
    st.lists(st.integers(0, 5), min_size=1, max_size=6),
)
def test_both_give_the_same(rows: list[list[Any]], kinds: list[int]) -> None:
    batches = [pa.RecordBatch.from_arrays([pa.array(one, INPUT)], ["_0"]) for one in rows]
    pandas, arrow = (convert(one, batches, kinds) for one in ("pandas", "arrow"))
    assert arrow[2] == pandas[2]
    assert len(arrow[1]) == len(pandas[1])
    for ours, theirs in zip(arrow[1], pandas[1], strict=True):
        for column, one, other in zip(OUTCOME_ARROW_SCHEMA, ours, theirs, strict=True):
            assert one.type == other.type == column.type, column.name
            one.validate(full=True)
            assert len(one) == len(other)
            if column.name == "embedding":
                assert one.is_null().equals(other.is_null())
                a, b = (x.flatten().to_numpy(zero_copy_only=False) for x in (one, other))
                assert a.view(np.int32).tolist() == b.view(np.int32).tolist()
            elif column.name != "processed_at":
                assert one.equals(other), (column.name, one, other)
    if arrow[0] is not None:
        assert arrow[0] == pandas[0]
        assert arrow[0].metadata == pandas[0].metadata


def test_only_arrow_carries_times_that_pandas_does_not_have() -> None:
    far = datetime(2300, 1, 1, tzinfo=UTC)
    row = dict.fromkeys(INPUT.names) | {"topic": "t", "timestamp": far, "value": b"x"}
    batch = pa.RecordBatch.from_arrays([pa.array([row], INPUT)], ["_0"])
    _, [columns], _ = convert("arrow", [batch], [1])
    assert columns[3].to_pylist() == [far]
    with pytest.raises(pa.ArrowInvalid, match="out of bounds timestamp"):
        convert("pandas", [batch], [1])
