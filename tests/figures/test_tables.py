"""Tables for papers show the numbers of the tidy tables, and escape the markup of LaTeX and Markdown."""

import re

import pandas as pd
import pytest
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

from figures import PAGE_WIDTHS, tables
from tests.figures.test_figures import attack_rows, reading_rows


def rate_rows():
    rows = []
    for defence, standing, asr in (("unguarded", "baseline", 0.8), ("guard_random", "control", 0.5)):
        labels = {"setting": "plain", "modality": "blank", "defence": defence, "standing": standing, "n": 60}
        for metric, value in (("asr", asr), ("over_refusal_rate", 0.0)):
            row = labels | {"metric": metric, "value": value, "ci_low": max(0, value - 0.1), "ci_high": value + 0.1}
            rows += [row | {"judge": "exact@1"}, row | {"judge": "keywords@1", "value": 0.99}]
    return pd.DataFrame(rows)


def test_rates_are_shown_with_intervals_by_the_deciding_judge():
    table = tables.defence_rates(rate_rows())
    assert table.to_dict("records") == [
        {"setting": "plain", "modality": "blank", "defence": "unguarded", "reference": "", "standing": "baseline"}
        | {"attack success": "0.80 [0.70, 0.90]", "over-refusal": "0.00 [0.00, 0.10]", "n": 60},
        {"setting": "plain", "modality": "blank", "defence": "guard random", "reference": "", "standing": "control"}
        | {"attack success": "0.50 [0.40, 0.60]", "over-refusal": "0.00 [0.00, 0.10]", "n": 60},
    ]


def test_auroc_has_a_row_per_layer_and_columns_in_the_order_of_modalities():
    rows = [
        {
            "probe": "ssd",
            "metric": "auroc",
            "modality": m,
            "layer": float(layer),
            "value": v,
            "ci_low": 0.5,
            "ci_high": 1,
        }
        | {"control": None, "split": split, "site": "resid_post", "token": token}
        for m, v in (("typographic", 0.6), ("text", 0.9))
        for layer in (1, 0)
        for split, token in (("test", "last"), ("train", "last"), ("test", "instruction"))
    ]
    table = tables.auroc_by_layer(pd.DataFrame(rows))
    assert list(table.columns) == ["layer", "text", "typographic"] and table.layer.tolist() == [0, 1]
    assert table.text.tolist() == ["0.90 [0.50, 1.00]"] * 2


def test_rules_are_sorted_from_the_best_to_the_worst():
    rows = [
        {"setting": "pick", "selection_rule": rule, "layer": layer, "modality": m, "metric": metric, "judge": "exact@1"}
        | {"value": worth if metric == "refusal_rate" else 0.0}
        for rule, layer, worth in (("fixed", 4, 0.5), ("sas", 7, 0.9), ("random", None, 0.6))
        for m in ("blank", "scene")
        for metric in ("refusal_rate", "over_refusal_rate", "kl")
    ]
    table = tables.selection_rules(pd.DataFrame(rows))
    assert table["selection rule"].tolist() == ["AutoSteer's rule", "random layer", "middle layer"]
    assert table.layer.tolist() == ["7", "several", "4"] and table["harmful refused"].tolist() == [
        "0.900",
        "0.600",
        "0.500",
    ]


def test_latex_has_booktabs_rules_and_escapes_markup_from_outside():
    table = pd.DataFrame({"guard_random": ["50 % & \\x", "a_b#{}"]})
    text = tables.to_latex(table, "caption with 5 %", "tab:one")
    assert "\\toprule" in text and "\\bottomrule" in text and "\\label{tab:one}" in text
    assert "50 \\% \\& \\textbackslash{}x" in text and "a\\_b\\#\\{\\}" in text and "guard\\_random" in text
    assert "caption with 5 \\%" in text


def test_markdown_escapes_pipes_and_keeps_leading_zeros():
    text = tables.to_markdown(pd.DataFrame({"a": ["x|y"], "b": ["007"]}))
    assert "| x\\|y | 007 |" in text


def test_long_cells_break_into_lines_and_long_tables_over_pages():
    text = tables.to_latex(pd.DataFrame({"claim": ["word " * 30], "n": ["60"]}), "c", "t")
    assert "{p{0.80\\linewidth}l}" in text and "longtable" not in text
    assert "\\begin{longtable}" in tables.to_latex(pd.DataFrame({"n": range(50)}), "c", "t")


def test_kappas_and_verdicts_name_missing_rows_and_columns():
    with pytest.raises(ValueError, match="kappas of kappa got an empty table"):
        columns = ["setting", "judge", "judge_2", "value", "ci_low", "ci_high", "n"]
        tables.kappas(pd.DataFrame([dict.fromkeys(columns, 1) | {"metric": "agreement"}]))
    with pytest.raises(ValueError, match="missing: verdict"):
        tables.verdicts(pd.DataFrame({"claim": ["a"], "theirs": ["b"], "ours": ["c"]}))


