import pandas as pd

from studies.layer_sweep import FALLBACK_RULE, SELECTION_RULE, choose


def rows(layer, rule, refusal, over_refusal, kl, strength=1.0):
    about = {"defence": "guard", "layer": layer, "rule": rule, "strength": strength}
    metrics = {"refusal_rate": refusal, "over_refusal_rate": over_refusal, "kl": kl}
    return [
        about | {"metric": metric, "modality": modality, "value": value, "judge": None if metric == "kl" else judge}
        for modality in ("blank", "scene")
        for metric, value in metrics.items()
        for judge in (("exact@1",) if metric == "kl" else ("exact@1", "keywords@1"))
    ]


def table(*configurations):
    return pd.DataFrame([row for one in configurations for row in one])


def test_the_highest_refusal_under_the_limit_is_chosen():
    best = rows(2, "substitute", 0.9, 0.05, 0.3)
    greedy = rows(3, "substitute", 1.0, 0.2, 0.1)
    assert choose(table(rows(1, "substitute", 0.8, 0.0, 0.1), best, greedy)) == {
        "layer": 2,
        "rule": "substitute",
        "strength": 1.0,
        "selection_rule": SELECTION_RULE,
    }


def test_the_limit_holds_in_every_modality():
    uneven = rows(3, "substitute", 1.0, 0.0, 0.1)
    for row in uneven:
        if row["metric"] == "over_refusal_rate" and row["modality"] == "scene":
            row["value"] = 0.3
    assert choose(table(uneven, rows(1, "ablate", 0.2, 0.0, 0.0, strength=None)))["rule"] == "ablate"


def test_ties_go_to_the_smaller_kl_and_then_to_the_lower_layer():
    tied = [rows(layer, "substitute", 0.9, 0.0, kl) for layer, kl in ((1, 0.5), (4, 0.2), (2, 0.2))]
    assert choose(table(*tied))["layer"] == 2


def test_where_all_are_over_the_limit_the_choice_says_so():
    worse, bad = rows(1, "substitute", 1.0, 0.4, 0.1), rows(2, "substitute", 0.5, 0.2, 0.1)
    choice = choose(table(worse, bad))
    assert choice["layer"] == 2 and choice["selection_rule"] == FALLBACK_RULE
