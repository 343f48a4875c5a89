"""A finished sweep as one value."""

from dataclasses import replace

import pandas as pd
import pytest

from interp.guard import Guard
from studies import layer_sweep
from studies.experiment.config import Config
from studies.experiment.experiment import load
from studies.guard_choice import anchors_of
from studies.guards.runner import GuardRun, _name
from studies.guards.sweep_grid import Grid
from studies.sweep import BEST, BEST_SINGLE, Sweep

GRID = Grid(layers=("every:3", "middle-to-last"), rules=("ablate", "substitute"))


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    return load(Config(scale="tiny", split="validation", out=str(tmp_path_factory.mktemp("swept"))))


@pytest.fixture(scope="module")
def sweep(material):
    return Sweep.run(material.config, material, GRID, top=3)


def test_its_guard_is_the_marked_configuration_with_its_numbers(sweep):
    row = layer_sweep.best_rows(sweep.table).iloc[0]
    assert (sweep.guard.layers[0], sweep.guard.rule) == (row.layer, row.rule)
    assert sweep.guard.model == "organism" and sweep.guard.validation == sweep.validation
    judged = layer_sweep.best_rows(sweep.table).query("judge == 'exact@1' and metric == 'refusal_rate'")
    assert sweep.validation["refusal"] == pytest.approx(judged.value.mean())
    assert sweep.validation["n"] == judged.n.sum() == 22


def test_finalists_carry_the_means_of_their_rows_and_one_of_them_is_the_best(sweep):
    finalists = sweep.finalists
    assert (finalists.mark == BEST).sum() == 1 and set(finalists.mark) <= {"", BEST, BEST_SINGLE}
    # The unguarded model stands beside them in the table.
    assert set(finalists["rule"]) <= {"ablate", "substitute"} and not finalists.layers.str.contains("nan").any()
    best = finalists[finalists.mark == BEST].iloc[0]
    told = (best.refused, best.harmless_refused, best.kl)
    assert told == tuple(sweep.validation[name] for name in ("refusal", "over_refusal", "kl"))
    assert best["rule"] == sweep.guard.rule
    layers = sweep.guard.layers
    assert best.layers == (f"{layers[0]}" if len(layers) == 1 else f"{layers[0]}-{layers[-1]}")


def test_it_is_the_same_from_a_table_on_disk(material, sweep, tmp_path):
    sweep.table.to_csv(tmp_path / "sweep.csv", index=False)
    again = Sweep.of(pd.read_csv(tmp_path / "sweep.csv"), material, GRID)
    assert again.guard.layers == sweep.guard.layers and again.layer == sweep.layer
    pd.testing.assert_frame_equal(again.finalists, sweep.finalists)


def test_a_window_that_is_best_stands_beside_the_best_single_layer(material, sweep):
    marked = sweep.table.copy()
    is_finalist = marked.setting == "finalists"
    window, single = (
        is_finalist & marked.last_layer.notna(),
        is_finalist & marked.last_layer.isna() & marked.layer.notna(),
    )
    marked.loc[is_finalist, "selection_rule"] = None
    of_rule = marked.rule == "substitute"
    marked.loc[window & of_rule, "selection_rule"] = "some_rule"
    layer = marked[single & of_rule].layer.iloc[0]
    marked.loc[single & of_rule & (marked.layer == layer), "selection_rule"] = f"some_rule{layer_sweep.SINGLE}"
    found = Sweep.of(marked, material, GRID)
    by_mark = found.finalists.set_index("mark").layers
    assert by_mark[BEST] == "4-7" and by_mark[BEST_SINGLE] == f"{layer:.0f}" and found.layer == layer


def test_the_saved_guard_loads_again_with_its_anchors_beside_it(material, sweep, tmp_path):
    sweep.save_guard(tmp_path, material)
    kept = Guard.from_pretrained(tmp_path, material.vlm)
    assert kept.layers == sweep.guard.layers and kept.validation == pytest.approx(sweep.validation)
    assert {query.text for query in anchors_of(tmp_path)} == {query.text for query in material.queries["anchors"]}


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
    assert "<script" not in replace(sweep, model="<script>")._repr_html_()


def test_what_a_guard_was_chosen_by_does_not_make_its_runs_others(sweep):
    known, bare = (GuardRun(guard, None) for guard in (sweep.guard, replace(sweep.guard, model="", validation={})))
    assert known.guard.validation and _name("prompts", 1, known, {}) == _name("prompts", 1, bare, {})
    other = GuardRun(replace(sweep.guard, strength=3.0), None)
    assert _name("prompts", 1, other, {}) != _name("prompts", 1, bare, {})
