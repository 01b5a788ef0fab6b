"""The notebook in `examples/` runs from top to bottom, and shows what it says it shows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "examples" / "quickstart.ipynb"


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    folder = tmp_path_factory.mktemp("notebook")
    return NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": folder}}
    ).execute()


def output_of(executed: Any, source: str) -> dict[str, str]:
    """What the cell that ends in a line shows, by media type."""
    cell = next(cell for cell in executed.cells if cell.source.splitlines()[-1].startswith(source))
    return next(output.data for output in cell.outputs if output.output_type == "execute_result")


def test_the_notebook_is_committed_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)


def test_every_cell_runs_and_the_graph_is_exact(executed):
    assert output_of(executed, "graph.completeness_error()")["text/plain"] == "True"


def test_a_graph_shows_itself_as_a_page_in_a_sandboxed_frame(executed):
    shown = output_of(executed, "pruned")["text/html"]
    assert re.match(r'<iframe [^>]*sandbox="allow-scripts"', shown)
    assert "Dallas" in shown


@pytest.mark.parametrize("cell", ["graph_scores(", "strongest_paths(", "cards[", "compare("])
def test_scores_paths_cards_and_comparisons_show_themselves_as_tables(executed, cell):
    assert "<table" in output_of(executed, cell)["text/html"]


def test_the_intervention_ends_in_the_other_capital(executed):
    assert output_of(executed, "[(change.string")["text/plain"].startswith("[('Sacramento', 0.0, 0.97")
