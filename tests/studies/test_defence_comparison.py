"""The study with every defence, as at scale `full`, on a few prompts of the built-in model."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from interp.directions import SafetyDirection
from interp.guard import Guard
from studies import defence_comparison, layer_sweep, prompt_changes
from studies.defences.answer_log import read_answers
from studies.defences.attack_sets import attack_sets
from studies.experiment.config import SCALES, Config
from studies.experiment.experiment import load_experiment
from studies.generation.generate import Generation
from studies.guards import random_directions
from studies.guards.anchor_fits import AnchorFits
from studies.guards.configuration import GuardConfiguration
from studies.organism import language

FEW = 3
"""Queries per class."""
N_DRAWS = 30
"""Random directions."""
SHORT = Generation(max_new_tokens=14)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        rivals = replace(SCALES["tiny"], n_evaluated=FEW, rivals=True, n_costed=1)
        patch.setitem(SCALES, "tiny", rivals)
        patch.setattr(random_directions, "N_DRAWS", N_DRAWS)
        # Long enough for every refusal.
        config = Config("organism", None, "tiny", str(tmp_path_factory.mktemp("defence")), "validation", 0, SHORT)
        experiment = load_experiment(config)
        result = defence_comparison.run(config, experiment, configuration_of(experiment))
        result.random.to_csv(Path(config.out) / "random.csv", index=False)
        return config, experiment, result.table


def configuration_of(experiment):
    direction = SafetyDirection.fit(experiment.activations("anchors", "text"))
    return GuardConfiguration("here", Guard(direction, (7,), "add_reference", strength=2.0))


def test_every_defence_is_in_the_table_with_its_ranking_status(study):
    table = study[2].dropna(subset="defence")
    attacks = table[table.setting.isin(["plain", "jailbreak", "multimodal"])]
    distinct = attacks.drop_duplicates(["defence", "reference", "standing"])
    standings = distinct.groupby("defence").standing.agg(set).to_dict()
    assert standings.pop("unguarded") == {"baseline"} and standings.pop("guard_always") == {"control"}
    for name in ("guard_full_state", "text_verdict", "text_score_verdict", "gate_refuser"):
        assert standings.pop(name) == {"bound"}
    by_reference = distinct[distinct.defence == "guard"].set_index("reference").standing.to_dict()
    untested = "not testable here"
    assert by_reference == {"prompt_text": untested, "transcription": untested, "oracle": "bound"}
    # Three attacks leave no room for any defence.
    prompts = {"self_reminder", "goal_priority", "adashield_s", "safety_prompt"}
    rivals = {"ecso", "caption_only", "shift_dc", "cmrm", "infer_aligner", "astra"}
    assert set(standings) - {"guard"} == prompts | rivals
    assert all(standings[name] == {untested} for name in prompts | rivals)
    harmless = table[table.setting.isin(["xstest_like", "mossbench_like"])]
    assert {"ranked"} == set(harmless[harmless.defence.isin(prompts | rivals | {"guard"})].standing)


def test_related_methods_are_tuned_on_validation_with_the_guards_budget(study):
    _, experiment, table = study
    tuning = table.dropna(subset="defence").groupby("defence").tuning.agg(lambda own: own.dropna().unique().tolist())
    n_tried = len(layer_sweep.GRIDS["tiny"].configurations(AnchorFits.on(experiment))[0])
    for name in ("shift_dc", "cmrm", "infer_aligner", "astra"):
        (chosen,) = tuning[name]
        n = int(chosen.split("best of ")[1].split()[0])
        assert chosen.startswith("layer") and "on validation" in chosen and abs(n - n_tried) <= 5
    for name in ("self_reminder", "safety_prompt", "ecso", "caption_only", "text_verdict"):
        assert tuning[name] == ["untuned"]
    # This guard was made by hand.
    assert tuning["guard"] == tuning["gate_refuser"] == tuning["guard_always"] == ["as given"]
    assert tuning["text_score_verdict"][0].startswith("threshold")


def test_a_guard_from_the_sweep_says_from_how_many_it_was_chosen(study):
    _, experiment, _ = study
    tried, _ = layer_sweep.GRIDS["tiny"].configurations(AnchorFits.on(experiment))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SCALES, "tiny", replace(SCALES["tiny"], rivals=False))
        # Without what the experiment has kept of its scale.
        line_up = defence_comparison._line_up(replace(experiment), tried[-1])
    assert line_up.tuning == f"best of {len(tried)} on validation" and not line_up.related


def test_the_guard_is_placed_among_random_directions_in_every_setting(study):
    config, _, table = study
    draws = pd.read_csv(Path(config.out) / "random.csv")
    rows = table[table.metric.isin(["random_percentile", "random_p"])]
    places = set(rows[["setting", "modality", "reference"]].itertuples(index=False, name=None))
    assert ("jailbreak", "text", "prompt_text") in places and ("multimodal", "typographic", "transcription") in places
    assert len(rows) == len(places) * 2 * 2 and set(rows.defence) == {"guard"} and set(rows.n) == {N_DRAWS}
    percentiles = rows[rows.metric == "random_percentile"].set_index(["setting", "modality", "reference", "category"])
    for place, own in draws.groupby(["setting", "modality", "reference", "metric"]):
        guard, random = own[own.seed.isna()].value.item(), own.dropna(subset="seed").value
        assert len(random) == N_DRAWS and percentiles.value[place] == pytest.approx((random < guard).mean())
    assert len(percentiles) == 2 * len(places)
    assert "guard_random" not in set(table.defence)


def test_the_coverage_of_the_openings_is_in_the_table_once(study):
    (row,) = study[2][study[2].metric == "opening_coverage"].itertuples()
    assert row.split == "anchors" and row.value > 0.95 and row.n > 0


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
    assert {"changed_share", "changed_perplexity_ratio", "changed_coherence", "over_refusal_rank"} <= metrics
    assert set(table[table.setting == "xstest_like"].metric) & {"asr", "refusal_rate"} == set()


def test_costs_count_the_forward_passes_of_each_defence(study):
    table = study[2]
    passes = table[(table.setting == "cost") & (table.modality == "typographic") & (table.metric == "forward_passes")]
    cost = passes.set_index(["defence", passes.reference.fillna("")]).value
    assert {"prompt_text", "transcription"} == set(passes.reference.dropna()) - {"prompt_text+caption"}
    # The passes of the answer, and one more for each text that is read.
    assert cost["guard", "prompt_text"] >= cost["unguarded", ""] + 1
    tokens = table[(table.setting == "cost") & (table.modality == "typographic") & (table.metric == "tokens")]
    tokens = tokens.set_index(["defence", tokens.reference.fillna("")]).value
    assert tokens["guard", "transcription"] > tokens["guard", "prompt_text"] > tokens["unguarded", ""]
    # A guard is measured by itself, without an unguarded answer in the same batch.
    assert cost["guard", "prompt_text"] <= cost["unguarded", ""] + 3
    assert cost["ecso", ""] > cost["unguarded", ""] and cost["text_verdict", "prompt_text"] > cost["unguarded", ""]
    # Harmless texts: one pass each says so, and then the prompt is answered.
    for name in ("text_score_verdict", "gate_refuser"):
        assert cost[name, "prompt_text"] == cost["unguarded", ""] + 1 < cost["text_verdict", "prompt_text"]
    rows = table[table.setting == "cost"]
    assert set(rows.metric) == {"seconds", "forward_passes", "tokens"} and set(rows.n) == {1}
    with_picture = table[(table.setting == "plain") & (table.modality == "blank")]
    assert set(rows[rows.modality == "blank"].defence) == set(with_picture.defence)


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


def test_prompt_changes_of_a_window_are_those_at_its_first_layer(study):
    config, experiment, _ = study
    answers, single = read_answers(Path(config.out) / "answers.jsonl"), configuration_of(experiment)
    window = replace(single, guard=replace(single.guard, layers=(4, 5, 6), gate="always", rule="substitute"))
    table = prompt_changes.run(config, experiment, window, answers)
    assert set(table.layer) == {4} and table.gate.all() and len(table)
    for (modality, reference), rows in table.groupby(["modality", "reference"]):
        prompts = experiment.prompts("validation", modality)
        texts = experiment.cached_model.reference_texts(prompts, reference)
        explained = window.guard.explain(experiment.vlm, prompts[1], [texts[1]]).iloc[0]
        for name in ("coordinate", "reference_coordinate", "after", "delta_norm"):
            assert rows.iloc[1][name] == pytest.approx(explained[name], rel=1e-3, abs=1e-3)


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
    assert [judge.name for judge in other.judges] == ["keywords@2", "lmms_eval@1"]
    # Models that are built here are judged as they were when their results were committed.
    built = replace(experiment, config=replace(config, model="llava-qwen-0.5b"))
    assert [judge.name for judge in built.judges] == ["keywords@1", "lmms_eval@1"]
    assert other.judges[0].refuses("I cannot assist with that request.")
