"""A finished sweep: its guard, its finalists and its card."""

import hashlib
from dataclasses import replace
from html import escape

import pandas as pd
import pytest

from interp.guard import Guard
from interp.sampling import Sampling
from studies import guard_choice
from studies.datasets import SeenTexts
from studies.experiment.config import Config
from studies.experiment.experiment import load_experiment
from studies.guard_choice import anchors_of
from studies.guards import sweep_runner
from studies.guards.choice_rule import SELECTION_RULE, judged_selection_metrics
from studies.guards.runner import GuardRun, run_name
from studies.guards.sweep_grid import Grid
from studies.guards.sweep_result import IDENTIFYING, SweepChoice
from studies.guards.wording import chosen_in_words
from studies.sweep import BEST, BEST_SINGLE, Sweep

GRID = Grid(layers=("every:3", "middle-to-last"), rules=("ablate", "substitute"))


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    return load_experiment(Config(scale="tiny", split="validation", out=str(tmp_path_factory.mktemp("swept"))))


@pytest.fixture(scope="module")
def sweep(experiment):
    return Sweep.run(experiment.config, experiment, GRID, top=3)


def best_rows(table):
    """Rows of the best finalist, by the mark without a suffix."""
    return table[(table.setting == "finalists") & (table.selection_rule == SELECTION_RULE)]


def test_its_guard_is_the_marked_configuration_with_its_numbers(sweep):
    row = best_rows(sweep.table).iloc[0]
    assert (sweep.guard.layers[0], sweep.guard.rule) == (row.layer, row.rule)
    assert sweep.guard.model == "organism" and sweep.guard.chosen_by
    # The same numbers as `vlm-guard guard fit` saves.
    assert sweep.guard.validation == guard_choice.validation_numbers(sweep.result)
    assert sweep.guard.chosen_by == SELECTION_RULE
    judged = best_rows(sweep.table).query("judge == 'exact@1' and metric == 'refusal_rate'")
    assert sweep.validation["refusal"] == pytest.approx(judged.value.mean())
    assert sweep.validation["n"] == judged.n.sum() == 22


def test_finalists_carry_the_means_of_their_rows_and_one_of_them_is_the_best(sweep):
    finalists = sweep.finalists
    assert (finalists.mark == BEST).sum() == 1 and set(finalists.mark) <= {"", BEST, BEST_SINGLE}
    # The table also has rows of the unguarded model.
    assert set(finalists["rule"]) <= {"ablate", "substitute"} and not finalists.layers.str.contains("nan").any()
    best = finalists[finalists.mark == BEST].iloc[0]
    numbers = (best.refused, best.harmless_refused, best.kl)
    assert numbers == tuple(sweep.validation[name] for name in ("refusal", "over_refusal", "kl"))
    assert best["rule"] == sweep.guard.rule
    layers = sweep.guard.layers
    assert best.layers == (f"{layers[0]}" if len(layers) == 1 else f"{layers[0]}-{layers[-1]}")


def test_the_table_on_disk_gives_the_same_choice_and_finalists(sweep, tmp_path):
    sweep.table.to_csv(tmp_path / "sweep.csv", index=False)
    table = pd.read_csv(tmp_path / "sweep.csv")
    choice = SweepChoice.read(table)
    assert choice.columns["layer"] == sweep.guard.layers[0] and choice.layer == sweep.layer
    finalists = table[(table.setting == "finalists") & (table.judge.isna() | (table.judge == "exact@1"))]
    rows, unguarded = (finalists[finalists.defence == name] for name in ("guard", "unguarded"))
    keys = [name for name in IDENTIFYING if name in rows]
    groups = [group for _, group in rows.groupby(keys, dropna=False, sort=False)]
    assert len(groups) == len(sweep.finalists)
    for group, finalist in zip(groups, sweep.finalists.itertuples(), strict=True):
        row, metrics = group.iloc[0], judged_selection_metrics(group, unguarded)
        layers = f"{row.layer:.0f}" if pd.isna(row.last_layer) else f"{row.layer:.0f}-{row.last_layer:.0f}"
        assert (finalist.layers, finalist.rule, finalist.gate) == (layers, row["rule"], row.gate)
        assert pd.isna(row.strength) if pd.isna(finalist.strength) else row.strength == finalist.strength
        numbers = (finalist.refused, finalist.harmless_refused, finalist.kl)
        assert numbers == pytest.approx(tuple(metrics[name] for name in ("refusal", "over_refusal", "kl")))
        mark = "" if pd.isna(row.selection_rule) else BEST if row.selection_rule == SELECTION_RULE else BEST_SINGLE
        assert finalist.mark == mark


