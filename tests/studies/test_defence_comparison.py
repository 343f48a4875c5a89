"""The study with every defence, as at scale full, on a few prompts of the built-in model."""

from dataclasses import replace
from pathlib import Path

import pytest

from interp.directions import SafetyDirection
from interp.guard import Guard
from studies import defence_comparison, prompt_changes
from studies.defences.answer_log import read_answers
from studies.defences.attack_sets import attack_sets
from studies.experiment.config import SCALES, Config
from studies.experiment.experiment import load
from studies.guards.configuration import GuardConfiguration
from studies.organism import language

FEW = 3
"""Queries of each class."""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        rivals = replace(SCALES["tiny"], n_evaluated=FEW, rivals=True)
        patch.setitem(SCALES, "tiny", rivals)
        patch.setattr(defence_comparison, "N_COSTED", 1)
        config = Config(scale="tiny", out=str(tmp_path_factory.mktemp("defence")), split="validation")
        loaded = load(config)
        return config, loaded, defence_comparison.run(config, loaded, reading_of(loaded))


def reading_of(loaded):
    direction = SafetyDirection.fit(loaded.activations("anchors", "text"))
    return GuardConfiguration("here", Guard(direction, (7,), "add_reference", strength=2.0))


def test_every_defence_is_in_the_table_with_how_it_stands(made):
    table = made[2]
    told = table.drop_duplicates(["defence", "reference", "standing"])
    stands = told.groupby("defence").standing.agg(set).to_dict()
    assert stands["unguarded"] == {"baseline"} and stands["guard_random"] == {"control"}
    assert stands["guard_full_state"] == stands["text_verdict"] == {"bound"}
    assert {"self_reminder", "goal_priority", "adashield_s", "safety_prompt", "ecso", "caption_only"} <= set(stands)
    assert {"shift_dc", "cmrm", "infer_aligner", "astra"} <= set(stands)
    of_guard = told[told.defence == "guard"].set_index("reference").standing.to_dict()
    assert of_guard == {"prompt_text": "ranked", "transcription": "ranked", "oracle": "bound"}
    # Three harmful requests can show no effect.
    assert stands["self_reminder"] == stands["ecso"] == {"not testable here"}


def test_settings_modalities_and_measures_are_there(made):
    table = made[2]
    places = set(table[["setting", "modality"]].itertuples(index=False, name=None))
    assert {("plain", "text"), ("plain", "blank"), ("jailbreak", "text"), ("multimodal", "typographic")} <= places
    assert {("xstest_like", "text"), ("mossbench_like", "scene"), ("transcription", "typographic")} <= places
    assert {("description", "noise"), ("description", "scene"), ("cost", "blank"), ("cost", "typographic")} <= places
    of_attacks = set(table[table.setting == "plain"].metric)
    assert {"asr", "over_refusal_rate", "paired_rate", "refusal_score", "kl", "perplexity", "coherence"} <= of_attacks
    assert {"asr_change", "asr_change_p", "asr_change_p_holm", "gate_true_positive_rate"} <= of_attacks
    assert set(table[table.setting == "xstest_like"].metric) & {"asr", "refusal_rate"} == set()


def test_costs_count_what_each_defence_asks_of_the_model(made):
    table = made[2]
    passes = table[(table.setting == "cost") & (table.modality == "typographic") & (table.metric == "forward_passes")]
    cost = passes.set_index(["defence", passes.reference.fillna("")]).value
    # The answer again and again, and one pass for each text that is read.
    assert cost["guard", "prompt_text"] >= cost["unguarded", ""] + 1
    assert cost["guard", "transcription"] > cost["guard", "oracle"]
    # A guard is measured by itself: no unguarded answer rides beside it.
    assert cost["guard", "prompt_text"] <= cost["unguarded", ""] + 3
    assert cost["ecso", ""] > cost["unguarded", ""] and cost["text_verdict", "prompt_text"] > cost["unguarded", ""]
    assert set(table[table.setting == "cost"].metric) == {"seconds", "forward_passes", "tokens"}


