"""The code on the pages of `docs/` runs, the names on them exist, and the site builds without a warning."""

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from functools import cache, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from threading import Thread

import pytest
import typer
import yaml

from studies.presets.plan import REQUEST_TOKENS, memory_of
from studies.presets.preset import read_preset

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {str(path.relative_to(DOCS)): path.read_text(encoding="utf-8") for path in sorted(DOCS.rglob("*.md"))}
TESTED_ELSEWHERE = {"harnesses.md": 4} | {
    f"how-to/{name}.md": 1 for name in ("benchmarks", "guards", "probes_and_sweeps", "traces")
}
"""Pages tested in `test_harnesses.py` and `test_readme.py`, with the number of their blocks."""
NOT_RUN = {"how-to/hardware.md": 1, "how-to/ndif.md": 1}
"""Number of blocks whose title says why they are not run."""
BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
CHANGING = [name for name, text in PAGES.items() if "```diff\n" in text]
"""Pages that show changes to the toolkit; their code is run on a copy with these changes."""


def blocks(name: str, language: str) -> list[str]:
    return [code for kind, title, code in BLOCK.findall(PAGES[name]) if kind == language and "not run" not in title]


def with_python() -> list[str]:
    return [name for name in PAGES if blocks(name, "python") and name not in TESTED_ELSEWHERE]


def test_the_blocks_that_are_not_run_are_counted_and_say_why():
    titles = {
        name: [title for kind, title, _ in BLOCK.findall(text) if "not run" in title] for name, text in PAGES.items()
    }
    assert {name: len(texts) for name, texts in titles.items() if texts} == NOT_RUN
    assert all(
        re.search(r'title="not run by the tests: .{10,}"', title) for texts in titles.values() for title in texts
    )
    assert {name: len(blocks(name, "python")) for name in TESTED_ELSEWHERE} == TESTED_ELSEWHERE


def test_every_python_block_is_found_by_the_tests():
    """A block with another language name, or an indented one, would not be found."""
    for name, text in PAGES.items():
        kinds = {kind for kind, _, _ in BLOCK.findall(text)}
        assert kinds <= {"python", "sh", "diff", "text", "bibtex"}, name
        assert not re.search(r"^[ \t]+```", text, re.MULTILINE), name
        assert text.count("```") == 2 * len(BLOCK.findall(text)), name


# --- the code runs ---------------------------------------------------------------------------------------------


def run_page(name: str, names: dict) -> None:
    """Run every Python block in turn, and compare its output with a text block right after it."""
    page = [(kind, code) for kind, title, code in BLOCK.findall(PAGES[name]) if "not run" not in title]
    following = [*page[1:], ("", "")]
    for (kind, code), (next_kind, expected) in zip(page, following, strict=True):
        if kind != "python":
            continue
        with redirect_stdout(StringIO()) as printed:
            exec(compile(code, str(DOCS / name), "exec"), names)
        if next_kind == "text" and f"{code}```\n\n```text\n" in PAGES[name]:
            assert printed.getvalue() == expected


IN_OWN_PROCESS = ("how-to/ray.md", *CHANGING)
"""Pages run in their own process, because Ray leaves sockets open and a changed toolkit has to be imported again."""


SLOW = ("how-to/attacks.md",)
"""Pages that run a sweep before their own subject."""


def pages():
    for name in with_python():
        if name not in IN_OWN_PROCESS:
            yield pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else [])


@pytest.mark.parametrize("name", list(pages()))
def test_a_page_runs_from_top_to_bottom(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_page(name, {})


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("ray"), reason="extra `distributed`")
def test_the_page_on_ray_runs(tmp_path):
    run_in_process(["how-to/ray.md"], ROOT, tmp_path)


def test_changes_shown_on_pages_apply_and_their_tests_and_code_run(tmp_path):
    run_in_process(CHANGING, changed_copy(CHANGING, tmp_path / "copy"), tmp_path)


def changed_copy(names: Sequence[str], copy: Path) -> Path:
    """Copy the repository, without the built-in model's weights, and apply the changes of the pages."""
    for folder in ("interp", "probes", "studies", "figures", "tests", "docs"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("model", "__pycache__"))
    (copy / "studies" / "organism" / "model").symlink_to(ROOT / "studies" / "organism" / "model")
    shutil.copy(ROOT / "pyproject.toml", copy)
    # `git apply` must not find a repository above the folder that the tests run in.
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(copy.parent)}
    for name in names:
        for i, change in enumerate(blocks(name, "diff"), 1):
            (copy / "change.diff").write_text(change, encoding="utf-8")
            process = subprocess.run(
                ["git", "apply", "change.diff"], cwd=copy, env=environment, capture_output=True, text=True
            )
            assert process.returncode == 0, f"change {i} of {name} no longer applies to the code: {process.stderr}"
    return copy


