"""Adaptive attacks on the built-in model at the smallest scale: defences as their attacker sees them, and the table."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from figures import attack_curves
from interp.directions import SafetyDirection
from interp.guard import Guard
from studies import adaptive, claims
from studies.attacks import suffixes
from studies.attacks.attacks import ATTACKS, Attacker
from studies.attacks.lineup import TARGETS, Defended, targets
from studies.attacks.search import AttackSetupError
from studies.attacks.target import AttackTarget
from studies.bookkeeping.checkpoints import Checkpoints
from studies.bookkeeping.verdict_words import NOT_SHOWN, NOT_TESTABLE, SHOWN
from studies.defences.countermeasures import bigram_surprise, screened, text_log_perplexities
from studies.defences.defence import REFUSAL, unguarded
from studies.experiment.config import Config
from studies.experiment.experiment import load_experiment
from studies.generation.generate import answers

FEW = adaptive.AttackSettings(defences=("guard",), budget=5, n_searched=1)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    return load_experiment(Config(scale="tiny", out=str(tmp_path_factory.mktemp("adaptive"))))


@pytest.fixture(scope="module")
def guard(experiment):
    direction = SafetyDirection.fit(experiment.activations("anchors", "text"))
    return Guard(direction, (6,), gate="threshold", strength=2.0, threshold=25.0)


@pytest.fixture(scope="module")
def result(experiment, guard):
    return adaptive.run(experiment.config, FEW, experiment, guard)


@pytest.mark.slow
def test_margins_agree_with_the_answers(experiment, guard):
    model = experiment.cached_model
    prompts = experiment.prompts("validation", "blank", 3)
    names = ("text_verdict", "gate_refuser", "guard_references", "guard_random_layer", "guard_detector")
    for target in targets(names, Defended(experiment, guard, "blank")):
        answered = target.defence.run(model, prompts).answers
        refused = torch.tensor([experiment.judges[0].refuses(answer) for answer in answered])
        margins = target.margins(model, prompts)
        assert margins.shape == (len(target.guards), len(prompts))
        # Guards that are drawn need not agree with each other; on most prompts they do.
        agreement = ((margins.mean(0) > 0) == refused).float().mean()
        assert agreement >= 5 / 6, target.name


def test_a_screen_decides_alone_where_it_refuses(experiment):
    """A planted screen gives what it refuses the fixed refusal, and everything else the model's own answer."""
    model, prompts = experiment.cached_model, experiment.prompts("validation", "blank", 3)

    def odd(model, prompts):
        return torch.tensor([1.0 if i % 2 else -1.0 for i in range(len(prompts))])

    answered = screened("planted", odd, unguarded(), {}).run(model, prompts).answers
    own = answers(model.vlm, prompts, model.generation)
    assert answered == [REFUSAL if i % 2 else own[i] for i in range(len(prompts))]


@pytest.fixture
def attacker(experiment, tmp_path):
    harmful = [prompt for prompt in experiment.prompts("validation", "text", 2) if prompt.query.harmful]
    return lambda seed: Attacker(experiment.cached_model, harmful, harmful, Checkpoints(tmp_path, {}), seed)


def weakened(words, count):
    """A defence that refuses everything, but for texts with several of some words."""

    def margins(model, prompts):
        return torch.tensor([20.0 * (count - sum(word in words for word in p.text.split())) - 10 for p in prompts])

    return AttackTarget(screened("planted", margins, unguarded(), {"words": sorted(words)}), screens=(margins,))


def test_a_guard_with_a_planted_weakness_is_broken_in_nearly_every_run(experiment, attacker, monkeypatch):
    # The model's own refusals are left out: what is planted is all that there is to break.
    monkeypatch.setattr(
        "studies.attacks.target.run_guards",
        lambda vlm, prompts, guards, *rest: type(
            "Runs", (), {"scores": {"refusal_score": torch.full((1, len(prompts)), -9.0)}}
        ),
    )
    words = suffixes.ordinary_words(experiment.vlm)
    target, search = weakened(set(words[::8]), 2), ATTACKS["universal_suffix"].search
    oracle = weakened(set(), 2)
    broken = [search(attacker(seed), target, 150, lambda n: None)[0].trace[-1].score < 1 for seed in range(20)]
    assert sum(broken) >= 0.95 * len(broken)
    for seed in range(3):
        (found,) = search(attacker(seed), oracle, 50, lambda n: None)
        assert len(found.trace) == 1 and found.trace[0].score > 10


@pytest.mark.slow
def test_a_table_has_every_defence_under_every_attack(result):
    rows = result.table[result.table.judge == "exact@1"]
    asr = rows[rows.metric == "asr"]
    assert set(asr.defence) == {"unguarded", "guard"}
    assert set(asr.setting) == {"no_attack", "universal_suffix", "request_suffix", "wording", "picture"}
    for _, curve in asr[asr.setting != "no_attack"].groupby(["setting", "defence", "objective"]):
        assert curve.queries.min() == 0 and (curve.n == 11).all()
        assert ((curve.ci_low <= curve.value) & (curve.value <= curve.ci_high)).all()
        before = asr[(asr.setting == "no_attack") & (asr.defence == curve.defence.iloc[0])]
        assert curve[curve.queries == 0].value.iloc[0] == before.value.iloc[0]
    assert set(rows[rows.metric == "over_refusal_rate"].defence) == set(asr.defence)
    transferred = asr[asr.objective == "transferred"]
    assert set(transferred.defence) == {"guard"}


