"""The notebook that teaches: it runs from top to bottom, and its saved outputs are those of such a run, and small."""

import json

import pytest
from conftest import ROOT

NOTEBOOK = ROOT / "notebooks" / "diffusion_from_noise.ipynb"


def _code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_it_was_saved_after_a_run_from_top_to_bottom():
    text = NOTEBOOK.read_text()
    cells = _code_cells(json.loads(text))
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell["outputs"] if output["output_type"] == "error"]
    assert len(text) < 1_100_000
    assert "/home/" not in text and "/root/" not in text and "/tmp/" not in text


@pytest.mark.integration
def test_it_runs_from_top_to_bottom(tmp_path, monkeypatch):
    """In at most four minutes on two cores that do nothing else."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert (tmp_path / "runs" / "digits" / "pipeline" / "model_index.json").is_file()
    pictures = [output for cell in _code_cells(notebook) for output in cell.outputs if "image/png" in output.get("data", {})]
    assert len(pictures) >= 8
    assert len(nbformat.writes(notebook)) < 1_500_000
