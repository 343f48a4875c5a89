"""The notebooks run from top to bottom, and are committed with their outputs."""

import ast
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from interp import VLM, Guard
from studies import repro
from studies.bookkeeping.tables import read_table
from studies.claims import CLAIMS
from studies.datasets import write_queries
from studies.organism import language, path

ROOT = Path(__file__).parents[1]
PAPER, USERS = "paper_repro.ipynb", "studies/notebooks"
FIGURES = {
    PAPER: 24,
    f"{USERS}/first_steps.ipynb": 3,
    f"{USERS}/your_model.ipynb": 4,
    f"{USERS}/layer_selection_ablation.ipynb": 3,
    f"{USERS}/your_data.ipynb": 3,
}
"""Number of figures in each notebook."""
MACHINE = (str(ROOT), "/home/", "/root/", "/tmp/", "/usr/", "/Users/", "site-packages")
"""Text that reveals a path on somebody's machine."""
LARGEST = 3_000_000
"""Size limit in bytes: notebooks are viewed in browsers, and git keeps every version."""


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(ROOT / name, as_version=4)


def code(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs_of(notebook: nbformat.NotebookNode) -> str:
    return "".join(str(output) for cell in code(notebook) for output in cell.outputs)


def run(name: str, folder: Path, **settings: str) -> str:
    """Run a notebook with other settings in its first cell, and return its outputs.

    Args:
        name: path of the notebook, from the root.
        folder: working directory of the run.
        settings: old and new values of settings, as `SCALE='"quick" -> "tiny"'`.
    """
    notebook = read(name)
    first = code(notebook)[0]
    for setting, change in settings.items():
        old, new = change.split(" -> ")
        assert first.source.splitlines().count(f"{setting} = {old}") == 1
        first.source = first.source.replace(f"{setting} = {old}", f"{setting} = {new}")
    # A busy machine may take longer than the usual minute to start a kernel.
    options = {"timeout": 3600, "startup_timeout": 3600, "resources": {"metadata": {"path": str(folder)}}}
    NotebookClient(notebook, **options).execute()
    return outputs_of(notebook)


def test_the_paper_notebook_runs_at_tiny(tmp_path):
    outputs = run(PAPER, tmp_path, SCALE='"quick" -> "tiny"')
    assert outputs.count("verdict: **") == len(CLAIMS) and outputs.count("image/png") == FIGURES[PAPER]


@pytest.mark.parametrize("name", ["first_steps", "layer_selection_ablation", "your_data"])
def test_notebooks_for_users_run_at_tiny_and_write_into_their_own_folder(name, tmp_path):
    name = f"{USERS}/{name}.ipynb"
    outputs = run(name, tmp_path, SCALE='"quick" -> "tiny"')
    assert outputs.count("image/png") == FIGURES[name]
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


def test_your_model_gives_a_sweep_and_a_guard_for_a_model_folder_and_queries_of_ones_own(tmp_path):
    name, model = f"{USERS}/your_model.ipynb", shutil.copytree(path(), tmp_path / "my_llava")
    write_queries(tmp_path / "my.csv", language.queries("validation"))
    outputs = run(
        name,
        tmp_path,
        SCALE='"quick" -> "tiny"',
        MODEL='"organism" -> "my_llava"',
        QUERIES='None -> "my.csv"',
    )
    assert outputs.count("image/png") == FIGURES[name]
    out = tmp_path / "results" / "notebooks" / "my_llava-tiny"
    assert "my_llava,my" in (out / "layer_sweep.csv").read_text() and (out / "layer_sweep.png").exists()
    guard = Guard.from_pretrained(out / "guard", VLM.from_pretrained(model, device="cpu"))
    assert any(name.endswith("(n = 11)") for name in guard.validation) and set(guard.layers) <= {0, 4}


def test_the_papers_notebook_shows_the_verdicts_and_numbers_of_the_committed_run():
    claims = read_table(repro.REFERENCE / "quick", "claims")
    outputs = outputs_of(read(PAPER))
    # It goes through the claims in an order of its own.
    assert sorted(re.findall(r"verdict: \*\*(.+?)\*\*", outputs)) == sorted(claims.verdict)
    plain = outputs.replace("\\'", "'").replace('\\"', '"')
    for numbers in claims.ours:
        assert all(part in plain for part in numbers.split("; ")), numbers


@pytest.mark.parametrize("name", FIGURES)
def test_a_notebook_is_committed_executed_in_order_and_without_machine_paths(name):
    notebook = read(name)
    assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))
    outputs = outputs_of(notebook)
    assert outputs.count("image/png") == FIGURES[name] and "output_type': 'error'" not in outputs
    assert not [place for place in MACHINE if place in outputs]
    assert "'name': 'stderr'" not in outputs
    assert (ROOT / name).stat().st_size < LARGEST


def test_the_paper_notebook_is_committed_with_its_verdicts():
    assert outputs_of(read(PAPER)).count("verdict: **") == len(CLAIMS)


@pytest.mark.parametrize("name", FIGURES)
def test_a_notebook_defines_no_function_or_class(name):
    magic = ("%", "!")
    lines = [line for cell in code(read(name)) for line in cell.source.splitlines() if not line.startswith(magic)]
    nodes = {type(node) for node in ast.walk(ast.parse("\n".join(lines)))}
    assert not nodes & {ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda}
