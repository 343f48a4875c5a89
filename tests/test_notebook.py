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
    f"{USERS}/real_model.ipynb": 6,
}
"""Number of figures in each notebook."""
CHECKS = {
    PAPER: """
assert [(each.claim, each.verdict) for each in decided] == list(zip(committed.claim, committed.verdict))
assert {"modality", "layer", "probe", "control", "value", "ci_low", "ci_high", "interval", "n"} <= set(rows.columns)
assert rows[rows.control.isna() & (rows.probe == "logistic")].n.min() >= 20
measured = rows[rows.ci_low.notna()]
assert ((measured.ci_low <= measured.value + 1e-6) & (measured.value <= measured.ci_high + 1e-6)).all()
drops = rows[rows.metric == "auroc_drop"]
assert {"logistic", "ssd"} <= set(drops.probe) and drops.n.min() >= 20
attacks = tables.defence[tables.defence.metric == "asr"]
assert attacks.n.min() >= 10 and attacks.ci_low.notna().all()
assert set(sweep[sweep.setting.isin(["ranked", "finalists"])].split) == {"validation"}
assert {"ablate", "substitute"} <= set(sweep.rule.dropna())
assert optimism.empty or optimism.ci_low.notna().all()
assert set(selection[selection.setting == "criterion"].split) == {"validation"}
tested = readings[(readings.setting == "compared") & (readings.metric == "refusal_score_gain")]
assert tested.n.min() >= 10 and tested.ci_low.notna().all()
assert set(tables.defence.split.dropna()) <= {"test", "anchors"}
assert {"plain", "jailbreak", "multimodal"} <= set(tables.defence.setting)
changed = tables.defence[tables.defence.metric.astype(str).str.startswith("changed_")]
assert changed.n.notna().all()
assert {"refusal_score", "coordinate_written", "recovered"} <= set(path.metric)
assert set(changes.split) == {"test"} and changes.harmful.nunique() == 2
assert judges[judges.metric == "kappa"].ci_low.notna().any()
decided_there, committed_there = verdicts(aligned), Results.of(both["llava-qwen-0.5b"])["claims"]
there = list(zip(committed_there.claim, committed_there.verdict))
assert [(each.claim, each.verdict) for each in decided_there] == there
""",
    f"{USERS}/first_steps.ipynb": """
assert all(traced.resid_post.sizes["layer"] == vlm.n_layers for traced in states.values())
assert len(points) == len(queries) * len(states)
assert ((auroc.low <= auroc.AUROC) & (auroc.AUROC <= auroc.high)).all()
assert np.array_equal(stored.resid_post.sel(layer=layer, token="last").values, resid["text"])
""",
    f"{USERS}/your_model.ipynb": """
import torch
from interp.verify import VERDICTS
assert set(findings.verdict) <= set(VERDICTS)
measured = table[(table.metric == "auroc") & table.ci_low.notna()]
assert ((measured.ci_low <= measured.value + 1e-9) & (measured.value <= measured.ci_high + 1e-9)).all()
assert sweep.validation["n"] >= 10 and (sweep.finalists.mark == "best").sum() == 1
assert (loaded.layers, loaded.rule) == (guard.layers, guard.rule)
assert torch.equal(loaded.direction.basis, guard.direction.basis)
""",
    f"{USERS}/layer_selection_ablation.ipynb": """
assert (criteria.groupby("selection_rule").size() == experiment.vlm.n_layers).all()
assert picks.n.min() >= 10
assert ((picks.ci_low <= picks.value + 1e-9) & (picks.value <= picks.ci_high + 1e-9)).all()
""",
    f"{USERS}/your_data.ipynb": """
assert [query.text for query in read_queries(jsonl)] == [query.text for query in queries[:4]]
pairs = {split: {query.group for query in part} for split, part in splits.items()}
assert not pairs["anchors"] & pairs["validation"] and not pairs["anchors"] & pairs["test"]
assert sum(query.harmful for query in mixed) == len(harmful)
assert f"row {len(tested) - 1}" in leakage.ids
assert table.n.min() >= 5
""",
    f"{USERS}/real_model.ipynb": """
committed = results["claims"]
assert [(each.claim, each.verdict) for each in decided] == list(zip(committed.claim, committed.verdict))
assert {"unguarded", "guard"} <= set(tables.defence.defence) and len(rates)
assert rates[rates.defence == "guard"]["attack success"].str.contains("[", regex=False).all()
""",
}
"""What has to hold at the end of each notebook: run after its last cell, and not shown to its readers."""
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
    """Run a notebook with other settings in its first cell, then its checks, and return its outputs.

    Args:
        name: path of the notebook, from the root.
        folder: working directory of the run.
        settings: old and new values of settings, as `SCALE='"quick" -> "tiny"'`.
    """
    notebook = read(name)
    first = code(notebook)[0]
    notebook.cells.append(nbformat.v4.new_code_cell(CHECKS[name]))
    for setting, change in settings.items():
        old, new = change.split(" -> ")
        assert first.source.splitlines().count(f"{setting} = {old}") == 1
        first.source = first.source.replace(f"{setting} = {old}", f"{setting} = {new}")
    # A busy machine may take longer than the usual minute to start a kernel.
    options = {"timeout": 3600, "startup_timeout": 3600, "resources": {"metadata": {"path": str(folder)}}}
    NotebookClient(notebook, **options).execute()
    return outputs_of(notebook)


@pytest.mark.parametrize(
    "settings", [{}, pytest.param({"SCALE": '"quick" -> "tiny"'}, marks=pytest.mark.slow)], ids=["committed", "new run"]
)
def test_the_paper_notebook_runs_on_the_committed_results_and_on_a_new_run(settings, tmp_path):
    outputs = run(PAPER, tmp_path, **settings)
    assert outputs.count("verdict: **") == len(CLAIMS) and outputs.count("image/png") == FIGURES[PAPER]


@pytest.mark.parametrize(
    "name", ["first_steps", "your_data", pytest.param("layer_selection_ablation", marks=pytest.mark.slow)]
)
def test_notebooks_for_users_run_at_tiny_and_write_into_their_own_folder(name, tmp_path):
    name = f"{USERS}/{name}.ipynb"
    outputs = run(name, tmp_path, SCALE='"quick" -> "tiny"')
    assert outputs.count("image/png") == FIGURES[name]
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


@pytest.mark.slow
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


@pytest.mark.parametrize(
    "results", [None, pytest.param(repro.REFERENCE / "quick", marks=pytest.mark.slow)], ids=["committed", "own"]
)
def test_the_notebook_of_the_real_model_reads_its_results_and_those_of_a_run_of_ones_own(results, tmp_path):
    name, settings = f"{USERS}/real_model.ipynb", {"RESULTS": f'None -> "{results}"'} if results else {}
    assert run(name, tmp_path, **settings).count("image/png") == FIGURES[name]
    assert not list(tmp_path.iterdir())


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
    # Checks are the tests' business, and stay out of the way of readers.
    assert ast.Assert not in nodes
