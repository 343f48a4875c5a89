"""Verdicts follow from the tables: each claim is made to hold, to fail and to be undecided."""

from dataclasses import replace

import pandas as pd
import pytest

from studies import claims
from studies.bookkeeping.verdict_words import NOT_SHOWN, NOT_TESTABLE, REPRODUCED, SHOWN, UNDECIDED
from studies.claims import Tables, verdicts

LAYER = 3
ASR = "the guard lowers attack success, also below the baselines that can be tested"


def row(value, width=0.04, **columns):
    return columns | {"value": value, "ci_low": value - width, "ci_high": value + width, "n": 60}


def tables(
    model="organism",
    dataset="organism",
    text=0.95,
    blank=0.7,
    guard=0.1,
    unguarded=0.6,
    reminder=0.4,
    alone=-3.0,
    put_back=2.0,
    flipped=-2.0,
    over_random=1.5,
    fluent=2.0,
    coherence=0.95,
    over_refusal=0.02,
    standing="ranked",
):
    logistic = {"probe": "logistic", "setting": "folds", "modality": "text", "fit_modality": "text", "metric": "auroc"}
    logistic |= {"split": "test", "site": "resid_post", "token": "last"}
    ssd, pictured = {"probe": "ssd", "setting": "anchors"}, ("blank", "typographic")
    dropped = logistic | ssd | {"metric": "auroc_drop"}
    separability = [
        row(text, **logistic, layer=LAYER),
        row(0.5, **logistic, layer=LAYER, control="shuffled_labels"),
        row(0.6, **logistic, layer=1),
        row(0.9, **logistic | {"split": "train"}, layer=LAYER),
        row(0.9, **logistic | {"probe": "bag_of_words", "setting": "anchors", "site": None, "token": None}),
        row(text, **logistic | ssd, layer=LAYER),
        *(row(blank, **logistic | ssd | {"modality": name}, layer=LAYER) for name in pictured),
        *(row(text - blank, 0.03, **dropped | {"modality": name}, layer=LAYER) for name in pictured),
        *(row(0.01, **dropped | {"modality": name, "metric": "auroc_drop_p"}, layer=LAYER) for name in pictured),
    ]
    refusal = {"metric": "refusal_rate", "modality": "blank", "judge": "exact@1", "setting": "finalists"}
    sweep = [
        row(0.4, defence="unguarded", **refusal),
        row(0.9, defence="guard", rule="substitute", layer=LAYER, strength=1.0, selection_rule="limit", **refusal),
    ]
    score = {"setting": "compared", "control": None}
    readings = [
        row(number, 0.5, modality=modality, metric=metric, **score | {"rule": rule, "gate": gate, "control": control})
        for modality in ("blank", "scene")
        for rule, gate, control, metric, number in (
            ("ablate", "always", None, "refusal_score_gain", alone),
            ("substitute", "sign", None, "refusal_score_gain", put_back),
            ("substitute", "sign", None, "refusal_score_over_random", over_random),
            ("substitute", "sign", "sign_flipped", "refusal_score_gain", flipped),
        )
    ]
    as_text = {"setting": "plain", "modality": "text", "metric": "asr", "judge": "exact@1"}
    defence = [row(0.02, defence="unguarded", **as_text)]
    for setting, modality, reference in (
        ("plain", "blank", "prompt_text"),
        ("jailbreak", "blank", "prompt_text"),
        ("multimodal", "typographic", "transcription"),
    ):
        labels = {"setting": setting, "modality": modality, "judge": "exact@1"}
        defence.append(row(unguarded, defence="unguarded", metric="asr", **labels))
        for name in ("self_reminder", "goal_priority"):
            defence.append(row(reminder, defence=name, metric="asr", standing=standing, **labels))
        for name, number in (("unguarded", unguarded), ("self_reminder", reminder), ("goal_priority", reminder)):
            change = row(guard - number, 0.08, defence="guard", reference=reference, metric="asr_change", **labels)
            defence.append(change | {"versus": name, "standing": "ranked"})
        for name in ("guard", "text_verdict"):
            defence.append(row(guard, defence=name, reference=reference, metric="asr", **labels))
    plain = {"setting": "plain", "modality": "blank", "category": "harmless"}
    defence += [
        row(2.0, defence="unguarded", metric="perplexity", **plain),
        row(fluent, defence="guard", metric="perplexity", **plain),
        row(coherence, defence="guard", metric="coherence", judge="exact@1", **plain),
        row(over_refusal, defence="guard", metric="over_refusal_rate", judge="exact@1", **plain | {"category": None}),
    ]
    frames = [pd.DataFrame(rows) for rows in (separability, sweep, defence)]
    for frame, columns in zip(
        frames, (["fit_modality", "control"], ["rule", "strength"], ["reference", "category"]), strict=True
    ):
        for column in columns:
            frame[column] = frame.get(column)
    frames[2]["model"], frames[2]["dataset"] = model, dataset
    separability, sweep, defence = frames
    return Tables(separability, sweep, pd.DataFrame(), pd.DataFrame(readings), defence, pd.DataFrame())


