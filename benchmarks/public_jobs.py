"""Public benchmarks of Daft and Ray Data, in our own words, beside embedstream doing the same job.

    python benchmarks/public_jobs.py image_classification [--items 400] [--turns 5] [--only ray]

`image_classification`: Parquet files of addresses, ResNet-18, Parquet files out.
`large_image_embedding`: Parquet files of images in base64, ViT-B/16, Parquet files out.
`peers/public_daft.py` and `peers/public_ray.py` name the published scripts and their commits, and
docs/performance.md lists what is different without GPUs and without a cluster.

Each system writes the vector before the classifier, or the pooler's, so that embeddings can be
compared: an image's two vectors must have a cosine of at least 0.99 once the vectors' mean is
subtracted. A pass is the whole query, as the published time is; turns are as in `throughput.py`.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from public_data import DATA, Agreement, compare_embeddings, read_embeddings, write_data
from report import print_table, start_log, write_result
from running import add_slices, compare
from systems import System, running
from turns import Turns

OWN = "embedstream"
LEAST_COSINE = 0.99
PEERS: Mapping[str, str] = {"daft": "Daft", "ray": "Ray Data"}


def main() -> None:
    arguments = _arguments()
    log = start_log("public-jobs")
    with tempfile.TemporaryDirectory(prefix="embedstream-benchmark-") as temporary:
        folder = Path(temporary)
        write_data(arguments.job, folder, arguments.items)
        measured: dict[str, Turns] = {}
        described: dict[str, Any] = {}
        own_system = System(OWN, "public_embedstream", arguments=(arguments.job,))
        with running(own_system, folder, "float32", log) as own:
            own_first = own.run()
            for name in arguments.only:
                batch = (arguments.job, str(arguments.batch))
                system = System(PEERS[name], f"public_{name}", "public", batch)
                with running(system, folder, "float32", log) as peer:
                    first = peer.run()
                    agreement = _check(folder, name)
                    turns = compare(own, peer, turns=arguments.turns, slice_s=arguments.slice_s)
                measured[PEERS[name]] = turns
                described[name] = {
                    "versions": peer.versions,
                    "first_pass_s": first.seconds,
                    "cosine": asdict(agreement),
                    **turns.as_json(),
                }
                # What was measured is kept also when a later system fails.
                _write(described, own_first.seconds, arguments)
    title = f"{DATA[arguments.job].description}, two cores: embedstream beside each"
    _report(title, measured)


def _check(folder: Path, name: str) -> Agreement:
    """Compare what embedstream and a peer have written.

    Raises:
        SystemExit: they do not embed the same.
    """
    written = [read_embeddings(folder / f"out-{system}") for system in (OWN, name)]
    agreement = compare_embeddings(*written)
    if agreement.least_centered < LEAST_COSINE or agreement.found < 1:
        raise SystemExit(f"{PEERS[name]} and embedstream do not embed the same: {agreement}")
    return agreement


def _report(title: str, measured: Mapping[str, Turns]) -> None:
    print_table(
        title,
        [
            "",
            "images/s",
            "embedstream, images/s",
            "ratio",
            "CPU ms",
            "embedstream, CPU ms",
            "ratio",
        ],
        [
            (
                name,
                turns.others.items_per_s,
                turns.items_per_s,
                turns.speed,
                turns.others.cpu_ms,
                turns.cpu_ms,
                turns.cpu,
            )
            for name, turns in measured.items()
        ],
    )


def _write(
    described: Mapping[str, Any], own_first_pass_s: float, arguments: argparse.Namespace
) -> None:
    result = {
        "images": arguments.items,
        "batch": arguments.batch,
        "turns": arguments.turns,
        "slice_s": arguments.slice_s,
        "first_pass_s": own_first_pass_s,
        "peers": described,
    }
    only = arguments.only if len(arguments.only) < len(PEERS) else []
    write_result("-".join(["public", *arguments.job.split("_"), *only]), result)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("job", choices=tuple(DATA))
    parser.add_argument("--items", type=int, help="images in one pass")
    parser.add_argument("--batch", type=int, help="images in a batch of the peers")
    add_slices(parser)
    parser.add_argument("--only", nargs="+", choices=tuple(PEERS), default=list(PEERS))
    arguments = parser.parse_args()
    arguments.items = arguments.items or DATA[arguments.job].items
    arguments.batch = arguments.batch or DATA[arguments.job].batch
    return arguments


if __name__ == "__main__":
    main()
