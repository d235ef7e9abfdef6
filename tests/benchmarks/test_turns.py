"""Ratios of turns: the interval, the spread and the refusal."""

from __future__ import annotations

import io
import itertools
import json
from pathlib import Path

import pytest
from rich.console import Console

import machine
import report
from turns import HOW_TO_IMPROVE, Ratio, Turn, Turns, order_turns, take_turns


@pytest.mark.parametrize(
    ("turns", "low", "high"), [(5, 1, 5), (7, 1, 7), (8, 2, 7), (11, 3, 9), (20, 6, 15)]
)
def test_the_interval_holds_the_median_nine_times_in_ten(turns: int, low: int, high: int) -> None:
    ratio = Ratio.of(range(turns, 0, -1))

    assert (ratio.low, ratio.high) == (low, high)
    # How often it does if each of the ratios is above the true median half of the times.
    if turns <= 11:
        above = [sum(one) for one in itertools.product((0, 1), repeat=turns)]
        held = sum(low <= turns - count <= high - 1 for count in above) / len(above)
        narrower = sum(low < turns - count < high - 1 for count in above) / len(above)
        assert held >= 0.9 > narrower


def test_a_ratio_is_printed_with_its_interval() -> None:
    assert str(Ratio.of([0.97, 1.0, 0.95, 0.98, 1.02])) == "0.98 (0.95 to 1.02)"


def test_a_spread_over_15_percent_is_refused() -> None:
    wide = [0.93, 1.0, 1.0, 1.0, 1.07]

    assert Ratio.of(wide).is_firm
    assert str(Ratio.of([0.91, *wide[1:]])) == "refused: spread 16%"
    assert Ratio.of([0.91, *wide[1:]]).as_json()["median"] is None


def test_more_turns_narrow_the_spread() -> None:
    some = [0.8, 0.95, 1.0, 1.0, 1.05, 1.2]

    assert not Ratio.of(some).is_firm
    assert Ratio.of(some * 4).is_firm


@pytest.mark.parametrize("turns", [1, 2, 4])
def test_too_few_turns_are_refused_though_they_agree(turns: int) -> None:
    assert str(Ratio.of([1.0] * turns)) == f"refused: {turns} of 5 turns"


def test_two_ratios_to_the_limit_give_one_with_both_uncertainties() -> None:
    own, peer = Ratio(1.0, 0.97, 1.03, 5), Ratio(0.5, 0.48, 0.52, 7)

    quotient = own.over(peer)

    assert (quotient.median, quotient.turns) == (2.0, 5)
    assert max(own.spread, peer.spread) < quotient.spread < own.spread + peer.spread
    exact = Ratio(0.5, 0.5, 0.5, 5)
    assert own.over(exact).low == pytest.approx(0.97 / 0.5)


def test_speed_and_cpu_time_have_a_ratio_each() -> None:
    own, other = Turn(10, seconds=2.0, cpu_s=4.0), Turn(20, seconds=2.0, cpu_s=4.0)

    turns = Turns([own] * 5, [other] * 5)

    assert (own.items_per_s, own.cpu_ms) == (5.0, 400.0)
    assert (turns.speed.median, turns.cpu.median) == (0.5, 0.5)
    assert (turns.items_per_s, turns.cpu_ms) == (5.0, 400.0)


def test_turns_follow_each_other_in_both_orders_so_that_a_drift_cancels_out() -> None:
    seen: list[tuple[str, int]] = []
    clock = itertools.count(10)

    def run(name: str, number: int) -> Turn:
        seen.append((name, number))
        return Turn(1, seconds=next(clock), cpu_s=1.0)

    taken = take_turns(run, ("a", "b"), 4)

    assert seen[:4] == [("a", 0), ("b", 0), ("b", 1), ("a", 1)]
    assert [len(turns) for turns in taken.values()] == [4, 4]
    a, b = (sum(turn.seconds for turn in taken[name]) for name in ("a", "b"))
    assert a == b
    assert list(order_turns("ab", 3)) == ["ab", "ba", "ab"]


def test_a_table_says_how_to_get_a_ratio_that_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    said = io.StringIO()
    monkeypatch.setattr(report, "console", Console(file=said, width=300))

    report.print_table("firm", ["", "ratio"], [("one", Ratio.of([1.0] * 5))])
    assert HOW_TO_IMPROVE not in said.getvalue()
    report.print_table("poor", ["", "ratio"], [("one", Ratio.of([1.0, 2.0, 3.0, 4.0, 5.0]))])
    assert "refused: spread 133%" in said.getvalue()
    assert HOW_TO_IMPROVE in said.getvalue()
    assert "3.00" not in said.getvalue()


def test_a_result_names_the_processor_and_holds_the_turns(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text(
        "processor\t: 0\nmodel name\t: A quick one\nflags\t\t: fpu avx2 avx512f amx_bf16\n\n"
    )
    monkeypatch.setattr(machine, "_CPU_INFO", info)
    monkeypatch.setattr(report, "RESULTS", tmp_path)

    report.write_result("some", {"ratio": Ratio.of([1.0] * 5), "turns": [Turn(1, 2.0, 3.0)]})

    result = json.loads((tmp_path / "some.json").read_text())
    assert result["machine"]["processor"] == "A quick one"
    assert result["machine"]["flags"] == ["avx2", "avx512f", "amx_bf16"]
    assert result["ratio"]["median"] == 1.0
    assert result["turns"] == [{"items": 1, "seconds": 2.0, "cpu_s": 3.0}]


def test_a_processor_without_a_name_is_told_by_its_architecture(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(machine, "_CPU_INFO", tmp_path / "none")

    assert machine.describe_machine()["processor"]
