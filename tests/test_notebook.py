"""The notebooks run from top to bottom, and are committed as they ran."""

import ast
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from interp import VLM, Guard
from studies.datasets import write_queries
from studies.organism import language, path

ROOT = Path(__file__).parents[1]
PAPER, USERS = "paper_repro.ipynb", "studies/notebooks"
FIGURES = {
    PAPER: 18,
    f"{USERS}/first_steps.ipynb": 3,
    f"{USERS}/your_model.ipynb": 4,
    f"{USERS}/layer_selection_ablation.ipynb": 3,
    f"{USERS}/your_data.ipynb": 3,
}
"""How many pictures each shows."""
MACHINE = (str(ROOT), "/home/", "/root/", "/tmp/", "/usr/", "/Users/", "site-packages")
"""What a path of somebody's machine has in it."""
LARGEST = 3_000_000
"""Bytes: a notebook is looked at in browsers, and every version of it is kept."""


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(ROOT / name, as_version=4)


def code(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(notebook: nbformat.NotebookNode) -> str:
    return "".join(str(output) for cell in code(notebook) for output in cell.outputs)


def run(name: str, folder: Path, **settings: str) -> str:
    """What a notebook shows with other settings in its first cell, run in a folder.

    Args:
        name: of the notebook, from the root.
        folder: where it runs.
        settings: what stands there and what is put in its place, as `SCALE='"quick" -> "tiny"'`.
    """
    notebook = read(name)
    first = code(notebook)[0]
    for setting, change in settings.items():
        old, new = change.split(" -> ")
        assert first.source.splitlines().count(f"{setting} = {old}") == 1
        first.source = first.source.replace(f"{setting} = {old}", f"{setting} = {new}")
    # A machine that is busy may take more than the usual minute to start a kernel.
    how = {"timeout": 300, "startup_timeout": 300, "resources": {"metadata": {"path": str(folder)}}}
    NotebookClient(notebook, **how).execute()
    return shown(notebook)


def test_the_paper_runs_at_tiny(tmp_path):
    told = run(PAPER, tmp_path, SCALE='"full" -> "tiny"')
    assert told.count("verdict: **") == 8 and told.count("image/png") == FIGURES[PAPER]


@pytest.mark.parametrize("name", ["first_steps", "layer_selection_ablation", "your_data"])
def test_notebooks_for_users_run_at_tiny_and_write_below_their_own_folder(name, tmp_path):
    name = f"{USERS}/{name}.ipynb"
    told = run(name, tmp_path, SCALE='"quick" -> "tiny"')
    assert told.count("image/png") == FIGURES[name]
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


def test_whoever_follows_your_model_gets_a_sweep_and_a_guard_for_a_folder_and_queries_of_their_own(tmp_path):
    name, model = f"{USERS}/your_model.ipynb", shutil.copytree(path(), tmp_path / "my_llava")
    write_queries(tmp_path / "my.csv", language.queries("validation"))
    told = run(
        name,
        tmp_path,
        SCALE='"quick" -> "tiny"',
        MODEL='"organism" -> "my_llava"',
        QUERIES='None -> "my.csv"',
    )
    assert told.count("image/png") == FIGURES[name]
    out = tmp_path / "results" / "notebooks" / "my_llava-tiny"
    assert "my_llava,my" in (out / "layer_sweep.csv").read_text() and (out / "layer_sweep.png").exists()
    guard = Guard.from_pretrained(out / "guard", VLM.from_pretrained(model, device="cpu"))
    assert guard.validation["n"] == 22 and set(guard.layers) <= {0, 4}


@pytest.mark.parametrize("name", FIGURES)
def test_it_is_committed_executed_in_order_and_free_of_machine_paths(name):
    notebook = read(name)
    assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))
    told = shown(notebook)
    assert told.count("image/png") == FIGURES[name] and "output_type': 'error'" not in told
    assert not [place for place in MACHINE if place in told]
    assert "'name': 'stderr'" not in told
    assert (ROOT / name).stat().st_size < LARGEST


def test_the_paper_is_committed_with_its_verdicts():
    assert shown(read(PAPER)).count("verdict: **") == 8


@pytest.mark.parametrize("name", FIGURES)
def test_it_defines_nothing(name):
    magic = ("%", "!")
    lines = [line for cell in code(read(name)) for line in cell.source.splitlines() if not line.startswith(magic)]
    found = {type(node) for node in ast.walk(ast.parse("\n".join(lines)))}
    assert not found & {ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda}