def defence_rows():
    """Rates, ranks, tuning and costs of two defences, as the study writes them."""
    rows = []
    arms = {
        "unguarded": ("baseline", None, 0.8, None, 60),
        "cmrm": ("ranked", "layer 3, strength 2: best of 9 on validation", 0.1, 1, 120),
        "guard": ("not testable here", "best of 8 on validation", 0.2, None, 90),
    }
    for defence, (standing, tuning, asr, rank, tokens) in arms.items():
        labels = {"setting": "plain", "modality": "blank", "defence": defence, "standing": standing, "n": 60}
        labels |= {"tuning": tuning, "judge": "exact@1"}
        rows += [labels | {"metric": metric, "value": asr, "ci_low": 0, "ci_high": 1} for metric in tables.RATES]
        rows += [labels | {"metric": "rank", "value": rank, "n": 2}] if rank else []
        cost = labels | {"setting": "cost", "judge": None, "n": 20}
        rows += [cost | {"metric": m, "value": tokens, "ci_low": 1, "ci_high": 200} for m in tables.COSTS]
    return pd.DataFrame(rows)


def test_no_defence_is_left_out_of_the_rates_and_each_says_how_it_was_tuned():
    table = tables.defence_rates(defence_rows())
    assert table.defence.tolist() == ["unguarded", "cmrm", "guard"] and table.n.tolist() == [60] * 3
    assert table["rank"].tolist() == ["", "1", ""] and table["attack success"].str.startswith("0.").all()
    assert table.tuning.tolist() == ["", "layer 3, strength 2: best of 9 on validation", "best of 8 on validation"]


def test_costs_are_tabulated_in_tokens_passes_and_seconds():
    table = tables.defence_costs(defence_rows())
    assert list(table.columns) == ["modality", "defence", "tokens", "passes", "seconds", "n"]
    assert table.tokens.tolist() == ["60.00 [1.00, 200.00]", "120.00 [1.00, 200.00]", "90.00 [1.00, 200.00]"]
    with pytest.raises(ValueError, match="defence_costs of costs"):
        tables.defence_costs(rate_rows())


def test_a_table_for_a_notebook_is_rounded_without_row_numbers_and_has_intervals_next_to_values():
    rows = pd.DataFrame(
        {
            "fit_modality": ["text", "a|b"],
            "value": [0.123456, 1.0],
            "ci_low": [0.1, None],
            "ci_high": [0.2, None],
            "n": [60.0, None],
            "category": [None, None],
        },
        index=[1458, 1459],
    )
    assert tables.for_notebook(rows).splitlines() == [
        "| fit modality   | value             | n   |",
        "|:---------------|:------------------|:----|",
        "| text           | 0.12 [0.10, 0.20] | 60  |",
        "| a\\|b           | 1.00              |     |",
    ]
    assert tables.for_notebook(rows)._repr_markdown_() == str(tables.for_notebook(rows))


def many_arms():
    """Two defences and a bound in the six settings of the study."""
    rows = []
    places = [("plain", name) for name in ("text", "blank", "scene")] + [
        ("jailbreak", name) for name in ("text", "blank")
    ]
    for setting, modality in [*places, ("multimodal", "typographic")]:
        for defence, asr in (("unguarded", 0.97), ("adashield_s", 0.42), ("guard", 0.03), ("guard_full_state", 0.0)):
            own = [
                row | {"defence": defence, "modality": modality} for row in attack_rows(setting=setting, asr=asr)[:2]
            ]
            rows += [
                row | {"value": 1.0 if defence == "adashield_s" else 0.0} if row["metric"] != "asr" else row
                for row in own
            ]
    return pd.DataFrame(rows)


def test_the_summary_has_a_column_for_each_setting_and_the_best_in_bold():
    table = tables.defence_summary(many_arms())
    assert list(table.columns) == [
        "defence", "text only", "blank", "scene", "jailbreak, text only", "jailbreak, blank", "text in picture"
    ]  # fmt: skip
    assert table.defence.tolist() == ["unguarded", "AdaShield-S", "guard", "full state patched †"]
    # A bound is not the best, whatever it reaches.
    assert table["blank"].tolist() == ["97/**0**", "42/100", "**3**/**0**", "0/0"]


def test_the_summary_fits_one_of_two_columns_in_latex():
    text = tables.to_latex(tables.defence_summary(many_arms()), "c", "t")
    assert r"\textbf{3}/\textbf{0}" in text and r"\rotatebox{90}{jailbreak, blank}" in text
    assert r"\scriptsize\setlength{\tabcolsep}{2.5pt}" in text
    size, gap, font = 7, 2 * 2.5, FontProperties(family="cmr10")
    body = [line.removesuffix(r"\\") for line in text.splitlines() if line.endswith(r"\\")]
    cells = [[re.sub(r"\\textbf{(.*?)}", r"\1", cell).strip() for cell in line.split("&")] for line in body]

    def width(cell: str) -> float:
        # A head that is turned is as wide as it is high.
        is_upright = cell.startswith(r"\rotatebox")
        return 1.2 * size if is_upright else TextPath((0, 0), cell, size=size, prop=font).get_extents().width

    widths = [max(width(row[j]) for row in cells if row[j]) for j in range(7)]
    assert (sum(widths) + 7 * gap) / 72 <= min(PAGE_WIDTHS)


def test_all_readings_are_in_the_table_for_appendices():
    table = tables.readings(reading_rows())
    assert table.reading.tolist() == ["ablate", "substitute", "substitute, sign flipped", "random directions"]
    assert table["gain, nats"].tolist() == [
        "-7.00 [-8.00, -6.00]",
        "2.00 [1.00, 3.00]",
        "-6.00 [-7.00, -5.00]",
        "0.50 [-0.50, 1.50]",
    ]
    assert table["harmless answered well"].tolist() == ["0.40"] * 4
