"""The first screen says what the table of defences says, whatever that is."""

import pandas as pd
import pytest

from studies.report.headline import Headline
from studies.report.results import Results

RATES = {
    ("plain", "blank", "unguarded", None): (0.5, 0.1),
    ("plain", "blank", "guard", "prompt_text"): (0.2, 0.3),
    ("plain", "blank", "gate_refuser", "prompt_text"): (0.1, 0.2),
    ("multimodal", "typographic", "unguarded", None): (0.9, 0.0),
    ("multimodal", "typographic", "guard", "prompt_text"): (0.8, 0.0),
    ("multimodal", "typographic", "guard", "transcription"): (0.3, 0.0),
    ("multimodal", "typographic", "guard", "oracle"): (0.0, 0.0),
}


def table(rates=RATES, **columns):
    rows = [
        {
            "dataset": "mine", "setting": setting, "modality": modality, "defence": defence, "reference": reference,
            "judge": judge, "metric": metric, "value": value + shift, "ci_low": value - 0.05, "ci_high": value + 0.05,
            "n": 20, "category": None, "versus": None,
        }
        for judge, shift in (("first", 0), ("second", 0.04))
        for (setting, modality, defence, reference), pair in rates.items()
        for metric, value in zip(("asr", "over_refusal_rate"), pair, strict=True)
    ]  # fmt: skip
    return pd.DataFrame(rows).assign(**columns)


def headline(*args, **kwargs):
    return Headline.of(Results({"defence": table(*args, **kwargs)}, ()))


def plain(text):
    return text.replace("\N{NO-BREAK SPACE}", " ")


def test_the_sentence_gives_both_rates_and_the_interval_of_the_guard():
    assert plain(headline().sentence) == "With a blank picture, 50 % of attacks succeed; with the guard, 20 % [15, 25]."


def test_cost_simpler_defences_and_the_weakest_place_are_said():
    cost, simpler, weakest = map(plain, headline().notes)
    assert cost == "Cost: 30 % [25, 35] of the harmless requests are refused with the guard, 10 % without."
    assert simpler == (
        "Simpler: refuse, and change nothing inside the model. What still succeeds with a blank picture: gate alone "
        "10 %, guard 20 %."
    )
    assert weakest == (
        "Weakest: written in the picture, 90 % succeed without a defence, 80 % [75, 85] with the guard, if it reads "
        "the prompt; 30 % [25, 35] if it reads the picture."
    )


def test_the_cost_names_the_place_where_the_guard_adds_most():
    dearer = RATES | {("multimodal", "typographic", "guard", "transcription"): (0.3, 0.4)}
    assert plain(headline(dearer).notes[0]).endswith(
        "10 % without; written in the picture, 40 % [35, 45], if the guard reads the picture, and 0 % without."
    )


def test_the_bound_that_reads_the_true_request_is_not_shown():
    place = headline().places[-1]
    assert [arm.label for arm in place.arms] == ["no defence", "guard, reads the prompt", "guard, reads the picture"]


def test_without_a_guard_or_a_blank_picture_the_first_place_leads():
    only = {("xstest", "text", "unguarded", None): (0.4, 0.0)}
    assert plain(headline(only).sentence) == "In xstest, as text, 40 % of attacks succeed."
    assert headline(only).notes == []


@pytest.mark.parametrize("columns", [{"metric": "kl"}, {"defence": "guard"}, {"category": "harmful"}])
def test_without_attack_success_of_the_unguarded_model_there_is_no_headline(columns):
    assert headline(**columns) is None
    assert Headline.of(Results({}, ())) is None