@pytest.mark.slow
def test_a_second_run_asks_the_model_nothing(result, experiment, guard, monkeypatch):
    def asked(*args, **kwargs):
        raise AssertionError("the model was asked")

    monkeypatch.setattr("studies.attacks.target.run_guards", asked)
    monkeypatch.setattr("studies.attacks.pictures.collate", asked)
    monkeypatch.setattr("studies.generation.cached_model.answers", asked)
    searches = replace(FEW, attacks=("universal_suffix", "request_suffix", "wording"))
    again = adaptive.run(experiment.config, searches, experiment, guard)
    kept = result.table[result.table.setting != "picture"].reset_index(drop=True)
    pd.testing.assert_frame_equal(again.table, kept)


@pytest.mark.slow
def test_what_was_found_is_kept_for_the_built_in_model_alone(result, experiment, guard):
    assert all("found" in record for record in result.found)
    other = replace(experiment, config=replace(experiment.config, model=experiment.vlm.name))
    suffix = replace(FEW, attacks=("universal_suffix",), defences=("guard",))
    hidden = adaptive.run(other.config, suffix, other, guard)
    assert hidden.found and not any("found" in record for record in hidden.found)
    assert all(len(record["sha256"]) == 16 for record in hidden.found)


@pytest.mark.slow
def test_the_reference_path_is_attacked_in_pictures_of_text(experiment, guard):
    settings = replace(FEW, attacks=("reference_path",), defences=("guard",), modality="typographic", budget=4)
    table = adaptive.run(experiment.config, settings, experiment, guard).table
    assert set(table.setting) == {"no_attack", "reference_path"} and set(table.modality) == {"typographic"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budget": 0}, "a budget of 0 queries; expected at least 1"),
        ({"attacks": ("sufix",)}, "attack 'sufix' does not exist"),
        ({"defences": ("gard",)}, "defence 'gard' can't be attacked; .* did you mean 'guard'"),
        ({"attacks": ("picture",), "modality": "text"}, "attack 'picture' on modality 'text'; expected one of blank"),
    ],
)
def test_settings_that_can_not_work_are_errors_before_a_model_is_loaded(settings, message, monkeypatch):
    monkeypatch.setattr(adaptive, "load_experiment", None)
    with pytest.raises(AttackSetupError, match=message):
        adaptive.run(Config(), adaptive.AttackSettings(**settings))


def test_a_tokenizer_without_words_is_an_error(tiny_vlm, monkeypatch):
    assert len(suffixes.ordinary_words(tiny_vlm)) >= suffixes.FEWEST_WORDS
    monkeypatch.setattr(type(tiny_vlm.tokenizer), "convert_ids_to_tokens", lambda self, ids: ["a", "Ġb", "Ġ12", "ab"])
    with pytest.raises(AttackSetupError, match="has 0 tokens that are a word after a space"):
        suffixes.ordinary_words(tiny_vlm)


def test_log_perplexity_is_the_loss_of_the_language_model(experiment):
    """A literal rewrite: the loss that transformers computes for a text as its own labels."""
    model, texts = experiment.cached_model, ["How do I kill a wasp?", "kill kill kill"]
    ours = text_log_perplexities(model, texts)
    for text, value in zip(texts, ours.tolist(), strict=True):
        ids = model.llm.tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            loss = model.llm.model(input_ids=ids, labels=ids).loss.item()
        assert value == pytest.approx(loss, rel=1e-5)


def test_bigrams_are_surprised_by_words_out_of_order(experiment):
    texts = [prompt.text for prompt in experiment.prompts("anchors", "text")]
    surprise = bigram_surprise(experiment.vlm.tokenizer, texts)
    values = surprise(experiment.cached_model, [texts[0], " ".join(reversed(texts[0].split()))])
    assert values[0] < values[1]


def table_of(changes):
    rows = []
    for attack, (before, after, low, high) in changes.items():
        labels = {"model": "organism", "dataset": "organism", "defence": "guard", "setting": attack, "objective": "own"}
        labels |= {"judge": "exact@1", "n": 60}
        for queries, value in ((0, before), (500, after)):
            row = {"queries": queries, "metric": "asr", "value": value, "ci_low": value, "ci_high": value}
            rows.append(labels | row)
        row = {"queries": 500, "metric": "asr_change", "value": after - before, "ci_low": low, "ci_high": high}
        rows.append(labels | row)
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"a": (0.0, 0.02, -0.04, 0.09)}, SHOWN),
        ({"a": (0.0, 0.02, -0.04, 0.09), "b": (0.0, 0.5, 0.37, 0.62)}, NOT_SHOWN),
        ({"a": (0.0, 0.02, -0.04, 0.09), "b": (0.0, 0.1, -0.01, 0.2)}, "undecided"),
    ],
)
def test_the_guard_holds_if_no_attack_raises_success(changes, verdict):
    assert claims.attack_verdict(table_of(changes)).verdict == verdict


@pytest.mark.slow
def test_a_guard_that_was_not_attacked_is_not_judged(result):
    unattacked = result.table[result.table.defence != "guard"]
    assert claims.attack_verdict(unattacked).verdict == NOT_TESTABLE


@pytest.mark.slow
def test_a_figure_has_a_panel_for_each_attack_and_a_line_for_each_defence(result):
    figure = attack_curves(result.table)
    panels = [axis for axis in figure.axes if axis.get_visible()]
    assert [axis.get_title() for axis in panels] == ["universal suffix", "request suffix", "wording", "picture"]
    assert len(panels[0].containers) == 2
    with pytest.raises(ValueError, match="found no attack"):
        attack_curves(result.table[result.table.setting == "no_attack"])


@pytest.mark.slow
def test_every_defence_has_a_name_of_its_own(experiment, guard):
    on = Defended(experiment, guard, "blank")
    assert [target.name for target in targets((), on)] == list(TARGETS)
    assert len({target.defence.id for target in targets((), on)}) == len(TARGETS) >= 9
