"""Messages of every modality, sound and bad: each has the outcomes that are stated for its kind."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from core_outcomes import Core, check_kind
from embedstream_core.boundary import attempt
from embedstream_core.errors import Stage
from embedstream_core.fetch.fetcher import open_fetcher
from embedstream_core.messages.parse import Message, parse_message
from embedstream_core.pipeline.embedding_cache import EmbeddingCache
from embedstream_core.pipeline.pipeline import Pipeline
from embedstream_core.pipeline.steps import Outcomes
from embedstream_core.records import Embedding
from embedstream_core.settings import Isolation
from mixed_messages import Kind, build_kinds, build_large_kinds
from mixed_models import start_core


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mixed")


@pytest.fixture(scope="module")
def core(folder: Path) -> Core:
    return start_core(folder)


@pytest.fixture(scope="module")
def kinds(folder: Path) -> Mapping[str, Kind]:
    return build_kinds(folder)


def test_every_kind_has_its_outcomes_alone(core: Core, kinds: Mapping[str, Kind]) -> None:
    bad = []
    for name, kind in kinds.items():
        try:
            check_kind(kind, core.embed(kind.value), core)
        except AssertionError as e:
            bad.append((name, str(e)[:300]))
    assert not bad, "\n".join(map(str, bad))


@pytest.mark.parametrize("name", build_large_kinds())
def test_large(core: Core, name: str) -> None:
    kind = build_large_kinds()[name]
    started = time.process_time()
    outcomes = core.embed(kind.value)
    print(name, time.process_time() - started)
    check_kind(kind, outcomes, core)
