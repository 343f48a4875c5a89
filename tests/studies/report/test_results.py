"""Results that don't belong together are refused before they are used, and figures and tables are written."""

import io
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from studies.bookkeeping.provenance import write_provenance
from studies.cli.figures import run as run_figures
from studies.report import gallery
from studies.report.gallery import FIGURES, DrawnFigure, OmittedFigure, draw_figures
from studies.report.results import STUDIES, Results, ResultsError

REFERENCE = Path(__file__).parents[3] / "results" / "reference"


@pytest.fixture
def folder(tmp_path):
    """Two tables of one run, in a folder."""
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in ("separability", "layer_selection"):
        shutil.copy(REFERENCE / "quick" / f"{name}.csv", folder)
    write_provenance(folder, {"model": "1234"}, 0, [folder / "separability.csv", folder / "layer_selection.csv"])
    return folder


def rename_model(folder: Path, name: str, model: str) -> None:
    path = folder / f"{name}.csv"
    pd.read_csv(path, low_memory=False).assign(model=model).to_csv(path, index=False)


def test_tables_are_read_by_name_with_their_model(folder):
    results = Results.of(folder)
    assert set(results.tables) == {"separability", "layer_selection"} and results.model == "organism"
    assert "defence" in results.missing and "separability" not in results.missing and results.layer is None
    assert results.changed == ()
    with pytest.raises(
        ResultsError, match=r"defence.csv is in none of .*mine; run `vlm-guard repro .* vlm-guard defend"
    ):
        results["defence"]


def test_an_invalid_folder_says_what_was_expected(tmp_path):
    with pytest.raises(
        ResultsError, match="does not exist; expected a folder of results, as written by `vlm-guard repro"
    ):
        Results.of(tmp_path / "nowhere")
    (tmp_path / "file.csv").write_text("a\n1\n")
    with pytest.raises(ResultsError, match="file.csv is a file; expected a folder"):
        Results.of(tmp_path / "file.csv")
    with pytest.raises(ResultsError, match="contains no results; expected some of claims.csv"):
        Results.of(tmp_path)


def test_two_models_in_one_folder_are_named_with_their_tables(folder):
    rename_model(folder, "layer_selection", "llava-1.5-7b-hf")
    with pytest.raises(
        ResultsError, match=r"more than one model: .*'organism' in .*separability.csv.*'llava-1.5-7b-hf' in"
    ):
        Results.of(folder)


def test_two_models_of_one_name_are_distinguished_by_their_weights(folder):
    write_provenance(folder, {"weights": "5678 bfloat16"}, 0, [folder / "separability.csv"])
    with pytest.raises(ResultsError, match=r"more than one set of weights .*'1234' in .*layer_selection.csv"):
        Results.of(folder)


def test_the_same_weights_in_another_precision_are_the_same(folder):
    write_provenance(folder, {"weights": "1234 bfloat16"}, 0, [folder / "separability.csv"])
    assert Results.of(folder).model == "organism"


def test_versions_of_the_toolkit_are_not_mixed(folder):
    provenance = json.loads((folder / "provenance.json").read_text())
    provenance["tables"]["separability.csv"]["versions"]["vlm-guard"] = "9.9"
    (folder / "provenance.json").write_text(json.dumps(provenance))
    with pytest.raises(ResultsError, match=r"more than one version of vlm-guard: .*'9.9' in .*separability.csv"):
        Results.of(folder)


def test_the_same_table_twice_is_refused(folder):
    with pytest.raises(ResultsError, match="separability.csv are the same table twice"):
        Results.of(folder, REFERENCE / "quick")


def test_tables_changed_after_their_run_are_detected(folder):
    path = folder / "separability.csv"
    path.write_text(path.read_text().replace("0.5", "0.6", 1))
    assert Results.of(folder).changed == (path,)


@pytest.mark.parametrize("content, message", [("", "can't be read as a table"), ("model,value\n", "has no rows")])
def test_damaged_tables_are_named(folder, content, message):
    (folder / "separability.csv").write_text(content)
    with pytest.raises(ResultsError, match=f"separability.csv {message}.*write it again with"):
        Results.of(folder)


