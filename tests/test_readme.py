"""The Python of the README and of four how-to pages runs; the files that the README names exist."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def snippet(page: str) -> str:
    """Return the only Python block of a page."""
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    return block


def test_the_readmes_snippet_runs_and_prints_what_is_shown_below_it(capsys):
    (shown,) = re.findall(r"```text\n(.*?)```", README, re.DOTALL)
    exec(compile(snippet("README.md"), "README.md", "exec"), {})
    assert len(snippet("README.md").strip().splitlines()) <= 20
    assert capsys.readouterr().out == shown
    refused = ["can't" in line or "cannot" in line for line in shown.splitlines() if "->" in line]
    assert refused == [False, False, True, False]


def test_the_page_on_guards_explains_and_saves_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(snippet("docs/how-to/guards.md"), "docs/how-to/guards.md", "exec"), names)
    assert names["table"].layer.tolist() == [7] and names["guard"].gate == "threshold"
    assert "refusal_rate" in (tmp_path / "my_guard" / "README.md").read_text()


def test_the_page_on_probes_measures_the_drop_under_typography(capsys):
    exec(compile(snippet("docs/how-to/probes_and_sweeps.md"), "docs/how-to/probes_and_sweeps.md", "exec"), {})
    first, second = (eval(line) for line in capsys.readouterr().out.splitlines() if line.startswith("("))
    assert first[0] < 0.9 and second[0] > 0.1 and second[1] > 0


def test_the_page_on_benchmarks_answers_under_two_defences(capsys):
    exec(compile(snippet("docs/how-to/benchmarks.md"), "docs/how-to/benchmarks.md", "exec"), {})
    lines = [
        line for line in capsys.readouterr().out.splitlines() if line.startswith(("self_reminder", "caption_only"))
    ]
    assert len(lines) == 2 and all(len(eval(line.split(" ", 1)[1])) == 4 for line in lines)


def test_the_page_on_traces_writes_a_store_and_reads_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(snippet("docs/how-to/traces.md"), "docs/how-to/traces.md", "exec"), names)
    n_harmful = sum(query.harmful for query in names["queries"])
    assert names["harmful"].shape == (n_harmful, names["vlm"].d_model) and names["harmful"].harmful.all()


def test_the_readme_names_the_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"Version `{project['version']}`" in README


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)#]+)\)", README))
def test_links_lead_to_files_that_exist(target):
    assert target.startswith("https://") or (ROOT / target).exists()


def tree() -> list[str]:
    """Return the paths that the README's tree names, from the root."""
    section = README.partition("## The tree")[2].partition("\n## ")[0]
    paths, folder = [], ""
    for indent, name in re.findall(r"^ {4}(  )?([\w./]+)", section, re.MULTILINE):
        if not indent:
            folder = name
        paths.append(folder + name if indent else name)
    return paths


@pytest.mark.parametrize("name", tree())
def test_the_tree_is_there(name):
    assert (ROOT / name).exists()


@pytest.mark.parametrize("package", ["interp", "studies"])
def test_the_tree_has_every_file_and_folder_of_a_package(package):
    here = [path for path in (ROOT / package).iterdir() if path.name[0] != "_" and path.suffix in ("", ".py", ".md")]
    names = [f"{package}/{path.name}{'/' * path.is_dir()}" for path in here]
    assert set(names) <= set(tree())
