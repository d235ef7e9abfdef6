"""Turns of two systems, the ratio between them with its spread, and the refusal of a poor one.

A machine whose speed changes within minutes spoils the ratio of two passes that are minutes apart.
So systems are measured in short turns that follow each other, in the order A B, B A, A B, …: a
drift that is linear over two pairs cancels out. Each pair gives one ratio.

Only the standard library is imported: benchmarks for machines with little else use this too.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import Any, TypeVar

__all__ = [
    "FEWEST_TURNS",
    "HOW_TO_IMPROVE",
    "LARGEST_SPREAD",
    "Ratio",
    "Turn",
    "Turns",
    "add_turns",
    "order_turns",
    "take_turns",
]

T = TypeVar("T")

CONFIDENCE = 0.9
LARGEST_SPREAD = 0.15
FEWEST_TURNS = 5
"""With fewer, even the range of all ratios holds the median with less than `CONFIDENCE`."""

HOW_TO_IMPROVE = (
    f"A ratio is printed if it comes from at least {FEWEST_TURNS} turns and its spread is at most "
    f"{LARGEST_SPREAD:.0%}. For a better one: more turns (--turns), longer turns (more items), "
    "or a machine that does nothing else."
)


@dataclass(frozen=True, slots=True)
class Turn:
    """What one turn did; `cpu_s` is user and system time of all processes that took part."""

    items: int
    seconds: float
    cpu_s: float

    @property
    def items_per_s(self) -> float:
        return self.items / self.seconds

    @property
    def cpu_ms(self) -> float:
        """CPU milliseconds an item."""
        return 1000 * self.cpu_s / self.items


@dataclass(frozen=True, slots=True)
class Ratio:
    """The median of the ratios of some turns, and an interval that holds the true median.

    `spread` is the width of the interval over the median. An interquartile range would describe a
    single ratio, and would stay as it is with more turns; this one describes the median, the figure
    that is printed, and becomes smaller with the square root of their number.
    """

    median: float
    low: float
    high: float
    turns: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Ratio:
        """Summarize the ratios of single turns.

        The interval is between two of the sorted ratios, by the sign test: each ratio is above the
        true median with probability 1/2, whatever the distribution. For n turns it is between the
        k-th smallest and the k-th largest with the largest k for which P(Binomial(n, 1/2) < k) is
        at most (1 - `CONFIDENCE`) / 2: the whole range up to 7 turns, the second to the seventh of
        8. With less than `FEWEST_TURNS` it is the range too, but holds too rarely.

        Source: W. J. Conover, Practical Nonparametric Statistics, 3rd edition, section 3.2.
        """
        ordered = sorted(values)
        count = len(ordered)
        rank, below = 1, 2.0**-count
        while below + math.comb(count, rank) / 2**count <= (1 - CONFIDENCE) / 2:
            below += math.comb(count, rank) / 2**count
            rank += 1
        return cls(median(ordered), ordered[rank - 1], ordered[-rank], count)

    @property
    def spread(self) -> float:
        return (self.high - self.low) / self.median

    @property
    def is_firm(self) -> bool:
        """Whether it may be printed."""
        return self.turns >= FEWEST_TURNS and self.spread <= LARGEST_SPREAD

    def over(self, other: Ratio) -> Ratio:
        """Compare two systems by their ratios to a third one.

        Relative uncertainties of independent factors add as squares (JCGM 100:2008, section 5.1.6).
        """
        quotient = self.median / other.median
        up = math.hypot(math.log(self.high / self.median), math.log(other.median / other.low))
        down = math.hypot(math.log(self.median / self.low), math.log(other.high / other.median))
        return Ratio(
            quotient,
            quotient * math.exp(-down),
            quotient * math.exp(up),
            min(self.turns, other.turns),
        )

    def __str__(self) -> str:
        """Give the ratio with its interval, or say why there is none."""
        if self.turns < FEWEST_TURNS:
            return f"refused: {self.turns} of {FEWEST_TURNS} turns"
        if not self.is_firm:
            return f"refused: spread {self.spread:.0%}"
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"

    def as_json(self) -> dict[str, float | int | None]:
        """Give what a result file holds: without the ratio if it is refused."""
        return {
            "median": self.median if self.is_firm else None,
            "low": self.low,
            "high": self.high,
            "spread": self.spread,
            "turns": self.turns,
        }


@dataclass(frozen=True)
class Turns:
    """Turns of a system and of what it is compared with; those of one index followed each other."""

    own: Sequence[Turn]
    other: Sequence[Turn]

    @cached_property
    def speed(self) -> Ratio:
        """Items a second over those of the other."""
        pairs = zip(self.own, self.other, strict=True)
        return Ratio.of([own.items_per_s / other.items_per_s for own, other in pairs])

    @cached_property
    def cpu(self) -> Ratio:
        """Items a CPU second over those of the other: 1.1 needs 0.91 of its CPU time."""
        pairs = zip(self.own, self.other, strict=True)
        return Ratio.of([other.cpu_ms / own.cpu_ms for own, other in pairs])

    @property
    def items_per_s(self) -> float:
        return median(turn.items_per_s for turn in self.own)

    @property
    def cpu_ms(self) -> float:
        return median(turn.cpu_ms for turn in self.own)

    @property
    def others(self) -> Turns:
        """The other by itself, for its own figures."""
        return Turns(self.other, self.other)

    def as_json(self) -> dict[str, Any]:
        """Give what a result file holds."""
        return {
            "items_per_s": self.items_per_s,
            "ratio": self.speed,
            "cpu_ms": self.cpu_ms,
            "cpu_ratio": self.cpu,
            "other_items_per_s": self.others.items_per_s,
            "other_cpu_ms": self.others.cpu_ms,
            "turns": [
                {"own": own, "other": other}
                for own, other in zip(self.own, self.other, strict=True)
            ],
        }


def order_turns(names: Sequence[T], turns: int) -> Iterator[Sequence[T]]:
    """Yield the order of each turn: as given, reversed, as given, …"""
    for number in range(turns):
        yield names if number % 2 == 0 else names[::-1]


def take_turns(
    run: Callable[[str, int], Turn], names: Sequence[str], turns: int
) -> dict[str, list[Turn]]:
    """Run each name once in each turn, after a turn 0 that warms up and does not count.

    `run` takes a name and the number of the turn.
    """
    taken: dict[str, list[Turn]] = {name: [] for name in names}
    for number, order in enumerate(order_turns(names, turns + 1)):
        for name in order:
            turn = run(name, number)
            if number:
                taken[name].append(turn)
    return taken


def add_turns(parser: argparse.ArgumentParser) -> None:
    """Add `--turns`, by default as few as give a ratio."""
    parser.add_argument(
        "--turns", type=int, default=FEWEST_TURNS, help="of each, once all are warm"
    )