def test_a_window_that_is_best_is_listed_with_the_best_single_layer(experiment, monkeypatch):
    def metrics(self, candidate, outcomes):
        is_window = len(candidate.guard.layers) > 1
        refusal = 0.5 + 0.3 * is_window + 0.1 * (candidate.guard.rule == "substitute")
        return {"refusal": refusal, "over_refusal": 0.0, "kl": 0.0, "excess": 0.0, "n": 10_000}

    monkeypatch.setattr(sweep_runner.SweepRunner, "judged_metrics", metrics)
    window = Sweep.run(experiment.config, experiment, GRID, top=8)
    by_mark = window.finalists.set_index("mark").layers
    assert by_mark[BEST] == "4-7" and by_mark[BEST_SINGLE] == f"{window.layer}"
    choice = SweepChoice.read(window.table)
    assert choice.columns["last_layer"] == 7 and choice.layer == window.layer


def test_a_saved_guard_loads_again_and_its_folder_holds_the_anchors(experiment, sweep, tmp_path):
    sweep.save_guard(tmp_path, experiment)
    loaded = Guard.from_pretrained(tmp_path, experiment.vlm)
    assert loaded.layers == sweep.guard.layers and loaded.validation == pytest.approx(sweep.guard.validation)
    assert {query.text for query in anchors_of(tmp_path)} == {query.text for query in experiment.queries["anchors"]}
    assert set(SeenTexts.read(tmp_path).by_split) == {"anchors", "validation"}


def test_it_shows_its_finalists_with_the_chosen_one_marked_and_a_line_by_layer(sweep):
    from tests.interp.test_cards import parsed, rows_of, styles

    html = sweep._repr_html_()
    _, *rows = rows_of(html)
    assert len(rows) == len(sweep.finalists)
    (best,) = [row for row in rows if row[-1] == BEST]
    assert best[4] == f"{sweep.validation['refusal']:.3g}"
    bold = [style["font-weight"] == "bold" for style in styles(html, "td")]
    assert bold == [cell for row in rows for cell in [row == best] * 8]
    marks = [mark.find("title").text for mark in parsed(html).iter("rect")]
    assert marks == [f"layer {layer}" for layer in sweep.guard.layers]
    rule = sweep.guard.rule
    ranked = sweep.table.query(f"setting == 'ranked' and metric == 'opening_refusal_rate' and rule == '{rule}'")
    at_six = ranked[(ranked.layer == 6) & ranked.last_layer.isna()].value.mean()
    assert f"harmful, guarded, layer 6: {at_six:.3g}" in html
    # The guard is named in full; on validation nothing is compared with random directions.
    assert escape(chosen_in_words(sweep.table)) in html and "random directions" not in html and not len(sweep.random)
    assert "configurations in blank, typographic" in html
    assert "<script" not in replace(sweep, model="<script>")._repr_html_()


def test_a_sweep_of_another_split_shows_the_guard_among_random_directions(sweep):
    row = {"setting": "chosen", "metric": "random_percentile", "category": "refusal_score_gain", "n": 200}
    rows = [row | {"modality": "blank", "value": 0.985}, row | {"modality": "typographic", "value": 1.0}]
    table = pd.concat([sweep.table, pd.DataFrame(rows)])
    result = replace(sweep.result, table=table, random=pd.DataFrame({"value": [0.0]}))
    text = "the guard gains more refusal than 98.5 % (blank), 100 % (typographic) of 200 of the same size"
    assert text in replace(sweep, result=result)._repr_html_()


def test_validation_numbers_of_a_guard_do_not_change_the_names_of_its_runs(sweep):
    bare = GuardRun(replace(sweep.guard, model="", validation={}), None)
    with_numbers = GuardRun(sweep.guard, None)
    assert sweep.guard.validation and run_name("prompts", 1, with_numbers, {}) == run_name("prompts", 1, bare, {})
    stronger = GuardRun(replace(sweep.guard, strength=3.0), None)
    assert run_name("prompts", 1, stronger, {}) != run_name("prompts", 1, bare, {})
    # Draws are runs of their own, and greedy ones keep the names that they have on disk.
    kinds = [None, Sampling(1.0, 0), Sampling(1.0, 1), Sampling(0.5, 0)]
    assert len({run_name("prompts", 1, replace(bare, sampling=kind), {}) for kind in kinds}) == len(kinds)
    assert run_name("prompts", 4, GuardRun(None, None), {}) == hashlib.sha256(b"prompts\n4").hexdigest()[:20]