def verdict(tables, claim):
    return next(entry.verdict for entry in verdicts(tables) if entry.claim == claim)


def test_every_claim_can_be_shown():
    assert {entry.verdict for entry in verdicts(tables())} == {SHOWN}
    assert len(verdicts(tables())) == len(claims.CLAIMS)


@pytest.mark.parametrize(
    ("claim", "changes", "expected"),
    [
        ("harmful and harmless are separable as text", {"text": 0.55}, NOT_SHOWN),
        ("harmful and harmless are separable as text", {"text": 0.83}, UNDECIDED),
        ("an image blurs them", {"blank": 1.0}, NOT_SHOWN),
        ("(beyond the paper) a request inside a picture is blurred", {"blank": 1.0}, NOT_SHOWN),
        ("an image blurs them", {"blank": 0.93}, UNDECIDED),
        ("an image lowers refusal", {"unguarded": 0.02}, NOT_SHOWN),
        ("an image lowers refusal", {"unguarded": 0.05}, UNDECIDED),
        (ASR, {"guard": 0.6}, NOT_SHOWN),
        (ASR, {"guard": 0.5}, NOT_SHOWN),
        (ASR, {"guard": 0.5, "standing": NOT_TESTABLE}, SHOWN),
        (ASR, {"guard": 0.35}, UNDECIDED),
        (ASR, {"guard": 0.55, "reminder": 0.7}, UNDECIDED),
        ("the guard keeps fluency", {"fluent": 3.0}, NOT_SHOWN),
        ("the guard keeps fluency", {"fluent": 2.2}, UNDECIDED),
        ("the guard keeps fluency", {"coherence": 0.7}, NOT_SHOWN),
        ("the guard keeps fluency", {"coherence": 0.9}, UNDECIDED),
        ("the guard keeps fluency", {"over_refusal": 0.95}, NOT_SHOWN),
        ("the guard keeps fluency", {"over_refusal": 0.07}, UNDECIDED),
        ("(against the abstract's wording) projecting out alone lowers refusal", {"alone": 0.6}, NOT_SHOWN),
        ("(against the abstract's wording) projecting out alone lowers refusal", {"alone": -0.4}, UNDECIDED),
        ("the text-only LLM's own coordinate brings refusal back", {"put_back": -1.0}, NOT_SHOWN),
        ("the text-only LLM's own coordinate brings refusal back", {"put_back": 0.3}, UNDECIDED),
        ("the text-only LLM's own coordinate brings refusal back", {"flipped": 1.0}, NOT_SHOWN),
        ("the text-only LLM's own coordinate brings refusal back", {"over_random": -1.0}, NOT_SHOWN),
        ("the text-only LLM's own coordinate brings refusal back", {"over_random": 0.2}, UNDECIDED),
    ],
)
def test_a_claim_can_fail(claim, changes, expected):
    assert verdict(tables(**changes), claim) == expected


def test_missing_measurements_are_not_testable():
    complete = tables()
    incomplete = replace(complete, defence=complete.defence[complete.defence.setting != "jailbreak"])
    assert verdict(incomplete, ASR) == NOT_TESTABLE


def test_on_queries_of_a_user_the_built_in_model_proves_nothing():
    assert {entry.verdict for entry in verdicts(tables(dataset="advbench"))} == {NOT_TESTABLE}


def test_only_the_papers_own_model_can_reproduce_a_claim():
    assert verdict(tables(model="llava-1.5-7b-hf"), ASR) == REPRODUCED
    assert verdict(tables(model="llava-v1.6-mistral-7b-hf"), ASR) == "shown on llava-v1.6-mistral-7b-hf"
    assert verdict(tables(model="llava-1.5-7b-hf", guard=0.6), ASR) == NOT_SHOWN
