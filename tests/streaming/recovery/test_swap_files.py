"""The request and the record of a swap, and what a start may do while the record is open."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from config_files import SECRET, load
from embedstream.recovery.swap_files import (
    Answer,
    Encoders,
    Phase,
    Swap,
    SwapFiles,
    SwapRequest,
    find_differences,
)
from embedstream_core.errors import SetupError
from memory_folder import MemoryFolder

TWO = [{"name": "resnet18"}, {"name": "resnet50", "normalize": "l2", "batch_size": 4}]


@pytest.fixture
def files() -> SwapFiles:
    return SwapFiles(MemoryFolder())


@pytest.fixture
def old(tmp_path: Path) -> Encoders:
    return load(tmp_path, {"encoder": {"name": "resnet18"}}).all_encoders


@pytest.fixture
def new(tmp_path: Path) -> Encoders:
    preprocessing = {"resize_px": 40, "crop_px": 32, "mean": [0, 0, 0], "std": [1, 1, 1]}
    encoders = [*TWO, {"name": "mine:model", "preprocessing": preprocessing}]
    return load(tmp_path, {"encoders": encoders}).all_encoders


def test_there_is_neither_a_request_nor_a_record_at_first(files: SwapFiles) -> None:
    assert (files.read_request(), files.read_swap()) == (None, None)


def test_a_request_is_read_as_it_was_written_and_no_second_one_replaces_it(
    files: SwapFiles, tmp_path: Path
) -> None:
    config = load(tmp_path, {"encoders": TWO})
    request = SwapRequest.of(config, id="one", driver="claim")

    assert files.create_request(request)
    assert not files.create_request(SwapRequest.of(config, id="two", driver="claim"))

    assert files.read_request() == request
    assert request.encoders == config.all_encoders
    files.delete_request()
    assert files.read_request() is None


def test_a_record_is_read_as_it_was_written(files: SwapFiles, old: Encoders, new: Encoders) -> None:
    swap = Swap("one", "claim", old, new).advance("accepted", "a line", "another")
    files.write_swap(swap)
    assert files.read_swap() == swap


def test_the_answer_to_the_swap_before_is_kept(
    files: SwapFiles, old: Encoders, new: Encoders
) -> None:
    first = Swap("one", "claim", old, new).advance("failed", "a line")
    second = Swap("two", "claim", old, new, earlier=first.find_answer("one"))
    files.write_swap(second)

    found = files.read_swap()

    assert found == second
    assert found.find_answer("one") == Answer("one", "failed", ("a line",))
    assert found.find_answer("two") == Answer("two", "preparing", ())
    assert found.find_answer("three") is None


def test_a_request_holds_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_SECRET", SECRET)
    files = SwapFiles(folder := MemoryFolder())
    options = {"kafka.ssl.key.password": "env:TEST_SECRET"}
    config = load(tmp_path, {"kafka": {"options": options}})

    files.create_request(SwapRequest.of(config, id="one", driver="claim"))

    (text,) = folder.files.values()
    assert SECRET.encode() not in text
    assert b"kafka.ssl.key.password" in text


@pytest.mark.parametrize("phase", get_args(Phase))
def test_a_start_with_either_configuration_is_allowed_in_the_middle_of_a_swap(
    old: Encoders, new: Encoders, phase: Phase
) -> None:
    swap = Swap("one", "claim", old, new, phase)
    is_open = phase in ("accepted", "switched")
    assert swap.allows(old) == swap.allows(new) == is_open
    assert not swap.allows(old + new)


@pytest.mark.parametrize(
    ("changes", "differences"),
    [
        ({"encoders": TWO}, []),
        ({"encoder": {"name": "resnet18"}}, []),
        # How a stream is watched, as with `run --listen`.
        ({"monitor": {"listen": "127.0.0.1:0"}, "log": {"format": "json"}}, []),
        ({"kafka": {"subscribe": "others"}}, ["kafka.subscribe"]),
        (
            {"trigger": {"interval_s": 2}, "decode": {"formats": ["PNG"]}},
            ["decode.formats", "trigger.interval_s"],
        ),
        (
            {"spark": {"options": {"spark.executor.memory": "2g"}}},
            ["spark.options.spark.executor.memory"],
        ),
    ],
)
def test_all_but_the_encoders_is_compared(
    tmp_path: Path, changes: dict[str, object], differences: list[str]
) -> None:
    running = load(tmp_path)
    files = SwapFiles(MemoryFolder())
    files.create_request(SwapRequest.of(load(tmp_path, changes), id="one", driver="claim"))

    request = files.read_request()

    assert request is not None
    assert find_differences(running, request.settings) == differences


@pytest.mark.parametrize("text", ["", "{", '{"id": "one"}', "[]"])
def test_a_damaged_file_is_reported_with_its_remedy(files: SwapFiles, text: str) -> None:
    files.folder.create("swap.json", text)
    files.folder.create("swap-request.json", text)
    with pytest.raises(SetupError, match=r"swap\.json, .* cannot be read .*; delete it"):
        files.read_swap()
    with pytest.raises(SetupError, match=r"swap-request\.json, .* cannot be read .*; delete it"):
        files.read_request()
