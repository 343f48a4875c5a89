"""Maps over layers show the values of their tables, and mark significant ones."""

import numpy as np
import pandas as pd
import pytest

import figures


def texts_of(axis) -> list[tuple[str, str]]:
    return [(text.get_text(), text.get_fontweight()) for text in axis.texts]


def drop_rows(n_layers=2):
    rows = []
    for layer in range(n_layers):
        for modality, drop, p in (("blank", 0.0, 0.06), ("typographic", 0.1 * (layer + 1), 0.04)):
            columns = {"modality": modality, "layer": layer, "split": "test", "site": "resid_post", "token": "last"}
            columns |= {"probe": "ssd", "setting": "anchors", "control": None, "fit_modality": "text", "n": 60}
            rows.append(
                columns | {"metric": "auroc_drop", "value": drop, "ci_low": drop - 0.05, "ci_high": drop + 0.05}
            )
            rows.append(columns | {"metric": "auroc_drop_p", "value": p})
    return pd.DataFrame(rows)


def test_degradation_shows_each_drop_with_significant_ones_in_bold():
    figure = figures.degradation(drop_rows())
    assert figure.axes[0].get_title() == "coordinate on the SSD"
    assert texts_of(figure.axes[0]) == [
        (".00\n−.05, .05", "normal"),
        (".00\n−.05, .05", "normal"),
        (".10\n.05, .15", "bold"),
        (".20\n.15, .25", "bold"),
    ]
    assert "n = 60 requests" in figures.caption(figure)


def test_a_map_of_many_layers_marks_significant_values_by_dots():
    figure = figures.degradation(drop_rows(30))
    assert {text for text, _ in texts_of(figure.axes[0])} == {"", "•"}
    assert sum(text == "•" for text, _ in texts_of(figure.axes[0])) == 30
    assert "intervals are in the table" in figures.caption(figure)


def test_degradation_needs_drops():
    rows = drop_rows()
    with pytest.raises(ValueError, match="degradation of auroc_drop, auroc_drop_p got an empty table"):
        figures.degradation(rows.assign(metric="auroc"))


def path_rows():
    rows = []
    for modality in ("text", "blank", "typographic"):
        for layer in (0, 1):
            columns = {"modality": modality, "layer": layer, "token": "last", "site": "resid_post", "n": 60}
            for category, sign in (("harmful", 1), ("harmless", -1)):
                score = sign * (1.0 + layer) - (modality != "text")
                labels = columns | {"category": category, "metric": "refusal_score", "value": score}
                rows.append(labels | {"ci_low": score - 0.1, "ci_high": score + 0.2})
                for site, scale in (("head 0", 1.0), ("head 1", 0.1), ("mlp_out", 3.0)):
                    value = sign * scale * (layer + 1) * (1.0 if modality == "text" else 0.5)
                    labels = columns | {"category": category, "site": site, "metric": "coordinate_written"}
                    labels |= {"direction_layer": 1}
                    rows.append(labels | {"value": value, "ci_low": value - 0.3, "ci_high": value + 0.3})
            if modality != "text":
                for token, value in (("last", 0.5 + 0.4 * layer), ("request", 0.02)):
                    labels = columns | {"category": "harmful", "token": token, "metric": "recovered", "n": 16}
                    rows.append(labels | {"value": value, "ci_low": value - 0.1, "ci_high": value + 0.1})
    return pd.DataFrame(rows)


def test_the_refusal_lens_draws_each_class_with_its_band():
    figure = figures.refusal_lens(path_rows())
    harmful, harmless = figure.axes
    assert harmful.get_title() == "harmful requests"
    lines = {line.get_label(): line.get_ydata() for line in harmful.lines}
    np.testing.assert_allclose(lines["text only"], [1.0, 2.0])
    np.testing.assert_allclose(lines["blank picture"], [0.0, 1.0])
    band = harmful.collections[0].get_paths()[0].vertices[:, 1]
    assert band.min() == pytest.approx(0.9) and band.max() == pytest.approx(2.2)
    np.testing.assert_allclose(
        next(line for line in harmless.lines if line.get_label() == "text only").get_ydata(), [-1, -2]
    )


def test_attribution_maps_class_differences_and_lists_the_strongest_writers():
    figure = figures.attribution(path_rows())
    maps = [axis for axis in figure.axes if axis.get_title() in ("text only", "blank picture", "text in picture")]
    # From the last layer down; head 1's intervals of the two classes overlap.
    np.testing.assert_allclose(maps[0].collections[0].get_array().ravel(), [4.0, 0.4, 12.0, 2.0, 0.2, 6.0])
    assert [text for text, _ in texts_of(maps[0])] == ["•", "", "•", "•", "", "•"]
    assert [label.get_text() for label in maps[0].get_xticklabels()] == ["0", "1", "MLP"]
    strip = next(axis for axis in figure.axes if axis.get_ylabel() == "added to\nthe coordinate")
    assert [label.get_text() for label in strip.get_xticklabels()][:3] == ["1\nMLP", "0\nMLP", "1\n0"]
    filled = {float(line.get_ydata()[0]) for line in strip.lines if line.get_marker() == "o"}
    assert {6.0, -6.0, 3.0, -3.0} <= filled
    spans = {tuple(np.round(line.get_ydata(), 6)) for line in strip.lines if len(line.get_ydata()) == 2}
    assert (5.7, 6.3) in spans


