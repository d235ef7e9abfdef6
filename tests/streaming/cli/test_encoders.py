"""`embedstream encoders`, and what commands say if an encoder's extra is missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from embedstream_core.extras import is_installed
from embedstream_core.models.encoders.catalog import list_encoders
from embedstream_core.models.encoders.listing import Listing, describe_encoders, list_modalities
from embedstream_core.models.files.file_formats import PROGRAMS
from outcome_tables import row, write_table

# None in sys.modules makes an import fail, as if the package were not installed.
RUN = """
import sys
from importlib import metadata
missing = sys.argv.pop(1).split(",")
sys.modules.update(dict.fromkeys(missing))
find = metadata.distribution
def find_installed(name):
    if name.replace("-", "_") in missing:
        raise metadata.PackageNotFoundError(name)
    return find(name)
metadata.distribution = find_installed
from embedstream.cli.app import main
main()
"""


def run(*arguments: object, missing: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command as on a machine without some modules."""
    return subprocess.run(
        [sys.executable, "-c", RUN, missing, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def listings() -> dict[str, Listing]:
    return {one.name: one for one in describe_encoders()}


def test_every_encoder_is_listed(listings: dict[str, Listing]) -> None:
    families = {"timm/<model>", "<module>:<function>", "mlflow"}
    assert listings.keys() == {*list_encoders(), *PROGRAMS, *families}
    assert listings["resnet50"] == Listing(
        "resnet50", ("image",), 2048, "BSD-3-Clause", listings["resnet50"].weights
    )
    assert listings["minilm"] == Listing("minilm", ("text",), 384, "Apache-2.0", "here")
    assert listings["speech-embedding"] == Listing(
        "speech-embedding", ("audio",), 96, "Apache-2.0", "here"
    )
    assert listings["huggingface"].modalities == ("image", "text", "audio")
    assert listings["onnx"].dimension is None
    assert not [one.name for one in listings.values() if one.missing_extra]


def test_the_floats_are_those_of_the_networks(listings: dict[str, Listing]) -> None:
    dimensions = {name: listings[name].dimension for name in list_encoders()}
    assert all(dimensions.values())
    known = {"efficientnet_lite0": 1280, "vit_b_16": 768, "squeezenet1_0": 512, "vgg11": 4096}
    assert {name: dimensions[name] for name in known} == known


def test_modalities_are_known_by_the_name() -> None:
    assert list_modalities("resnet50") == list_modalities("timm/vit") == ("image",)
    assert list_modalities("minilm") == ("text",)
    assert list_modalities("mlflow") == ("image", "text", "audio")


@pytest.mark.slow
def test_the_list_fits_a_terminal_of_80_columns() -> None:
    ended = run("encoders", missing="soxr,timm")

    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert lines[0].split() == ["name", "modality", "floats", "license", "weights"]
    assert max(map(len, lines[:-1])) <= 80
    by_name = {line.split()[0]: line for line in lines}
    assert by_name["minilm"].split() == ["minilm", "text", "384", "Apache-2.0", "here"]
    assert by_name["speech-embedding"].endswith("  needs extra audio")
    assert by_name["timm/<model>"].endswith("  needs extra timm")
    assert by_name["huggingface"].split()[1] == "any"
    assert lines[-1] == "extras that are missing here: pip install 'embedstream[audio,timm]'"


def test_an_extra_is_installed_with_all_its_packages() -> None:
    assert is_installed("text")
    assert is_installed("an extra of nobody")


@pytest.mark.parametrize(
    ("arguments", "missing", "extra"),
    [
        pytest.param(
            "batch --from {folder} --table {table} --encoder speech-embedding",
            "soxr",
            "audio",
            # It starts a session of its own.
            marks=[pytest.mark.spark, pytest.mark.long],
        ),
        ("search --text x --table {table}", "transformers", "text"),
    ],
)
def test_a_missing_extra_is_a_sentence(
    tmp_path: Path, arguments: str, missing: str, extra: str
) -> None:
    model_id = "minilm/default/4582f9a64a94"
    table = write_table(tmp_path, [row("a", [1.0], model_id=model_id)], model_id=model_id)
    (tmp_path / "files").mkdir()
    (tmp_path / "files/a.txt").write_text("a")
    words = arguments.format(folder=tmp_path / "files", table=table).split()

    ended = run(*words, missing=missing)

    assert (ended.returncode, ended.stdout) == (2, ""), ended.stdout
    assert "Traceback" not in ended.stderr
    # Spark's JVM may print lines of its own before.
    line = ended.stderr.splitlines()[-1]
    assert line.startswith("embedstream: ")
    assert line.endswith(f" needs an extra package: pip install 'embedstream[{extra}]'")