def run_in_process(names: Sequence[str], root: Path, folder: Path) -> None:
    """Run the tests that the pages call and then the Python of the pages, in another process."""
    called = [shlex.split(line)[3:] for name in names for line in shell_lines(name) if line.startswith("python -m py")]
    files, chosen = [file for file, *_ in called], [expression for _, _, expression in called]
    program = ["import os, beartype, pytest", f"os.chdir({str(root)!r})"]
    if called:
        arguments = ["-v", *dict.fromkeys(files), "-k", " or ".join(f"({expression})" for expression in chosen)]
        program.append(f"assert pytest.main({arguments!r}) == 0")
    program += ["from tests.test_docs import run_page", f"os.chdir({str(folder)!r})"]
    program += [f"run_page({name!r}, {{}})" for name in names]
    # One thread: for models this small, threads cost more than they gain.
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        [sys.executable, "-c", "\n".join(program)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=3600,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    for expression in chosen:
        assert re.search(rf"{expression.split()[0]}.* PASSED", process.stdout), expression


def test_the_computed_memory_is_that_of_the_plan():
    preset = read_preset("llava-1.5-7b")
    shape, new = preset.model.shape, preset.answers[0].max_new_tokens
    for n in (1, 16):
        memory = memory_of(shape, preset.model.dtype, n, REQUEST_TOKENS + shape.picture_tokens, new)
        weights, cache, peak = (f"{size / 1e9:.1f} GB" for size in (memory.weights, memory.cache, memory.peak))
        assert f"| {n} | {weights} | {cache} | {peak} |" in PAGES["how-to/hardware.md"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"{weights} of weights" in readme and f"{peak} with batches of 16" in readme


# --- the names exist -------------------------------------------------------------------------------------------


def shell_lines(name: str) -> list[str]:
    """Return the commands of a page, with continued lines joined and without comments."""
    text = "".join(blocks(name, "sh")).replace("\\\n", " ")
    inline = re.findall(r"`(vlm-guard [^`]*--[^`]+)`", PAGES[name])
    return [line.partition(" #")[0].strip() for line in text.splitlines() if line.strip()] + inline


COMMANDS = [(name, line) for name in PAGES for line in shell_lines(name) if line.startswith("vlm-guard")]


@cache
def command_line():
    from studies.cli.app import app

    return typer.main.get_command(app)


@pytest.mark.parametrize(("name", "line"), COMMANDS, ids=[line for _, line in COMMANDS])
def test_a_command_and_its_options_exist(name, line, monkeypatch):
    # Readers have the files that commands name.
    monkeypatch.setattr(Path, "exists", lambda path: True)
    words, command = shlex.split(line)[1:], command_line()
    while words and hasattr(command, "commands"):
        if words[0] in ("--help", "--version", "--install-completion"):
            return
        assert words[0] in command.commands, f"{name}: {line}"
        command = command.commands[words.pop(0)]
    assert command.make_context(line, words).params is not None


def test_there_are_commands_to_check():
    assert len(COMMANDS) > 20


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_to_files_that_exist(name):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", BLOCK.sub("", PAGES[name])):
        assert target.startswith("https://") or (DOCS / name).parent.joinpath(target).is_file(), target


@pytest.mark.parametrize("name", PAGES)
def test_folders_and_files_named_in_code_exist(name):
    for place in re.findall(r"`((?:interp|probes|studies|figures|tests|results/reference)/[\w./-]+)`", PAGES[name]):
        assert (ROOT / place).exists(), place


def test_the_citation_names_the_project_and_the_methods_authors():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["authors"] == [{"name": "vlm-guard contributors"}] and cited["cff-version"] == "1.2.0"
    (method,) = cited["references"]
    assert [author["family-names"] for author in method["authors"]] == ["Liu", "Wang", "Xiao", "Chen"]
    assert method["url"].endswith("2502.10486")
    assert f'version = "{cited["version"]}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


# --- the site --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocs", reason="extra `docs`")
    folder = tmp_path_factory.mktemp("site")
    # Without this, the theme prints an advertisement on every build.
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=3600)
    assert process.returncode == 0 and "WARNING" not in process.stderr, process.stderr
    return folder


def test_the_site_builds_without_a_warning_and_has_every_page(site):
    for name in PAGES:
        place = site / name if name == "index.md" else site / name.removesuffix(".md") / "index.md"
        assert place.with_suffix(".html").is_file(), name


def test_the_site_needs_no_network(site):
    """Links may lead elsewhere; scripts, styles, fonts and pictures may not."""
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r'<(?:script|img|iframe|source)[^>]+src="(?:https?:)?//[^"]+"', text), page
        assert not re.findall(r'<link[^>]+rel="(?:stylesheet|preconnect|icon)"[^>]+href="(?:https?:)?//', text), page


