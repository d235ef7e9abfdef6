"""What int8 and binary quantization cost in recall, on real embeddings.

    python benchmarks/quantization.py [--texts 20000] [--pictures 4000] [--queries 500]

The texts are the first paragraphs of docstrings of Python's standard library, embedded by `minilm`
(384 floats); the pictures are crops of real ones, embedded by `efficientnet_lite0` (1,280 floats).
A part of them are queries, which are not among the rows. The neighbours found in quantized vectors
are compared with the ten nearest by the cosine of the float32 vectors. A number such as `50` is of
candidates: the nearest by quantized vectors, ranked again by the float32 vectors. The
quantization is that of the views in docs/search.md, whose SQL a test compares with these functions.
"""

from __future__ import annotations

import argparse
import ast
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from embedstream.config.sections import EncoderConfig
from embedstream.worker.model import prepare
from embedstream_core.engine.engine import Engine
from embedstream_core.models.prepare import load_prepared
from embedstream_core.pipeline.pipeline import Pipeline
from embedstream_core.records import Embedding, Item
from images import jpegs
from report import print_table, write_result

K = 10
CANDIDATES = (10, 20, 50, 100, 200)
FEWEST_WORDS = 5

Vectors = npt.NDArray[np.float32]


def main() -> None:
    arguments = _arguments()
    texts = sorted(_read_docstrings())[: arguments.texts]
    pictures = list(jpegs(arguments.pictures, size=(320, 240), share=(0.1, 0.5)))
    measured = {
        encoder: _measure(encoder, contents, arguments.queries)
        for encoder, contents in (("minilm", texts), ("efficientnet_lite0", pictures))
    }
    for name, result in measured.items():
        title = f"{name}: recall@{K} of {result['rows']} rows, {result['queries']} queries"
        columns = ["quantized", "bytes a row", *map(str, CANDIDATES)]
        print_table(
            title,
            columns,
            [
                [kind, result["bytes"][kind], *(f"{one:.3f}" for one in recalls.values())]
                for kind, recalls in result["recall"].items()
            ],
        )
    write_result("quantization", {"k": K, "measured": measured})


def _measure(
    encoder: str, contents: Sequence[bytes], arguments: argparse.Namespace
) -> dict[str, Any]:
    vectors = _embed(encoder, contents)
    order = np.random.default_rng(0).permutation(len(vectors))
    queries, rows = np.split(vectors[order], [arguments.queries])
    mean = rows.mean(axis=0)
    dimension = rows.shape[1]
    exact = _find_nearest(_normalize(queries) @ _normalize(rows).T, K)
    found = {
        "int8": _compare_int8(queries, rows),
        "bits": _compare_bits(queries, rows),
        "bits of the difference from the mean": _compare_bits(queries - mean, rows - mean),
    }
    return {
        "rows": len(rows),
        "queries": len(queries),
        "dimension": dimension,
        "negative": float((rows < 0).mean()),
        "bytes": {
            "float32": 4 * dimension,
            "int8": dimension + 4,
            "bits": dimension // 8,
            "bits of the difference from the mean": dimension // 8,
        },
        "recall": {kind: _count(likeness, exact) for kind, likeness in found.items()},
    }


def quantize_int8(vectors: Vectors) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float64]]:
    """Return whole numbers from -127 to 127, and the scale of each vector.

    Of shapes (rows, dimension) and (rows,); number times scale is about the float.
    """
    scales = np.abs(vectors).max(axis=1).astype(np.float64) / 127
    scaled = vectors / np.where(scales == 0, 1, scales)[:, None]
    return (np.sign(scaled) * np.floor(np.abs(scaled) + 0.5)).astype(np.int8), scales


def quantize_bits(vectors: Vectors) -> npt.NDArray[np.uint64]:
    """Return a bit for each float, 1 if it is above 0: 64 in a number, the first one highest.

    Of shape (rows, dimension / 64); the dimension has to be a multiple of 64.
    """
    packed = np.packbits(vectors > 0, axis=1)
    return packed.view(">u8").astype(np.uint64)


def _compare_int8(queries: Vectors, rows: Vectors) -> Vectors:
    numbers = [quantize_int8(one)[0].astype(np.float32) for one in (queries, rows)]
    return _normalize(numbers[0]) @ _normalize(numbers[1]).T


def _compare_bits(queries: Vectors, rows: Vectors) -> Vectors:
    asked, held = quantize_bits(queries), quantize_bits(rows)
    # Of those that are equally far, the order is that of the rows, which is random.
    return np.stack([-np.bitwise_count(held ^ one).sum(axis=1).astype(np.float32) for one in asked])


def _count(likeness: Vectors, exact: npt.NDArray[np.int64]) -> dict[str, float]:
    """Return the share of the nearest that are among so many candidates.

    Ranking the candidates again by the float32 vectors puts each of them in its place, so with
    more than K candidates this is the recall after it.
    """
    nearest = _find_nearest(likeness, max(CANDIDATES))
    return {
        str(number): float(
            np.mean([np.isin(a, b[:number]).mean() for a, b in zip(exact, nearest, strict=True)])
        )
        for number in CANDIDATES
    }


def _find_nearest(likeness: Vectors, number: int) -> npt.NDArray[np.int64]:
    return np.argsort(-likeness, axis=1, kind="stable")[:, :number]


def _normalize(vectors: Vectors) -> Vectors:
    normalized: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return normalized


def _embed(encoder: str, contents: Sequence[bytes]) -> Vectors:
    config = EncoderConfig(name=encoder, precision="float32")
    engine = Engine.start(load_prepared(prepare(config)), device=torch.device("cpu"))
    pipeline = Pipeline([engine], fetch=str.encode)
    items = [Item(str(index), content=content) for index, content in enumerate(contents)]
    batches = (items[start : start + 256] for start in range(0, len(items), 256))
    vectors = [
        outcome.vector
        for batch in pipeline.run(batches)
        for outcomes in batch
        for outcome in outcomes
        if isinstance(outcome, Embedding)
    ]
    assert len(vectors) == len(contents)
    return np.stack(vectors)


def _read_docstrings() -> set[bytes]:
    return {text.encode() for text in _walk() if len(text.split()) >= FEWEST_WORDS}


def _walk() -> Iterator[str]:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py")):
        if {"site-packages", "dist-packages", "test", "tests"} & set(path.parts):
            continue
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, documented):
                yield " ".join((ast.get_docstring(node) or "").partition("\n\n")[0].split())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=20_000)
    parser.add_argument("--pictures", type=int, default=4_000)
    parser.add_argument("--queries", type=int, default=500)
    return parser.parse_args()


if __name__ == "__main__":
    main()
