"""Images a second of embedstream, of what users write today, and of the hardware's limit.

    python benchmarks/throughput.py [--images 250] [--rounds 4] [--precision float32] [--only …]

Every system featurizes the same 500x375 JPEGs with ResNet-50 on two cores. After one warm-up pass,
the system and the limit alternate, so that the machine's drift affects both. A system's figure is
the median of its rounds, its share the median of its ratios to the limit in the same round.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from images import jpegs, write_images
from report import RESULTS, bars, print_table, write_result
from systems import SYSTEMS, Running, running


def main() -> None:
    arguments = _arguments()
    RESULTS.mkdir(exist_ok=True)
    log = RESULTS / "throughput.log"
    log.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        images = write_images(Path(folder) / "images.parquet", list(jpegs(arguments.images)))
        with running(SYSTEMS["limit"], images, arguments.precision, log) as limit:
            limit.run()
            measured: dict[str, dict[str, Any]] = {}
            for name in arguments.only:
                measured[name] = _measure(name, images, limit, arguments, log)
                # An hour's work is kept also when a later system fails.
                _write(measured, arguments)
    _report(measured, arguments)


def _measure(
    name: str, images: Path, limit: Running, arguments: argparse.Namespace, log: Path
) -> dict[str, Any]:
    with running(SYSTEMS[name], images, arguments.precision, log) as system:
        first = system.run()
        rounds = [(_rate(limit), _rate(system)) for _ in range(arguments.rounds)]
        print_table(SYSTEMS[name].label, ["limit", "system"], rounds)
        return {
            "label": SYSTEMS[name].label,
            "versions": system.versions,
            "first_pass_s": first["seconds"],
            "images_per_s": median(rate for _, rate in rounds),
            "share_of_limit": median(rate / bound for bound, rate in rounds),
            "rounds": [{"limit": bound, "system": rate} for bound, rate in rounds],
        }


def _rate(system: Running) -> float:
    done = system.run()
    return float(done["images"] / done["seconds"])


def _report(measured: dict[str, dict[str, Any]], arguments: argparse.Namespace) -> None:
    own = measured.get("dataframe", {}).get("share_of_limit")
    rows = [
        (
            each["label"],
            each["images_per_s"],
            each["share_of_limit"],
            own / each["share_of_limit"] if own else "",
        )
        for each in measured.values()
    ]
    columns = ["system", "images/s", "of the limit", "embedstream is so many times as fast"]
    print_table(f"ResNet-50, {arguments.precision}, 500x375 JPEG, two cores", columns, rows)
    shares = {each["label"]: each["share_of_limit"] for each in measured.values()}
    title = f"ResNet-50, {arguments.precision}, 500x375 JPEG"
    bars(f"throughput-{arguments.precision}", title, "share of the limit", shares)


def _write(measured: dict[str, dict[str, Any]], arguments: argparse.Namespace) -> None:
    sizes = {"images": arguments.images, "rounds": arguments.rounds}
    result = {"precision": arguments.precision, **sizes, "systems": measured}
    write_result(f"throughput-{arguments.precision}", result)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=250, help="in one pass")
    parser.add_argument("--rounds", type=int, default=4, help="passes of each system once warm")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    names = [name for name in SYSTEMS if name != "limit"]
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    return parser.parse_args()


if __name__ == "__main__":
    main()
