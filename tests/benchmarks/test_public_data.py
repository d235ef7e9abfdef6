"""The inputs of the published jobs, and the comparison of what two systems made of them."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from public_data import DATA, compare_embeddings, read_embeddings, write_data

RANDOM = np.random.default_rng(0)
ALIKE = {
    f"picture-{number}": (100 + RANDOM.normal(size=8)).astype(np.float32) for number in range(6)
}
"""Vectors that all point nearly the same way, as those of a network with seeded weights do."""


def read_rows(folder: Path) -> list[dict[str, str]]:
    return [
        row for path in folder.glob("input/*.parquet") for row in pq.read_table(path).to_pylist()
    ]


def write_vectors(
    path: Path, names: Sequence[str], vectors: pa.Array | Sequence[NDArray[np.float32]]
) -> None:
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({"url": names, "embedding": vectors}), path)


def test_addresses_lead_to_images_of_the_jobs_size(tmp_path: Path) -> None:
    write_data("image_classification", tmp_path, 10)

    addresses = [row["image_url"] for row in read_rows(tmp_path)]
    contents = {Path(urlsplit(address).path).read_bytes() for address in addresses}
    assert len(contents) == len(addresses) == 10
    assert {Image.open(io.BytesIO(each)).size for each in contents} == {(500, 375)}


def test_the_weights_are_the_same_in_each_run(tmp_path: Path) -> None:
    weights = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        write_data("image_classification", tmp_path / name, 1)
        weights.append(torch.load(tmp_path / name / "model.pt", weights_only=True))

    assert torch.equal(weights[0]["conv1.weight"], weights[1]["conv1.weight"])


def test_base64_holds_images_of_the_jobs_size(tmp_path: Path) -> None:
    job = DATA["large_image_embedding"]
    content = io.BytesIO()
    Image.new("RGB", (8, 6)).save(content, "JPEG")

    (row,) = job.write_rows(tmp_path, iter([content.getvalue()]))

    assert row["url"]
    assert base64.b64decode(row["image"], validate=True) == content.getvalue()


def test_what_systems_write_is_read_whatever_the_type_of_list(tmp_path: Path) -> None:
    names = list(ALIKE)
    flat = pa.array(np.concatenate(list(ALIKE.values())))
    fixed = pa.FixedSizeListArray.from_arrays(flat, 8)
    tensors = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float32(), (8,)), fixed)
    write_vectors(tmp_path / "lists" / "a.parquet", names[:2], [ALIKE[name] for name in names[:2]])
    write_vectors(tmp_path / "lists" / "b.parquet", names[2:], [ALIKE[name] for name in names[2:]])
    write_vectors(tmp_path / "fixed" / "a.parquet", names, fixed)
    write_vectors(tmp_path / "tensors" / "a.parquet", names, tensors)

    for written in ("lists", "fixed", "tensors"):
        read = read_embeddings(tmp_path / written)
        assert read.keys() == ALIKE.keys()
        assert all(np.array_equal(read[name], ALIKE[name]) for name in names)


def test_an_image_with_two_vectors_is_refused(tmp_path: Path) -> None:
    for number in range(2):
        write_vectors(tmp_path / "out" / f"{number}.parquet", list(ALIKE), list(ALIKE.values()))

    with pytest.raises(ValueError, match="picture-0 has two embeddings"):
        read_embeddings(tmp_path / "out")


def test_the_same_vectors_agree() -> None:
    agreement = compare_embeddings(ALIKE, dict(reversed(ALIKE.items())))

    assert agreement.least == pytest.approx(1)
    assert agreement.least_centered == pytest.approx(1)
    assert agreement.found == 1


def test_vectors_of_other_images_are_told_apart_although_all_are_alike() -> None:
    names = list(ALIKE)
    shifted: Mapping[str, NDArray[np.float32]] = {
        name: ALIKE[names[index - 1]] for index, name in enumerate(names)
    }

    agreement = compare_embeddings(ALIKE, shifted)

    assert agreement.least > 0.999
    assert agreement.least_centered < 0.9
    assert agreement.found == 0


def test_systems_that_embedded_other_images_are_not_compared() -> None:
    with pytest.raises(ValueError, match="1 images have only one embedding"):
        compare_embeddings(ALIKE, {name: ALIKE[name] for name in list(ALIKE)[1:]})
