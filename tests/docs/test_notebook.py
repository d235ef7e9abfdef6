"""The notebook of the examples runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "examples" / "pictures_to_classifier.ipynb"


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for all that Jupyter, its kernel and the notebook write."""
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    for name in ("TMPDIR", "MPLCONFIGDIR"):
        (tmp_path / name.lower()).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    return tmp_path


@pytest.mark.long
@pytest.mark.spark
def test_it_runs_to_a_good_classifier(scratch: Path) -> None:
    notebook = read()
    resources = {"metadata": {"path": str(scratch)}}

    NotebookClient(notebook, timeout=240, kernel_name="python3", resources=resources).execute()

    assert accuracy(notebook) > 0.9
    assert drawings(notebook) == 3


def test_its_outputs_are_stored() -> None:
    notebook = read()

    assert accuracy(notebook) > 0.9
    assert drawings(notebook) == 3


def read() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call,no-any-return]


def accuracy(notebook: nbformat.NotebookNode) -> float:
    (found,) = re.findall(r"^accuracy: (\S+)$", text(notebook), re.MULTILINE)
    return float(found)


def text(notebook: nbformat.NotebookNode) -> str:
    return "".join(output.get("text", "") for output in outputs(notebook))


def drawings(notebook: nbformat.NotebookNode) -> int:
    return sum("image/png" in output.get("data", {}) for output in outputs(notebook))


def outputs(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]