@pytest.mark.parametrize("package", ["interp", "probes", "figures", "studies.datasets", "studies.judges"])
def test_the_reference_has_every_public_name_of_a_package(site, package):
    # Constants that are assigned several at a time have no docstring of their own.
    names = {name for name in importlib.import_module(package).__all__ if not name.isupper()}
    pages = "".join(path.read_text(encoding="utf-8") for path in site.glob("reference/*/index.html"))
    described = re.findall(rf'id="{re.escape(package)}\.[\w.]*?(\w+)"', pages)
    assert names - set(described) == set()


def test_the_reference_opens_with_the_four_names_that_carry_the_work(site):
    page = (site / "reference" / "interp" / "index.html").read_text(encoding="utf-8")
    names = ("vlm.VLM", "trace.trace", "directions.SafetyDirection", "guard.Guard")
    places = [page.index(f'<h2 id="interp.{name}"') for name in names]
    assert places == sorted(places)


def test_formulas_are_mathml_and_none_is_left_as_source(site):
    method = (site / "explanation" / "method" / "index.html").read_text(encoding="utf-8")
    assert method.count("<math ") > 10
    assert [page for page in site.rglob("*.html") if "arithmatex" in page.read_text(encoding="utf-8")] == []


def test_guides_are_found_before_names(site):
    entries = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))["docs"]
    weights = [(entry["location"].startswith("reference/"), entry.get("boost", 1)) for entry in entries]
    assert max(weight for is_name, weight in weights if is_name) < min(
        weight for is_name, weight in weights if not is_name
    )


def test_the_reference_has_every_command(site):
    page = (site / "reference" / "cli" / "index.html").read_text(encoding="utf-8")
    for word, command in command_line().commands.items():
        for name in [f"{word} {inner}" for inner in getattr(command, "commands", ())] or [word]:
            assert f'id="vlm-guard-{name.replace(" ", "-")}"' in page


# --- the site, in a browser ------------------------------------------------------------------------------------

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def address(site):
    """The address of the site, served from this machine: its search does not run from files."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(site))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def phone(address):
    """A page as wide as a phone, with the URLs that it requests."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on the path: apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 800})
        requests = []
        page.on("request", lambda request: requests.append(request.url))
        yield page, requests
        browser.close()


@pytest.mark.parametrize("name", PAGES)
def test_on_a_phone_a_page_does_not_scroll_sideways_and_asks_nobody_else(phone, address, name):
    page, requests = phone
    requests.clear()
    page.goto(f"{address}/{name.removesuffix('index.md').removesuffix('.md')}")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    code = "[...document.querySelectorAll('pre > code')].every(block => block.scrollWidth <= block.clientWidth + 1)"
    assert page.evaluate(code)
    assert [url for url in requests if not url.startswith((address, "data:", "blob:"))] == []


FOUND = {
    "image patches": "how-to/image_patches/",
    "batch single": "how-to/batches/",
    "last token": "how-to/which_token/",
    "threshold": "how-to/threshold/",
    "save a guard": "how-to/guards/",
    "gpu": "how-to/hardware/",
}
"""What a user types, and the guide that comes first."""


@pytest.mark.parametrize("words", FOUND)
def test_a_search_finds_the_guide_before_the_names(phone, address, words):
    page, _ = phone
    page.goto(f"{address}/?q={words.replace(' ', '+')}")
    first = page.wait_for_selector(".md-search-result__item a", state="attached", timeout=60_000)
    assert first.get_attribute("href").partition("#")[0].partition("?")[0].endswith(FOUND[words])
