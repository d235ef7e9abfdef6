"""What every benchmark leaves: a table on the terminal, a JSON file, and a plot."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from machine import describe_machine
from turns import HOW_TO_IMPROVE, Ratio, Turn, Turns

__all__ = ["RESULTS", "bars", "lines", "print_table", "print_turns", "start_log", "write_result"]

RESULTS = Path(__file__).parent / "results"
# Rich takes 80 columns where there is no terminal, which breaks most tables' lines.
console = Console(width=None if sys.stdout.isatty() else 120)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table; if a ratio in it is refused, also how to get a better one."""
    table = Table()
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*map(_text, row))
    # A table's own title would be broken to the table's width.
    console.print(f"[italic]{escape(title)}[/]", table, sep="\n")
    if any(isinstance(cell, Ratio) and not cell.is_firm for row in rows for cell in row):
        console.print(HOW_TO_IMPROVE)


def print_turns(title: str, noun: str, turns: Mapping[str, Turns], other: str) -> None:
    """Print systems beside the one that all of them are compared with."""
    alone = next(iter(turns.values())).others
    rows: list[Sequence[object]] = [(other, alone.items_per_s, 1.0, alone.cpu_ms, 1.0)]
    rows += [
        (name, each.items_per_s, each.speed, each.cpu_ms, each.cpu) for name, each in turns.items()
    ]
    columns = ["", f"{noun}/s", f"relative to {other}", "CPU ms", "the same by CPU time"]
    print_table(title, columns, rows)


def start_log(name: str) -> Path:
    """Return the path of `results/<name>.log`, without what an earlier run wrote there."""
    RESULTS.mkdir(exist_ok=True)
    log = RESULTS / f"{name}.log"
    log.unlink(missing_ok=True)
    return log


def write_result(name: str, result: Mapping[str, Any]) -> None:
    """`results/<name>.json`, with the machine it was measured on."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    text = json.dumps({"machine": describe_machine(), **result}, indent=2, default=_as_json)
    path.write_text(text + "\n")
    console.print(f"written: benchmarks/results/{path.name}")


def bars(name: str, title: str, unit: str, values: Mapping[str, float | Ratio]) -> None:
    """`results/<name>.png`: a bar for each value, in their order; none for a refused ratio."""
    figure, axes = _pyplot().subplots(figsize=(8, 0.6 + 0.4 * len(values)))
    labels = list(values)
    own = ["#1f77b4" if "embedstream" in label else "#b0b0b0" for label in labels]
    drawn = axes.barh(labels, list(map(_length, values.values())), color=own)
    axes.bar_label(drawn, list(map(_text, values.values())), padding=3)
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    axes.margins(x=0.1)
    _save(name, title, figure, axes)


def _length(value: float | Ratio) -> float:
    if isinstance(value, Ratio):
        return value.median if value.is_firm else 0.0
    return value


def lines(
    name: str,
    title: str,
    axis_labels: tuple[str, str],
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
) -> None:
    """`results/<name>.png`: a line for each series of x and y."""
    figure, axes = _pyplot().subplots(figsize=(8, 4))
    for label, (x, y) in series.items():
        axes.plot(x, y, label=label)
    axes.set_xlabel(axis_labels[0])
    axes.set_ylabel(axis_labels[1])
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    _save(name, title, figure, axes)


def _pyplot() -> Any:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _save(name: str, title: str, figure: Any, axes: Any) -> None:
    axes.set_title(title, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(RESULTS / f"{name}.png", dpi=120)
    _pyplot().close(figure)


def _text(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _as_json(value: object) -> object:
    if isinstance(value, Ratio):
        return value.as_json()
    if isinstance(value, Turn):
        return asdict(value)
    raise TypeError(f"not for a result file: {value!r}")
