"""The study with every defence, as at scale `full`, on a few prompts of the built-in model."""

from dataclasses import replace
from pathlib import Path

import pytest

from interp.directions import SafetyDirection
from interp.guard import Guard
from studies import defence_comparison, prompt_changes
from studies.defences.answer_log import read_answers
from studies.defences.attack_sets import attack_sets
from studies.experiment.config import SCALES, Config
from studies.experiment.experiment import load_experiment
from studies.guards.configuration import GuardConfiguration
from studies.organism import language

FEW = 3
"""Queries per class."""


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        rivals = replace(SCALES["tiny"], n_evaluated=FEW, rivals=True)
        patch.setitem(SCALES, "tiny", rivals)
        patch.setattr(defence_comparison, "N_COSTED", 1)
        config = Config(scale="tiny", out=str(tmp_path_factory.mktemp("defence")), split="validation")
        experiment = load_experiment(config)
        return config, experiment, defence_comparison.run(config, experiment, configuration_of(experiment)).table


def configuration_of(experiment):
    direction = SafetyDirection.fit(experiment.activations("anchors", "text"))
    return GuardConfiguration("here", Guard(direction, (7,), "add_reference", strength=2.0))


def test_every_defence_is_in_the_table_with_its_ranking_status(study):
    table = study[2]
    distinct = table.drop_duplicates(["defence", "reference", "standing"])
    standings = distinct.groupby("defence").standing.agg(set).to_dict()
    assert standings["unguarded"] == {"baseline"} and standings["guard_random"] == {"control"}
    assert standings["guard_full_state"] == standings["text_verdict"] == {"bound"}
    assert {"self_reminder", "goal_priority", "adashield_s", "safety_prompt", "ecso", "caption_only"} <= set(standings)
    assert {"shift_dc", "cmrm", "infer_aligner", "astra"} <= set(standings)
    by_reference = distinct[distinct.defence == "guard"].set_index("reference").standing.to_dict()
    assert by_reference == {"prompt_text": "ranked", "transcription": "ranked", "oracle": "bound"}
    # Three harmful requests are too few to show an effect.
    assert standings["self_reminder"] == standings["ecso"] == {"not testable here"}


def test_settings_modalities_and_metrics_are_in_the_table(study):
    table = study[2]
    conditions = set(table[["setting", "modality"]].itertuples(index=False, name=None))
    assert {("plain", "text"), ("plain", "blank"), ("jailbreak", "text"), ("multimodal", "typographic")} <= conditions
    assert {("xstest_like", "text"), ("mossbench_like", "scene"), ("transcription", "typographic")} <= conditions
    assert {
        ("description", "noise"),
        ("description", "scene"),
        ("cost", "blank"),
        ("cost", "typographic"),
    } <= conditions
    metrics = set(table[table.setting == "plain"].metric)
    assert {"asr", "over_refusal_rate", "paired_rate", "refusal_score", "kl", "perplexity", "coherence"} <= metrics
    assert {"asr_change", "asr_change_p", "asr_change_p_holm", "gate_true_positive_rate"} <= metrics
    assert set(table[table.setting == "xstest_like"].metric) & {"asr", "refusal_rate"} == set()


def test_costs_count_the_forward_passes_of_each_defence(study):
    table = study[2]
    passes = table[(table.setting == "cost") & (table.modality == "typographic") & (table.metric == "forward_passes")]
    cost = passes.set_index(["defence", passes.reference.fillna("")]).value
    # The passes of the answer, and one more for each text that is read.
    assert cost["guard", "prompt_text"] >= cost["unguarded", ""] + 1
    assert cost["guard", "transcription"] > cost["guard", "oracle"]
    # A guard is measured by itself, without an unguarded answer in the same batch.
    assert cost["guard", "prompt_text"] <= cost["unguarded", ""] + 3
    assert cost["ecso", ""] > cost["unguarded", ""] and cost["text_verdict", "prompt_text"] > cost["unguarded", ""]
    assert set(table[table.setting == "cost"].metric) == {"seconds", "forward_passes", "tokens"}


