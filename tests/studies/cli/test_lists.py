"""Lists of benchmarks, judges and defences; names that are misspelt."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from studies.bookkeeping.suggestions import did_you_mean
from studies.cli.app import app
from studies.cli.lists import DEFENCES, JUDGES
from studies.datasets.catalogue import FILES_OF
from studies.datasets.registry import ENTRIES, entry_named
from studies.defences.benchmark_sets import BenchmarkFile, BenchmarkOptions
from studies.defences.lineup import CONE, GUARDS, RELATED_METHODS, UNFITTED, check_names
from studies.experiment.config import ConfigError
from studies.judges import RUBRICS
from studies.judges.by_name import CLASSIFIER, rule_judges


def printed(*arguments):
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.output.strip().splitlines()


def test_every_benchmark_has_a_line_with_its_source_licence_and_files():
    lines = printed("data", "list")
    assert set(FILES_OF) == {entry.name for entry in ENTRIES} and len(lines) == len(ENTRIES)
    for line, entry in zip(lines, ENTRIES, strict=True):
        assert line.startswith(f"{entry.name} ") and all(part in line for part in FILES_OF[entry.name])
        assert entry.source.url in line and (entry.name == "own" or entry.source.licence in line)


def test_every_judge_and_every_defence_has_a_line():
    judges = {*rule_judges(), "exact", CLASSIFIER, *(name.split("@")[0] for name in RUBRICS)}
    assert judges <= set(JUDGES) and set(DEFENCES) == {*UNFITTED, *GUARDS, *RELATED_METHODS, CONE}
    for lines, listed in ((printed("judges", "list"), JUDGES), (printed("defences", "list"), DEFENCES)):
        assert [line.split()[0] for line in lines] == list(listed)
        assert all(line.count(" | ") == 3 for line in lines)


@pytest.mark.parametrize(
    ("name", "meant"), [("XTest", "XSTest"), ("figstepp", "FigStep"), ("Mossbnch", "MOSSBench"), ("JBBB", "JBB")]
)
def test_a_misspelt_benchmark_gets_a_suggestion(name, meant):
    with pytest.raises(ValueError, match=f"did you mean '{meant}'"):
        entry_named(name)


def test_misspelt_defences_modalities_and_attacks_get_suggestions():
    with pytest.raises(ConfigError, match=r"'self_remainder' does not exist here; .* did you mean 'self_reminder'\?"):
        check_names(["self_remainder"], guard=False, anchors=False)
    files = [BenchmarkFile("a.csv")]
    with pytest.raises(ConfigError, match=r"did you mean 'typographic'\?"):
        BenchmarkOptions.of(files, modalities=["typografic"])
    with pytest.raises(ConfigError, match=r"did you mean 'role_play'\?"):
        BenchmarkOptions.of(files, attacks=["roleplay"])


def test_nothing_is_suggested_for_a_name_that_is_not_near():
    assert did_you_mean("zebra", ["text", "blank"]) == "" and did_you_mean("Text", ["text"]).endswith("'text'?")


def test_data_files_are_read_without_the_libraries_that_run_models():
    """They take seconds to import, and more memory than a large file."""
    code = (
        "import sys; import studies.cli.app, studies.cli.data, studies.datasets, studies.organism.language; "
        "print(sorted({'torch', 'transformers', 'nnsight'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_function_trace_is_found_after_the_module_of_its_name():
    code = "import interp.trace; from interp import trace, Query, VLM; print(trace.__name__, callable(trace))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "trace True"