def test_answers_are_on_disk_with_every_judges_verdict(made):
    config, loaded, table = made
    answers = read_answers(f"{config.out}/answers.jsonl")
    names = {judge.name for judge in loaded.judges}
    assert all(set(one.verdicts) == (set() if one.right else names) for one in answers)
    asr = table[(table.defence == "unguarded") & (table.metric == "asr") & (table.setting == "multimodal")]
    mine = [a for a in answers if a.setting == "multimodal" and a.defence == "unguarded" and a.harmful]
    judge = loaded.judges[0].name
    assert asr[asr.judge == judge].value.item() == sum(a.verdicts[judge]["harmful"] for a in mine) / len(mine)


def test_other_peoples_queries_have_no_sets_of_the_built_in_language(made):
    _, loaded, _ = made
    rivals = replace(SCALES["tiny"], rivals=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SCALES, "tiny", rivals)
        others = attack_sets(replace(loaded, dataset="mine", config=replace(loaded.config, model="some-vlm")))
    assert {trial.setting for trial in others} == {"plain", "jailbreak", "multimodal"}


@pytest.mark.parametrize("split", ["validation", "test"])
def test_what_only_looks_dangerous_names_harmful_objects_and_was_never_taught(split):
    queries, pairs = language.over_sensitive(split), language.splits()[split]
    taught = set(language.trained_cores(True)) | set(language.trained_cores(False)) | set(language.held_back_cores())
    assert len({query.text for query in queries}) == len(pairs) == 60
    for query, pair in zip(queries, pairs, strict=True):
        assert not query.harmful and query.rendered not in taught
        assert query.pair == pair.name and query.rendered.split()[-1] == pair.harmful.split()[-1]
    for (query, thing), pair in zip(language.dangerous_sights(split), pairs, strict=True):
        assert not query.harmful and query.rendered == pair.harmless and pair.harmful.endswith(thing)


def test_what_the_guard_changed_is_what_it_explains_and_what_was_answered(made):
    config, loaded, _ = made
    answers, reading = read_answers(Path(config.out) / "answers.jsonl"), reading_of(loaded)
    table = prompt_changes.run(config, loaded, reading, answers)
    kinds = table.drop_duplicates(["setting", "modality", "reference"])[["setting", "modality", "reference"]]
    assert ("multimodal", "typographic", "transcription") in set(kinds.itertuples(index=False, name=None))
    assert len(table) == 2 * FEW * len(kinds) and list(table.columns) == list(prompt_changes.COLUMNS)
    for (modality, reference), rows in table.groupby(["modality", "reference"]):
        prompts = loaded.prompts("validation", modality)
        texts = loaded.asker.read(prompts, reference)
        for i in (0, 1, 3):
            (told,) = reading.guard.explain(loaded.vlm, prompts[i], [texts[i]]).to_dict("records")
            row = rows.iloc[i]
            assert row.text == prompts[i].query.text and row.layer == 7 and row.gate == told["gate"]
            for name in ("coordinate", "reference_coordinate", "after", "delta_norm"):
                assert row[name] == pytest.approx(told[name], rel=1e-3, abs=1e-3), (modality, reference, name)
        said = [one for one in answers if one.modality == modality and one.setting in prompt_changes.SETTINGS]
        plain = {one.request: one for one in said if one.defence == "unguarded"}
        guarded = {o.request: o for o in said if o.defence == "guard" and o.about["reference"] == reference}
        for row in rows.itertuples():
            assert (row.answer, row.guarded_answer) == (plain[row.text].answer, guarded[row.text].answer)
            assert row.guarded_refused == guarded[row.text].verdicts[loaded.judges[0].name]["refused"]
    assert table.gate.any() and not table.gate.all() and (table.delta_norm[~table.gate] == 0).all()


def test_only_the_built_in_model_is_judged_by_its_own_sentences(made):
    config, loaded, _ = made
    other = replace(loaded, config=replace(config, model="llava-1.5-7b-hf"))
    assert [judge.name for judge in loaded.judges] == ["exact@1", "keywords@1"]
    assert [judge.name for judge in other.judges] == ["keywords@1"]
    assert other.judges[0].refuses("I cannot assist with that request.")
