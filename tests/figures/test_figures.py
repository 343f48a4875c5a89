"""Figures show the numbers of their tables."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PathCollection

import figures
from figures.by_model import LEAST_BAR


def auroc_rows():
    rows = []
    for modality, base in (("text", 0.95), ("blank", 0.7)):
        for layer in range(3):
            number = base + 0.01 * layer
            columns = {
                "modality": modality,
                "layer": layer,
                "value": number,
                "ci_low": number - 0.1,
                "ci_high": number + 0.04,
            }
            columns |= {
                "split": "test",
                "site": "resid_post",
                "token": "last",
                "metric": "auroc",
                "control": None,
                "n": 60,
            }
            own = columns | {"probe": "logistic", "setting": "folds", "fit_modality": modality}
            rows += [
                own,
                own | {"control": "shuffled_labels", "value": 0.5},
                own | {"fit_modality": "text" if modality == "blank" else "blank", "value": 0.6},
                own | {"split": "train", "value": 0.1},
                own | {"token": "instruction", "value": 0.2},
                own | {"metric": "accuracy", "value": 0.3},
                columns | {"probe": "logistic", "setting": "anchors", "fit_modality": "text"},
                columns | {"probe": "ssd", "setting": "anchors", "fit_modality": "text"},
            ]
    words = {"probe": "bag_of_words", "setting": "folds", "modality": "text", "metric": "auroc", "value": 0.55}
    words |= {"split": "test", "fit_modality": "text"}
    noise = words | {"probe": "random_features", "value": 0.51}
    return pd.DataFrame([*rows, words, words | {"setting": "anchors", "value": 0.9}, noise])


def test_probe_auroc_draws_each_value_and_interval():
    figure = figures.probe_auroc(auroc_rows())
    assert [axis.get_title().replace("\n", " ") for axis in figure.axes] == [
        "logistic probe, within the modality",
        "logistic probe, fitted on anchors' text",
        "coordinate on the SSD",
    ]
    for axis in figure.axes:
        lines = {line.get_label(): line.get_ydata() for line in axis.lines}
        np.testing.assert_allclose(lines["text only"], [0.95, 0.96, 0.97])
        np.testing.assert_allclose(lines["blank picture"], [0.7, 0.71, 0.72])
        band = axis.collections[1].get_paths()[0].vertices[:, 1]
        assert band.min() == pytest.approx(0.6) and band.max() == pytest.approx(0.76)
    controls = {line.get_label(): line.get_ydata() for line in figure.axes[0].lines}
    assert list(controls["bag of words"]) == [0.55, 0.55] and set(controls["shuffled labels"]) == {0.5}
    assert list(controls["noise as wide as the states"]) == [0.51, 0.51]
    # Panels fitted on anchors are compared with words fitted on anchors.
    for axis in figure.axes[1:]:
        assert list(next(line for line in axis.lines if line.get_label() == "bag of words").get_ydata()) == [0.9, 0.9]


def test_transfer_has_the_fitted_modality_in_rows_and_the_tested_one_in_columns():
    figure = figures.transfer(auroc_rows(), 1)
    cells = [text.get_text() for text in figure.axes[0].texts]
    assert cells == [".96\n.86, 1.00", ".60\n.61, .75", ".60\n.86, 1.00", ".71\n.61, .75"]
    with pytest.raises(ValueError, match=r"transfer found no probes at layer 9; the table has layers \[0, 1, 2\]"):
        figures.transfer(auroc_rows(), 9)


def sweep_rows():
    """Rows for four layers and a window, with two rules; layer 2 with `substitute` is the choice."""
    rows = []
    for metric, base in (("opening_refusal_rate", 0.5), ("opening_over_refusal_rate", 0.0), ("kl", 1.0)):
        common = {"setting": "ranked", "modality": "blank", "metric": metric, "gate": "sign", "selection_rule": None}
        rows.append(common | {"defence": "unguarded", "gate": None, "value": 0.3})
        for layer, last in ((0, None), (1, None), (2, None), (3, None), (0, 3)):
            for rule in ("substitute", "ablate"):
                number = base + 0.1 * layer * (rule == "substitute") + (0.05 if last else 0)
                configuration = {"layer": layer, "last_layer": last, "rule": rule, "defence": "guard"}
                rows.append(common | configuration | {"strength": None if rule == "ablate" else 1.0, "value": number})
    for row in [row for row in rows if row["metric"] == "kl" and row["defence"] == "guard"]:
        rows.append(row | {"metric": "on_front", "modality": None, "value": float(row["layer"] == 2)})
    chosen = {
        "setting": "finalists",
        "selection_rule": "limit",
        "metric": "refusal_rate",
        "defence": "guard",
        "value": 1,
    }
    rows.append(chosen | {"layer": 2, "rule": "substitute", "strength": 1.0, "gate": "sign", "modality": "blank"})
    # A configuration that halving dropped is not drawn with the others.
    dropped = {"setting": "ranked", "defence": "guard", "layer": 9, "rule": "steer", "gate": "sign", "n": 15}
    rows = [row | {"n": 60} for row in rows]
    rows += [
        dropped | {"modality": "blank", "metric": metric, "value": 0.9} for metric in ("kl", "opening_refusal_rate")
    ]
    return pd.DataFrame(rows).assign(ci_low=lambda t: t.value - 0.05, ci_high=lambda t: t.value + 0.05)


def stars(axis):
    """Positions of the points that are not bands, such as stars."""
    points = [drawn for drawn in axis.collections if isinstance(drawn, PathCollection)]
    return [np.asarray(drawn.get_offsets()).tolist() for drawn in points]


def test_layer_sweep_draws_each_rule_and_stars_exactly_the_choice():
    table = sweep_rows()
    figure = figures.layer_sweep(table)
    for axis, base in zip(figure.axes, (0.5, 0.0, 1.0), strict=True):
        lines = {line.get_label(): line.get_ydata() for line in axis.lines}
        np.testing.assert_allclose(lines["substitute"], base + 0.1 * np.arange(4))
        np.testing.assert_allclose(lines["ablate"], [base] * 4)
        (((x, y),),) = stars(axis)
        assert x == 2 and y == pytest.approx(base + 0.2)
    assert "rule substitute, layer 2, strength 1, gate sign; chosen on validation by limit" in figures.caption(figure)
    assert "the chosen guard (in full)" in figures.caption(figures.layer_sweep(table, "in full"))
    assert "the chosen guard (in full)" in figures.caption(figures.pareto(table, "in full"))
    # Without a choice nothing is starred.
    unmarked = figures.layer_sweep(table[table.setting == "ranked"])
    assert [stars(axis) for axis in unmarked.axes] == [[], [], []] and "Starred" not in figures.caption(unmarked)


def test_layer_sweep_stars_a_window_that_was_chosen_and_not_the_best_single_layer():
    table = sweep_rows()
    single = table[table.setting == "finalists"].assign(selection_rule="limit, single layer")
    window = table[table.setting == "finalists"].assign(layer=0, last_layer=3)
    figure = figures.layer_sweep(pd.concat([table[table.setting == "ranked"], single, window]))
    (((x, y),),) = stars(figure.axes[0])
    assert x == 1.5 and y == pytest.approx(0.55) and "layers 0 to 3" in figures.caption(figure)


def random_rows():
    """Draws of one guard and two modalities: the guard gains more than all of 40 draws, and than half of them."""
    rows = []
    for modality, guard in (("blank", 5.0), ("typographic", 0.5)):
        common = {"dataset": "organism", "setting": "sweep", "split": "test", "modality": modality, "layer": 3}
        common |= {"rule": "substitute", "reference": "prompt_text", "gate": "sign", "strength": 2.0}
        for metric, scale in (("refusal_score_gain", 1.0), ("opening_refusal_rate", 0.1)):
            rows.append(common | {"metric": metric, "value": guard * scale})
            draws = np.linspace(-1, 2, 40) * scale
            rows += [
                common | {"metric": metric, "control": "random", "seed": i, "value": v} for i, v in enumerate(draws)
            ]
    return pd.DataFrame(rows)


def test_random_directions_draws_every_draw_and_the_guard_with_its_percentile():
    figure = figures.random_directions(random_rows())
    for axis, scale in zip(figure.axes, (1.0, 0.1), strict=True):
        points = [np.asarray(drawn.get_offsets()) for drawn in axis.collections]
        draws, guards = [each for each in points if len(each) == 40], [each for each in points if len(each) == 1]
        assert len(draws) == 2 and all(
            each[:, 0].tolist() == (np.linspace(-1, 2, 40) * scale).tolist() for each in draws
        )
        # Dots are scattered around their line, which the guard is on.
        assert [guard[0].tolist() for guard in guards] == [[5.0 * scale, -1.0], [0.5 * scale, -2.0]]
        assert all(np.abs(dots[:, 1] - guard[0, 1]).max() < 0.31 for dots, guard in zip(draws, guards, strict=True))
        percentiles = [text.get_text() for text in axis.texts if "%" in text.get_text()]
        assert percentiles == ["100%", "50%"]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["blank picture", "text in picture"]
    headings = [text.get_text() for text in figure.axes[0].texts if "%" not in text.get_text()]
    assert headings == ["Sweep, test: substitute, strength 2, gate sign, layer 3"]
    assert "among 40 changes of the same size" in figures.caption(figure)
    with pytest.raises(ValueError, match="random_directions needs the columns"):
        figures.random_directions(random_rows().drop(columns="control"))


def test_pareto_shows_every_configuration_with_rings_on_the_front_and_a_star_on_the_choice():
    left, right = figures.pareto(sweep_rows()).axes
    offsets = [np.asarray(drawn.get_offsets()) for drawn in left.collections]
    by_rule, ringed, star = offsets[:2], offsets[2], offsets[3]
    assert [len(points) for points in by_rule] == [5, 5]
    np.testing.assert_allclose(np.sort(ringed, axis=0), [[1.0, 0.5], [1.2, 0.7]])
    np.testing.assert_allclose(star, [[1.2, 0.7]])
    # Over-refusal is moved to the right, by less than one of 60 requests.
    ((x, y),) = np.asarray(right.collections[-1].get_offsets())
    assert 0.2 <= x < 0.2 + 1 / 60 and y == pytest.approx(0.7)


def test_layer_selection_orders_the_rules_from_the_worst_to_the_best():
    rows = []
    for rule, layer, worth in (("sas", 2, 0.9), ("fixed", 1, 0.4), ("random", None, 0.6), ("best_on_test", 2, 0.9)):
        for metric, value in (("refusal_rate", worth), ("over_refusal_rate", 0.0), ("kl", 0.01)):
            labels = {"setting": "pick", "selection_rule": rule, "layer": layer, "metric": metric, "judge": "exact@1"}
            labels |= {"n": 60}
            for modality, more in (("blank", 0.05), ("typographic", -0.05)):
                bounds = {"ci_low": value - 0.2, "ci_high": value + 0.2}
                rows.append(labels | {"modality": modality, "value": value + more * (metric != "kl")} | bounds)
    figure = figures.layer_selection(pd.DataFrame(rows))
    names = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert names == [
        "middle layer (layer 1)",
        "random layer",
        "AutoSteer's rule (layer 2)",
        "best on test (bound) (layer 2)",
    ]
    means = [line.get_xdata()[0] for line in figure.axes[0].lines if line.get_color() == "0.15"]
    np.testing.assert_allclose(means, [0.4, 0.6, 0.9, 0.9])
    # One interval per modality; for a layer drawn at random, the range is dotted.
    spans = [line.get_xdata() for line in figure.axes[0].lines if len(set(line.get_ydata())) == 1]
    spans = [span for span in spans if len(span) == 2]
    assert sum(line.get_linestyle() == ":" for line in figure.axes[0].lines) == 2
    assert len(spans) == 8 and sum(np.allclose(span, [0.7, 1.1]) for span in spans) == 4


def test_a_map_of_defences_shows_every_rate():
    rows = []
    for setting, modality in (("plain", "text"), ("multimodal", "typographic")):
        for metric in ("asr", "over_refusal_rate"):
            for i, (defence, reference) in enumerate(
                [("unguarded", None), ("self_reminder", None), ("guard", "prompt_text"), ("guard", "transcription")]
            ):
                rows.append(
                    {
                        "setting": setting,
                        "modality": modality,
                        "defence": defence,
                        "reference": reference,
                        "judge": "exact@1",
                        "metric": metric,
                        "value": 0.2 * i + 0.1,
                        "ci_low": 0.2 * i,
                        "ci_high": 0.2 * i + 0.2,
                        "n": 60,
                    }
                )
    figure = figures.attack_success_map(pd.DataFrame(rows))
    attacks, refusals = figure.axes
    assert attacks.get_title() == "attack success, %" and refusals.get_title() == "over-refusal, %"
    # The guard reads the user's text, or for a request inside a picture what the model transcribes; there it is shown
    # with the user's text as well, although it does worse.
    for axis in figure.axes:
        assert [text.get_text() for text in axis.texts] == ["10", "10", "30", "30", "50", "70", "50"]
    names = [text.get_text() for text in attacks.get_yticklabels()]
    assert names == ["unguarded", "Self-Reminder", "guard", "guard, own text"]
    assert [text.get_text() for text in attacks.get_xticklabels()] == ["text only", "text in picture"]


def attack_rows(dataset="own", setting="plain", reference="prompt_text", asr=0.5):
    columns = {
        "dataset": dataset,
        "setting": setting,
        "modality": "blank",
        "judge": "exact@1",
        "category": None,
        "n": 60,
    }
    return [
        columns
        | {"defence": name, "reference": used, "metric": metric, "value": value}
        | {"ci_low": value - 0.1, "ci_high": value + 0.1}
        for name, used in (("unguarded", None), ("guard", reference))
        for metric, value in (("asr", asr), ("over_refusal_rate", 0.2))
    ]


def test_each_dataset_has_columns_of_its_own_whatever_its_setting_and_reference_are_called():
    rows = attack_rows() + attack_rows("other", "prefix_injection@1", "prompt_text+caption", 0.9)
    of_category = [row | {"category": "drugs", "value": 0.7, "n": 3} for row in attack_rows()]
    figure = figures.attack_success_map(pd.DataFrame(rows + of_category))
    assert [text.get_text() for text in figure.axes[0].texts] == ["50", "90", "50", "90"]
    labels = [text.get_text() for text in figure.axes[1].get_xticklabels()]
    assert labels == ["own: blank picture", "other: prefix injection@1, blank picture"]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["unguarded", "guard"]
    caption = figures.caption(figure)
    assert "blank picture: prompt and caption" in caption and "n = 60 requests of" in caption


def test_each_model_has_a_panel_of_its_own():
    rows = [row | {"model": model} for model, asr in (("built-in", 0.5), ("real", 0.3)) for row in attack_rows(asr=asr)]
    rows += [row | {"model": "real"} for row in attack_rows(setting="jailbreak", asr=0.9)]
    # A real model's answers are not judged by the exact judge, which knows the built-in model's sentences.
    rows = [row | {"judge": "keywords@1"} if row["model"] == "real" else row for row in rows]
    figure = figures.attack_success_by_model(pd.DataFrame(rows))
    built_in, _, real, _ = figure.axes
    assert [text.get_text() for text in built_in.texts] == ["50", "50"]
    assert [text.get_text() for text in real.texts] == ["30", "90", "30", "90"]
    assert [axis.get_title() for axis in (built_in, real)] == [
        "built-in:\nattack success, %",
        "real:\nattack success, %",
    ]
    assert [text.get_text() for text in real.get_xticklabels()] == ["blank picture", "jailbreak, blank picture"]
    with pytest.raises(ValueError, match="missing: .*modality"):
        figures.attack_success_by_model(pd.DataFrame({"value": [1.0], "model": "x"}))


def test_the_headline_has_three_bars_in_each_modality_and_what_they_cost():
    rows = [row | {"model": model} for model in ("built-in", "real") for row in attack_rows(asr=0.5)]
    rows += [row | {"defence": "text_verdict", "value": 0.0} for row in rows if row["defence"] == "guard"]
    rows += [row | {"metric": "over_refusal_rate", "value": 0.25} for row in rows if row["metric"] == "asr"]
    # Jailbreaks are left to other figures.
    rows += [row | {"model": "real"} for row in attack_rows(setting="jailbreak", asr=0.9)]
    figure = figures.headline(pd.DataFrame(rows))
    assert [axis.get_title() for axis in figure.axes] == ["built-in toy model", "real"]
    for axis in figure.axes:
        # Of each arm attacks, then refusals; a bar of height 0 keeps a foot.
        assert [patch.get_height() for patch in axis.patches] == [0.5, 0.25, LEAST_BAR, 0.25, 0.5, 0.25]
        assert [text.get_text() for text in axis.texts] == ["50", "25", "0", "25", "50", "25"]
        assert [text.get_text() for text in axis.get_xticklabels()] == ["blank picture", "harmless refused"]
    with pytest.raises(ValueError, match="missing: model"):
        figures.headline(pd.DataFrame(attack_rows()))


@pytest.mark.parametrize(
    "draw",
    [figures.probe_auroc, figures.layer_sweep, figures.pareto, figures.layer_selection, figures.attack_success_map],
)
def test_missing_columns_and_empty_tables_are_named(draw):
    with pytest.raises(ValueError, match="missing: .*modality"):
        draw(pd.DataFrame({"value": [1.0]}))


def reading_rows():
    labels = {"split": "validation", "defence": "guard", "rank": 1, "source": "vlm_text", "estimator": "paired_svd"}
    labels |= {"token": "last", "layer": 7, "direction_layer": 7, "strength": 1.0, "reference": "prompt_text"}
    labels |= {"gate": "sign", "positions": "last_prefill", "judge": None, "category": None}
    rows = []
    for setting, rule, scope, control, gain in (
        ("factorial", "ablate", "change", None, -7.0),
        ("factorial", "substitute", "change", None, 2.0),
        ("factorial", "substitute", "change", "sign_flipped", -6.0),
        ("control", "substitute", "change", "random", 0.5),
    ):
        columns = labels | {
            "setting": setting,
            "rule": rule,
            "gate_scope": scope,
            "control": control,
            "modality": "blank",
        }
        rows += [
            columns | {"metric": "refusal_score_gain", "value": gain, "ci_low": gain - 1, "ci_high": gain + 1},
            columns | {"metric": "kl", "value": 0.1, "ci_low": 0.05, "ci_high": 0.2},
            columns | {"metric": "refusal_rate", "value": 0.9, "ci_low": 0.8, "ci_high": 0.95, "judge": "exact@1"},
            columns | {"metric": "over_refusal_rate", "value": 0.2, "ci_low": 0.1, "ci_high": 0.3, "judge": "exact@1"},
            columns
            | {"metric": "coherence", "value": 0.5, "ci_low": 0.4, "ci_high": 0.6, "judge": "exact@1"}
            | {"category": "harmless"},
        ]
    return pd.DataFrame(rows).assign(n=60)


def test_readings_draw_each_value_on_its_own_line():
    figure = figures.readings(reading_rows())
    gain, answered, refused, kl = figure.axes
    names = [label.get_text() for label in gain.get_yticklabels()]
    assert names == ["Rule", "ablate", "substitute", "Controls and bounds", "random directions"]
    marked = [line for line in gain.lines if line.get_marker() == "s"]
    points = {(line.get_xdata()[0], line.get_markerfacecolor() == "white") for line in marked}
    assert points == {(-7.0, False), (2.0, False), (-6.0, True), (0.5, False)}
    spans = {tuple(line.get_xdata()) for line in gain.lines if len(line.get_xdata()) == 2}
    assert {(-8.0, -6.0), (1.0, 3.0), (-7.0, -5.0), (-0.5, 1.5)} <= spans
    for axis, value in ((refused, 0.9), (answered, 0.4), (kl, 0.1)):
        drawn = {line.get_xdata()[0] for line in axis.lines if line.get_marker() == "s"}
        assert {round(float(x), 9) for x in drawn} == {value}
    with pytest.raises(ValueError, match="missing: setting"):
        figures.readings(reading_rows().drop(columns="setting"))


def test_an_explained_guard_is_drawn_with_the_numbers_of_its_table():
    table = pd.DataFrame(
        {
            "layer": [3, 7],
            "coordinate": [1.0, 2.0],
            "reference_coordinate": [4.0, 5.0],
            "gate": [True, False],
            "after": [4.0, 2.0],
            "delta_norm": [0.3, 0.0],
        }
    )
    left, right = figures.guard_explained(table).axes
    lines = {line.get_label(): list(line.get_ydata()) for line in left.lines}
    assert lines["before"] == [1.0, 2.0] and lines["after"] == [4.0, 2.0] and lines["reference"] == [4.0, 5.0]
    assert [bar.get_height() for bar in right.patches] == [0.3, 0.0]
    assert [text.get_text().strip() for text in right.texts] == ["open", "shut"]


def tradeoff_rows():
    """Rows for a set with harmless partners and for one of harmful requests alone; one defence is not ranked."""
    rows = []
    for dataset, has_harmless in (("pairs", True), ("attacks", False)):
        for defence, standing, asr, refused in (
            ("unguarded", "baseline", 0.8, 0.0),
            ("guard", "ranked", 0.2, 0.1),
            ("words", "not testable here", 0.7, 0.3),
        ):
            columns = {"dataset": dataset, "setting": "plain", "modality": "blank", "defence": defence, "n": 50}
            columns |= {"standing": standing, "judge": "exact@1", "reference": "prompt_text"}
            rows.append(columns | {"metric": "asr", "value": asr, "ci_low": asr - 0.1, "ci_high": asr + 0.1})
            if has_harmless:
                over_refusal = {
                    "metric": "over_refusal_rate",
                    "value": refused,
                    "ci_low": 0.0,
                    "ci_high": refused + 0.1,
                }
                rows.append(columns | over_refusal)
    return pd.DataFrame(rows)


def dots(axis, metric):
    """Value and whether the dot is filled, by the name of the defence."""
    names = [text.get_text() for text in axis.figure.axes[0].get_yticklabels()]
    own = [line for line in axis.lines if line.get_gid() == metric and not np.isnan(line.get_xdata()[0])]
    return {
        names[round(line.get_ydata()[0])]: (line.get_xdata()[0], line.get_markerfacecolor() != "white") for line in own
    }


def test_the_tradeoff_draws_both_rates_of_each_defence_hollow_if_it_is_not_ranked():
    figure = figures.safety_tradeoff(tradeoff_rows())
    for axis in figure.axes:
        assert dots(axis, "asr") == {"unguarded": (0.8, True), "guard": (0.2, True), "words": (0.7, False)}
        assert dots(axis, "over_refusal_rate") == {
            "unguarded": (0.0, True),
            "guard": (0.1, True),
            "words": (0.3, False),
        }
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["unguarded", "guard", "words"]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["attacks that succeed", "harmless requests refused", "not ranked"]
    assert "Over-refusal of sets without harmless requests is that on pairs, blank picture" in figures.caption(figure)


def test_the_tradeoff_draws_the_guard_with_the_papers_own_reference_too():
    """Inside a picture the guard stops nothing with the prompt's own text, which a reader has to see."""
    rows = tradeoff_rows().assign(setting="multimodal", modality="typographic")
    guard = rows[rows.defence == "guard"]
    read = guard.assign(reference="transcription", value=guard.value.where(guard.metric != "asr", 0.05))
    figure = figures.safety_tradeoff(pd.concat([rows, read]))
    attacks = dots(figure.axes[0], "asr")
    assert attacks["guard"][0] == 0.05 and attacks["guard, own text"][0] == 0.2


