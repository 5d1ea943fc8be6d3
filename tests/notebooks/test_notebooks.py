"""Each notebook from a clean kernel, on a run of ``experiment=smoke``; and what git holds of it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.helpers import processes

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = ["01_quickstart", "02_routing", "03_cost_and_depth", "04_from_gpt2_to_mom"]
# Kernels find the package as the tests do, installed or not.
PATHS = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])


@pytest.fixture(scope="module")
def smoke_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with every part of a quickstart's, trained for three steps each."""
    folder = tmp_path_factory.mktemp("smoke") / "run"
    line = ["run.py", "experiment=smoke", f"run_dir={folder}"]
    done = processes.run(line, ROOT, folder.with_suffix(".txt"))
    assert done.code == 0, done.output
    return folder


def test_these_are_the_notebooks() -> None:
    assert [file.stem for file in FILES] == NAMES


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_runs_from_a_clean_kernel(file: Path, smoke_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOM_RUN", str(smoke_run))
    monkeypatch.setenv("PYTHONPATH", PATHS)
    notebook = nbformat.read(file, as_version=4)
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(file.parent)}})
    client.execute()  # raises what a cell raised
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]

    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert [output for output in outputs if output.output_type == "stream" and output.name == "stderr"] == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_git_holds_no_outputs_and_words_between_cells(file: Path) -> None:
    notebook = json.loads(file.read_text(encoding="utf-8"))
    nbformat.validate(nbformat.reads(json.dumps(notebook), as_version=4))
    cells = notebook["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]

    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert cells[0]["cell_type"] == "markdown" and cells[0]["source"][0].startswith("# ")
    assert len(cells) - len(code) >= len(code) / 2