def test_a_later_study_keeps_the_entries_of_earlier_tables(folder):
    shutil.copy(REFERENCE / "quick" / "readings.csv", folder)
    write_provenance(folder, {"model": "1234"}, 1, [folder / "readings.csv"])
    entries = json.loads((folder / "provenance.json").read_text())["tables"]
    assert set(entries) == {"separability.csv", "layer_selection.csv", "readings.csv"}
    assert entries["separability.csv"]["seed"] == 0 and entries["readings.csv"]["seed"] == 1


def test_a_sweep_of_windows_alone_has_no_single_layer(folder):
    swept = pd.read_csv(REFERENCE / "quick" / "layer_sweep.csv", low_memory=False)
    swept.assign(selection_rule=None).to_csv(folder / "layer_sweep.csv", index=False)
    results = Results.of(folder)
    assert results.layer is None and results.guard_layer is None
    assert all(isinstance(entry, DrawnFigure | OmittedFigure) for entry in draw_figures(results))


def test_the_guard_layer_is_that_of_the_answers_on_the_page(folder):
    shutil.copy(REFERENCE / "quick" / "changes.csv", folder)
    pd.read_csv(folder / "changes.csv").assign(layer=4).to_csv(folder / "changes.csv", index=False)
    shutil.copy(REFERENCE / "quick" / "layer_sweep.csv", folder)
    results = Results.of(folder)
    assert (results.layer, results.guard_layer) == (6, 4)


def test_the_model_is_not_that_of_the_bench():
    assert Results.of(REFERENCE / "bench").model == "unknown"
    assert Results.of(REFERENCE / "bench", REFERENCE / "quick").model == "organism"


def test_columns_that_the_page_reads_are_named(folder):
    (folder / "claims.csv").write_text("claim,ours\na,b\n")
    with pytest.raises(ResultsError, match="claims.csv lacks the columns theirs, verdict; write it again"):
        Results.of(folder)


@pytest.mark.parametrize(
    ("name", "column"),
    [
        *((name, "n") for name in ("probe_auroc", "degradation", "separation", "transfer")),
        *((name, column) for name in ("layer_sweep", "pareto") for column in ("ci_low", "ci_high")),
        *(("readings", column) for column in ("category", "ci_high")),
        ("attribution", "direction_layer"),
        *(("defence", column) for column in ("reference", "n")),
    ],
)
def test_a_column_that_a_figure_lacks_is_named_in_the_reason(name, column):
    results = Results.of(REFERENCE / "quick")
    spec = next(spec for spec in FIGURES if spec.name == name)
    with pytest.raises(ValueError, match=f"missing: .*{column}"):
        spec.draw(results[spec.table].drop(columns=column), results)


def test_what_can_be_drawn_is_drawn_and_the_rest_says_what_to_run(folder):
    (folder / "judges.csv").write_text("setting,metric\nrefusal,kappa\n")
    entries = {entry.name: entry for entry in draw_figures(Results.of(folder))}
    assert set(entries) == {spec.name for spec in FIGURES}
    drawn = {name for name, entry in entries.items() if isinstance(entry, DrawnFigure)}
    assert drawn == {"probe_auroc", "degradation", "separation", "transfer", "layer_selection"}
    assert all("n = " in entries[name].caption for name in drawn)
    assert isinstance(entries["defence"], OmittedFigure)
    assert entries["defence"].reason == f"defence.csv is missing; run `{STUDIES['defence']}`"
    assert "missing: judge" in entries["judge_agreement"].reason


def test_the_gallery_writes_figures_captions_and_tables_and_prints_what_it_left_out(folder, tmp_path):
    console = Console(record=True, width=200, file=io.StringIO())
    run_figures([folder], tmp_path / "out", console)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        *(
            f"{name}.{end}"
            for name in ("probe_auroc", "degradation", "separation", "transfer", "layer_selection")
            for end in ("pdf", "png")
        ),
        *(f"{name}.{end}" for name in ("auroc", "selection_rules") for end in ("tex", "md")),
        "captions.md",
    }
    output = console.export_text()
    assert "left out: defence: defence.csv is missing; run `vlm-guard repro" in output and "left out: claims" in output
    assert "AUROC of text minus that of each modality" in (tmp_path / "out" / "captions.md").read_text()


def test_every_table_of_the_reference_makes_a_table_for_papers(tmp_path):
    files, omitted = gallery.save_tables(Results.of(REFERENCE / "quick"), tmp_path)
    assert not omitted and len(files) == 2 * len(gallery.PAPER_TABLES)