def test_unmeasured_over_refusal_has_no_dot_and_grey_lines_are_the_front():
    rows = tradeoff_rows()
    figure = figures.safety_tradeoff(rows[(rows.metric == "asr") | (rows.defence != "guard")])
    for axis in figure.axes:
        assert "guard" in dots(axis, "asr") and "guard" not in dots(axis, "over_refusal_rate")
    attacks_only = figures.safety_tradeoff(rows[rows.metric == "asr"])
    assert not any(dots(axis, "over_refusal_rate") for axis in attacks_only.axes)
    assert "Over-refusal was not measured" in figures.caption(attacks_only)
    # `words` succeeds less often than without a guard, but is not ranked.
    complete = figures.safety_tradeoff(rows).axes[0]
    assert [round(patch.get_y() + patch.get_height() / 2) for patch in complete.patches] == [0, 1]


def test_the_tradeoff_needs_attacks():
    rows = tradeoff_rows()
    with pytest.raises(ValueError, match="found no attack success"):
        figures.safety_tradeoff(rows[rows.metric != "asr"])
    with pytest.raises(ValueError, match="missing: standing"):
        figures.safety_tradeoff(rows.drop(columns="standing"))


def test_the_tradeoff_marks_a_defence_that_breaks_answers():
    rows = tradeoff_rows()
    columns = rows[(rows.defence == "guard") & (rows.metric == "asr") & (rows.dataset == "pairs")]
    broken = columns.assign(metric="coherence", category="harmful", value=0.2, n=40)
    figure = figures.safety_tradeoff(pd.concat([rows, broken]))
    assert [text.get_text() for text in figure.legends[0].get_texts()][-1] == "breaks answers"
    markers = [
        {line.get_xdata()[0]: line.get_marker() for line in axis.lines if line.get_gid() == "asr"}
        for axis in figure.axes
    ]
    assert markers[0][0.2] == "P" and markers[1][0.2] == "D"