def test_answers_are_saved_with_every_judges_verdict(study):
    config, experiment, table = study
    answers = read_answers(f"{config.out}/answers.jsonl")
    names = {judge.name for judge in experiment.judges}
    assert all(set(answer.verdicts) == (set() if answer.right else names) for answer in answers)
    asr = table[(table.defence == "unguarded") & (table.metric == "asr") & (table.setting == "multimodal")]
    attacks = [a for a in answers if a.setting == "multimodal" and a.defence == "unguarded" and a.harmful]
    judge = experiment.judges[0].name
    assert asr[asr.judge == judge].value.item() == sum(a.verdicts[judge]["harmful"] for a in attacks) / len(attacks)


def test_a_users_own_queries_get_no_prompt_sets_of_the_built_in_language(study):
    _, experiment, _ = study
    rivals = replace(SCALES["tiny"], rivals=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SCALES, "tiny", rivals)
        prompt_sets = attack_sets(
            replace(experiment, dataset="mine", config=replace(experiment.config, model="some-vlm"))
        )
    assert {prompt_set.setting for prompt_set in prompt_sets} == {"plain", "jailbreak", "multimodal"}


@pytest.mark.parametrize("split", ["validation", "test"])
def test_requests_that_only_look_dangerous_name_harmful_objects_and_were_never_trained_on(split):
    queries, pairs = language.over_sensitive(split), language.splits()[split]
    trained = set(language.trained_cores(True)) | set(language.trained_cores(False)) | set(language.held_back_cores())
    assert len({query.text for query in queries}) == len(pairs) == 60
    for query, pair in zip(queries, pairs, strict=True):
        assert not query.harmful and query.rendered not in trained
        assert query.pair == pair.name and query.rendered.split()[-1] == pair.harmful.split()[-1]
    for (query, thing), pair in zip(language.dangerous_sights(split), pairs, strict=True):
        assert not query.harmful and query.rendered == pair.harmless and pair.harmful.endswith(thing)


def test_prompt_changes_agree_with_the_guards_explanation_and_the_saved_answers(study):
    config, experiment, _ = study
    answers, configuration = read_answers(Path(config.out) / "answers.jsonl"), configuration_of(experiment)
    table = prompt_changes.run(config, experiment, configuration, answers)
    conditions = table.drop_duplicates(["setting", "modality", "reference"])[["setting", "modality", "reference"]]
    assert ("multimodal", "typographic", "transcription") in set(conditions.itertuples(index=False, name=None))
    assert len(table) == 2 * FEW * len(conditions) and list(table.columns) == list(prompt_changes.COLUMNS)
    for (modality, reference), rows in table.groupby(["modality", "reference"]):
        prompts = experiment.prompts("validation", modality)
        texts = experiment.cached_model.reference_texts(prompts, reference)
        for i in (0, 1, 3):
            (explained,) = configuration.guard.explain(experiment.vlm, prompts[i], [texts[i]]).to_dict("records")
            row = rows.iloc[i]
            assert row.text == prompts[i].query.text and row.layer == 7 and row.gate == explained["gate"]
            for name in ("coordinate", "reference_coordinate", "after", "delta_norm"):
                assert row[name] == pytest.approx(explained[name], rel=1e-3, abs=1e-3), (modality, reference, name)
        own = [a for a in answers if a.modality == modality and a.setting in prompt_changes.SETTINGS]
        plain = {a.request: a for a in own if a.defence == "unguarded"}
        guarded = {a.request: a for a in own if a.defence == "guard" and a.about["reference"] == reference}
        for row in rows.itertuples():
            assert (row.answer, row.guarded_answer) == (plain[row.text].answer, guarded[row.text].answer)
            assert row.guarded_refused == guarded[row.text].verdicts[experiment.judges[0].name]["refused"]
    assert table.gate.any() and not table.gate.all() and (table.delta_norm[~table.gate] == 0).all()


def test_only_the_built_in_model_gets_the_exact_judge(study):
    config, experiment, _ = study
    other = replace(experiment, config=replace(config, model="llava-1.5-7b-hf"))
    assert [judge.name for judge in experiment.judges] == ["exact@1", "keywords@1"]
    assert [judge.name for judge in other.judges] == ["keywords@1"]
    assert other.judges[0].refuses("I cannot assist with that request.")
