"""What a micro-batch costs as the log of its table grows, and its files are compacted beside it.

    python benchmarks/log_growth.py [--batches 300]

A topic of small pictures is drained with two of them in a micro-batch, so that nearly all of its
time is Spark's and Delta's own. A share is the median of a tenth of the micro-batches in that of
the second tenth; the first is the JVM's warming up.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import cycle, islice
from statistics import median
from typing import Any

import numpy as np
from deltalake import DeltaTable

from images import jpegs
from report import lines, print_table, write_result
from streams import CORES, Drained, drain, fill, opened, settings, workplace

DISTINCT = 50
TENTHS = 10

Row = dict[str, float]


def main() -> None:
    arguments = _arguments()
    pictures = jpegs(DISTINCT, size=(100, 75))
    with workplace() as place:
        fill(place.servers, "pictures", list(islice(cycle(pictures), CORES * arguments.batches)))
        config = settings(
            place,
            "pictures",
            options={"spark.sql.streaming.numRecentProgressUpdates": str(2 * arguments.batches)},
            kafka={
                "bootstrap_servers": place.servers,
                "subscribe": "pictures",
                "max_offsets_per_trigger": CORES,
            },
        )
        with opened(config) as (spark, model):
            drained = drain(spark, config, model)
            table = DeltaTable(drained.settings.table.path)
            operations = [entry["operation"] for entry in table.history()]
            files = len(table.file_uris())
    _report(drained, operations.count("OPTIMIZE"), files)


def _report(drained: Drained, compactions: int, files: int) -> None:
    # The last progress of a drained query may be of no data.
    batches = [one for one in drained.progress if one.numInputRows]
    tenths = [_row(part) for part in np.array_split(np.array(batches, dtype=object), TENTHS)]
    shares = [tenth["median, s"] / tenths[1]["median, s"] for tenth in tenths]
    rows = [
        (f"tenth {number}", *tenth.values(), share)
        for number, (tenth, share) in enumerate(zip(tenths, shares, strict=True), start=1)
    ]
    print_table(
        f"{len(batches)} micro-batches, {compactions} compactions, {files} files at the end",
        ["", *tenths[0], "of the second tenth"],
        rows,
    )
    write_result(
        "log-growth",
        {
            "batches": len(batches),
            "compactions": compactions,
            "files": files,
            "tenths": tenths,
            "last_of_second_tenth": shares[-1],
        },
    )
    numbers = [len(batches) * (index + 0.5) / TENTHS for index in range(TENTHS)]
    lines(
        "log-growth",
        "Two pictures a micro-batch",
        ("micro-batches", "s"),
        {name: (numbers, [tenth[name] for tenth in tenths]) for name in tenths[0]},
    )


def _row(batches: Sequence[Any]) -> Row:
    seconds = [batch.durationMs["triggerExecution"] / 1000 for batch in batches]
    return {"median, s": median(seconds), "95 of 100 below, s": float(np.percentile(seconds, 95))}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batches", type=int, default=300)
    return parser.parse_args()


if __name__ == "__main__":
    main()