def test_separation_draws_each_measure_along_the_safety_direction():
    values = {"auroc": 1.0, "d_prime": 5.0, "accuracy": 0.8, "margin": 6.0}
    rows = []
    for modality, lost in (("text", 0.0), ("blank", 0.2)):
        for layer in range(2):
            for metric, value in values.items():
                place = {"split": "test", "site": "resid_post", "token": "last", "setting": "anchors", "n": 120}
                place |= {"modality": modality, "layer": layer, "fit_modality": "text", "metric": metric}
                own = place | {"probe": "ssd", "control": None, "value": value - lost}
                own |= {"ci_low": value - lost - 0.1, "ci_high": value - lost + 0.1}
                rows += [
                    own,
                    own | {"probe": "logistic", "value": 9.0},
                    own | {"control": "filler_tokens", "value": 8.0},
                ]
    figure = figures.separation(pd.DataFrame(rows))
    assert len(figure.axes) == 4
    for axis, value in zip(figure.axes, values.values(), strict=True):
        lines = {line.get_label(): line.get_ydata() for line in axis.lines}
        np.testing.assert_allclose(lines["text only"], [value] * 2)
        np.testing.assert_allclose(lines["blank picture"], [value - 0.2] * 2)
    assert "n = 120 requests" in figures.caption(figure) and "right side of the border" in figures.caption(figure)
    assert len(figures.separation(pd.DataFrame(rows)[lambda table: table.metric != "margin"]).axes) == 3