def test_the_patching_map_orders_tokens_as_in_the_prompt():
    figure = figures.patching_map(path_rows())
    blank = next(axis for axis in figure.axes if axis.get_title() == "blank picture")
    assert [label.get_text() for label in blank.get_yticklabels()] == ["request", "last"]
    assert texts_of(blank) == [
        (".02\n−.08, .12", "normal"),
        (".02\n−.08, .12", "normal"),
        (".50\n.40, .60", "bold"),
        (".90\n.80, 1.00", "bold"),
    ]


def test_the_refusal_lens_of_a_model_with_openings_of_two_tokens_reads_the_single_ones_and_says_so():
    rows = path_rows().replace({"metric": {"refusal_score": "refusal_score_single"}})
    assert "openings, those of one token," in figures.caption(figures.refusal_lens(rows))


@pytest.mark.parametrize("draw", [figures.refusal_lens, figures.attribution, figures.patching_map])
def test_a_signal_path_without_its_metric_or_columns_is_named(draw):
    with pytest.raises(ValueError, match="found no .*; TransformerLens has no bridge"):
        draw(path_rows().assign(metric="other"))
    with pytest.raises(ValueError, match="missing: category"):
        draw(path_rows().drop(columns="category"))


def direction_rows():
    rows = []
    for layer in range(3):
        columns = {"setting": "directions", "token": "last", "source": "vlm_text", "layer": layer}
        rows.append(columns | {"estimator": "paired_svd", "metric": "explained_variance", "value": 0.1 * layer})
        for name, cosine in (("paired_svd", 1.0), ("mean_diff", 0.9 - 0.1 * layer)):
            rows.append(columns | {"estimator": name, "metric": "cosine", "value": cosine})
            rows.append(columns | {"estimator": name, "metric": "stability", "value": 0.8})
        rows.append(columns | {"estimator": "mean_diff", "source": "llm", "metric": "cosine", "value": 0.123})
    return pd.DataFrame(rows)


def test_directions_draw_explained_variance_and_agreement_of_estimators():
    explained, cosine, stability = figures.directions(direction_rows()).axes
    np.testing.assert_allclose(explained.lines[0].get_ydata(), [0.0, 0.1, 0.2])
    (line,) = cosine.lines
    assert line.get_label() == "mean difference"
    np.testing.assert_allclose(line.get_ydata(), [0.9, 0.8, 0.7])
    assert [line.get_label() for line in stability.lines] == ["paired SVD", "mean difference"]


def test_judges_are_compared_in_the_lower_half_with_intervals():
    rows = [
        {"setting": setting, "judge": a, "judge_2": b, "metric": "kappa", "value": value, "n": 90}
        for setting, pairs in (
            ("refusal", (("exact@1", "gcg@1", 0.9), ("exact@1", "linear@1", 0.7), ("gcg@1", "linear@1", 0.6))),
            ("harm", (("exact@1", "gcg@1", 0.4),)),
        )
        for a, b, value in pairs
    ]
    table = pd.DataFrame(rows).assign(ci_low=lambda t: t.value - 0.1, ci_high=lambda t: t.value + 0.05)
    figure = figures.judge_agreement(table)
    refusal, harm = (axis for axis in figure.axes if axis.get_title())
    assert [text for text, _ in texts_of(refusal)] == [
        ".90\n.80, .95",
        ".70\n.60, .75",
        ".60\n.50, .65",
    ]
    assert [label.get_text() for label in refusal.get_yticklabels()] == ["GCG  2", "linear model  3"]
    assert [label.get_text() for label in harm.get_xticklabels()] == [
        "1"
    ] and harm.get_xlabel() == "1 is exact sentences"
    assert "n = 90 answers" in figures.caption(figure)


def test_the_bench_draws_each_ratio_with_its_quartiles():
    rows = [
        ("bench", 16, "one shared", "trace", "times_as_long_as_trace", 1.0, 1.0, 1.0),
        ("bench", 16, "one shared", "careful forward", "times_as_long_as_trace", 7.0, 6.0, 8.0),
        ("bench", 16, "one shared", "careful forward", "seconds", 3.0, 2.0, 4.0),
        ("bench", 16, "one shared", "guard", "first_token_times_as_long", 1.1, 1.0, 1.2),
    ]
    table = pd.DataFrame(
        rows, columns=["model", "n_prompts", "pictures", "contender", "measure", "value", "q25", "q75"]
    )
    axis = figures.bench_ratios(table.assign(n=6)).axes[0]
    marks = {(line.get_marker(), float(line.get_xdata()[0])) for line in axis.lines if line.get_marker() in ("o", "D")}
    assert marks == {("o", 7.0), ("D", 1.1)}
    assert {tuple(line.get_xdata()) for line in axis.lines} >= {(6.0, 8.0), (1.0, 1.2)}
    names = [label.get_text().strip() for label in axis.get_yticklabels()]
    assert names == ["trace: 16 prompts, one shared picture", "careful forward", *names[2:]]
    assert names[2:] == ["guard, first token: 16 prompts, one shared picture", "guard"]
    with pytest.raises(ValueError, match="bench_ratios of ratios got an empty table"):
        figures.bench_ratios(table[table.measure == "seconds"].assign(n=6))
