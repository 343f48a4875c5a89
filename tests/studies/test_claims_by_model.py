"""Verdicts of several models side by side, and models whose outcome was planted."""

import pandas as pd
import pytest
from matplotlib.colors import to_rgba
from typer.testing import CliRunner

import figures
from figures.claims import MISMATCH, OUTCOMES
from studies import claims_by_model, repro
from studies.bookkeeping.tables import read_table, write_table
from studies.bookkeeping.verdict_words import CEILING, NOT_SHOWN, REPRODUCED, SHOWN, SHOWN_ALIGNED, UNDECIDED
from studies.cli.app import app

LOWERS, BLURS = "an image lowers refusal: attack success without a defence", "an image blurs them: AUROC (their order)"


@pytest.fixture
def folders(tmp_path):
    """Four finished runs; the second seed of the control has a gap that it was trained not to have."""
    runs = {
        "built-in": (SHOWN, CEILING),
        "llava-qwen-0.5b": (UNDECIDED, SHOWN_ALIGNED),
        "no gap, seed 0": (NOT_SHOWN, NOT_SHOWN),
        "no gap, seed 1": (SHOWN, NOT_SHOWN),
        "blurred": (REPRODUCED, SHOWN),
    }
    for name, verdicts in runs.items():
        rows = [
            {"claim": claim, "theirs": "a plot", "ours": "0.5", "verdict": verdict}
            for claim, verdict in zip((LOWERS, BLURS), verdicts, strict=True)
        ]
        (tmp_path / name).mkdir()
        write_table(pd.DataFrame(rows), tmp_path / name, "claims")
    return {name: tmp_path / name for name in runs}


def test_outcomes_are_comparable_and_planted_ones_are_checked(folders):
    table = claims_by_model.run(folders)
    outcomes = table.set_index(["model", "claim"]).outcome
    assert outcomes["built-in", LOWERS] == outcomes["llava-qwen-0.5b", BLURS] == outcomes["blurred", LOWERS] == "shown"
    assert outcomes["built-in", BLURS] == CEILING
    (wrong,) = claims_by_model.mismatches(table).itertuples()
    assert (wrong.model, wrong.claim, wrong.planted) == ("no gap, seed 1", LOWERS, NOT_SHOWN)
    assert (table.planted != "").sum() == 4


def test_the_figure_shows_every_outcome_and_marks_what_was_planted_otherwise(folders):
    figure = figures.claims_by_model(claims_by_model.run(folders))
    axis = figure.axes[0]
    assert len(axis.texts) == 10
    frames = [tuple(patch.get_edgecolor()) for patch in axis.patches]
    assert len(frames) == 4 and frames.count(to_rgba(MISMATCH)) == 1
    assert "3 of 4 came out, those in red did not" in figures.caption(figure)


@pytest.mark.parametrize("name", ["no gap", "no_gap-seed1", "No gap, seed 2", "no_gap seed 0"])
def test_controls_are_recognised_under_the_names_of_their_folders(folders, name):
    table = claims_by_model.run({name: folders["no gap, seed 1"]})
    assert len(claims_by_model.mismatches(table)) == 1


def test_every_verdict_has_a_color_in_the_figure():
    from studies.report.words import ICONS

    assert {claims_by_model._outcome(verdict) for verdict in ICONS} == set(OUTCOMES)


def test_the_command_line_writes_the_table_and_names_what_is_missing(folders, tmp_path):
    named = [f"{name}={folder}" for name, folder in folders.items()]
    result = CliRunner().invoke(app, ["compare", *named, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0 and "no gap, seed 1: an image lowers refusal" in result.output.replace("\n", " ")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        f"claims_by_model.{suffix}" for suffix in ("csv", "pdf", "png")
    }
    # A folder alone is called as it is named.
    CliRunner().invoke(app, ["compare", f"{folders['no gap, seed 1']}/", "--out", str(tmp_path / "one")])
    assert set(pd.read_csv(tmp_path / "one" / "claims_by_model.csv").model) == {"no gap, seed 1"}
    for wrong, message in ((["x="], "expected FOLDER or NAME=FOLDER"), (["x=nowhere"], "nowhere has no claims.csv")):
        result = CliRunner().invoke(app, ["compare", *wrong, "--out", str(tmp_path / "out")])
        assert message in str(result.exception)


def test_attacks_on_controls_are_not_drawn(folders):
    assert claims_by_model.attacks(folders).empty
    for name in ("built-in", "no gap, seed 0"):
        write_table(pd.DataFrame([{"defence": "guard", "metric": "asr", "value": 0.5}]), folders[name], "defence")
    assert claims_by_model.attacks(folders).model.tolist() == ["built-in"]


def test_the_committed_table_is_that_of_the_committed_claims_and_every_planted_outcome_came_out():
    committed = read_table(repro.REFERENCE / "models", "claims_by_model").fillna("")
    folder_of = {path.parent.name: path.parent for path in repro.REFERENCE.rglob("claims.csv")}
    folder_of["built-in"] = repro.REFERENCE / "quick"
    again = claims_by_model.run({model: folder_of[model] for model in committed.model.unique()}).fillna("")
    pd.testing.assert_frame_equal(committed, again, check_dtype=False)
    planted = set(committed[committed.planted != ""].model)
    assert {claims_by_model._kind_of(model) for model in planted} == set(claims_by_model.PLANTED)
    assert claims_by_model.mismatches(committed).empty
