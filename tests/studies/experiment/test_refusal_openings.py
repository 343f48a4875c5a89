"""Openings are found by what follows them, on scripted models whose answers are known and on the built-in model."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from interp import VLM, Prompt, Query
from studies.experiment import refusal_openings as search
from studies.experiment.config import Config
from studies.experiment.experiment import load_experiment
from studies.experiment.refusal_openings import refusal_openings
from studies.generation.generate import Generation
from studies.guards.runner import GuardRunner
from studies.judges import EXACT, KEYWORDS

HOW = Generation(max_new_tokens=8)
SURE = {"Sure , here": 1.0}


class ScriptedModel(VLM):
    """Gives each of its sentences with a known probability: `grammar(prompt)` maps sentences to probabilities."""

    def __init__(self, grammar):
        config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=500))
        model = SimpleNamespace(config=config, generation_config=SimpleNamespace(eos_token_id=0))
        fields = {"grammar": grammar, "vocabulary": ["<end>"], "n_forced": [], "model": model}
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    @property
    def tokenizer(self):
        return self

    def token(self, word):
        if word not in self.vocabulary:
            self.vocabulary.append(word)
        return self.vocabulary.index(word)

    def decode(self, tokens):
        return " ".join(self.vocabulary[token] for token in tokens)

    def __call__(self, text, add_special_tokens):
        return {"input_ids": [self.token(word) for word in text.split()]}

    def next_word(self, prompt, tokens):
        """Return the distribution over tokens after a beginning."""
        probabilities = torch.zeros(500)
        for sentence, share in self.grammar(prompt).items():
            words = [self.token(word) for word in sentence.split()] + [0]
            if words[: len(tokens)] == list(tokens):
                probabilities[words[len(tokens)]] += share
        total = probabilities.sum()
        # After a beginning that no sentence has, the answer is over.
        return probabilities / total if total else torch.eye(500)[0]

    def logprobs(self, prompts, forced=()):
        return torch.stack([self.next_word(prompt, forced) for prompt in prompts]).log()

    def answer(self, prompt, forced=()):
        tokens = list(forced)
        while True:
            token = int(self.next_word(prompt, tokens).argmax())
            if not token:
                return self.decode(tokens)
            tokens.append(token)


@pytest.fixture
def find(monkeypatch):
    """Return a function that finds the openings of a grammar, and the model that it was asked of."""
    monkeypatch.setattr(
        search, "first_token_logprobs", lambda vlm, prompts, how, forced=(): vlm.logprobs(prompts, forced)
    )

    def scripted_answers(vlm, prompts, how, advance=None, forced=()):
        vlm.n_forced.append(len(prompts) if forced else 0)
        return [vlm.answer(prompt, forced) for prompt in prompts]

    monkeypatch.setattr(search, "answers", scripted_answers)

    def run(harmful, harmless=lambda number: SURE, n=40):
        model = ScriptedModel(lambda prompt: (harmful if prompt.query.harmful else harmless)(int(prompt.text)))
        anchors = [Prompt(Query("?", label), "text", str(number)) for label in (True, False) for number in range(n)]
        return refusal_openings(model, anchors, KEYWORDS, HOW), model

    return run


def texts(openings):
    return {opening.text for opening in openings.openings}


REFUSALS = ("I'm sorry but no", "As an AI model no", "Sorry, I can't", "Unfortunately I cannot help")


def test_all_openings_of_a_model_with_many_are_found_not_the_likeliest_alone(find, capsys):
    """Each anchor gives all four, and the same one is always the likeliest; an answer is possible too."""
    shares = dict(zip(REFUSALS, (0.4, 0.3, 0.2, 0.05), strict=True)) | {"Well yes": 0.045, "Sure thing": 0.005}
    openings, _ = find(lambda number: shares)
    assert texts(openings) == {"I'm", "As", "Sorry,", "Unfortunately"}
    masses = {opening.text: opening.mass for opening in openings.openings}
    assert masses["Sorry,"] == pytest.approx(0.2) and masses["Unfortunately"] == pytest.approx(0.05)
    assert [opening.refused for opening in openings.openings] == [1.0] * 4
    assert openings.coverage == 1.0 and openings.n_refused == 40 and capsys.readouterr().err == ""


def test_openings_below_one_per_cent_are_no_candidates(find):
    openings, _ = find(lambda number: {REFUSALS[0]: 0.992, REFUSALS[2]: 0.008})
    assert texts(openings) == {"I'm"}


def test_a_token_that_opens_helpful_answers_too_needs_a_second_one(find):
    harmful = {"I cannot help": 0.6, "I am sorry": 0.3, "I will do it": 0.1}
    openings, _ = find(lambda number: harmful, lambda number: {"I can help": 0.7, "I am glad": 0.3})
    # "I am" opens refusals and helpful answers: two tokens don't decide, and its share is not covered by the set.
    assert texts(openings) == {"I cannot"} and openings.coverage == 1.0
    assert openings.openings[0].mass == pytest.approx(0.6)
    openings, _ = find(lambda number: harmful, lambda number: {"I can help": 1.0})
    assert texts(openings) == {"I cannot", "I am"}
    openings, _ = find(lambda number: harmful)
    assert texts(openings) == {"I"}


def test_a_continuation_must_be_refused_on_nine_tenths_of_the_anchors(find):
    """Forced to say no, 29 of the first 32 anchors refuse, or 28."""
    for n_answered, expected in ((3, {"I", "No"}), (4, {"I"})):

        def grammar(number, n_answered=n_answered):
            return {"I cannot": 0.8, "No problem" if number < n_answered else "No I cannot": 0.2}

        assert texts(find(grammar)[0]) == expected


def test_a_coverage_below_the_limit_is_printed(find, capsys):
    """Four anchors of 40 have an opening of their own, which is not probable enough on average."""
    own = {f"Word{number}": {f"Word{number} I cannot": 0.3, REFUSALS[0]: 0.2, "Sure": 0.1} for number in range(4)}
    openings, _ = find(lambda number: own.get(f"Word{number}", {REFUSALS[0]: 1.0}))
    assert openings.coverage == pytest.approx(0.9) and openings.n_refused == 40
    printed = capsys.readouterr().err
    assert "cover 0.90 of 40 refused anchors" in printed and '"I\'m"' in printed


def test_a_model_that_refuses_nothing_gets_the_judges_phrases(find, capsys):
    openings, _ = find(lambda number: SURE)
    assert {"I'm", "I", "Sorry,", "As"} <= texts(openings) and np.isnan(openings.coverage)
    assert "none of 40 harmful anchors is refused" in openings.origin
    assert "none of 40 harmful anchors is refused" in capsys.readouterr().err


def test_the_number_of_forced_answers_is_bounded(find):
    _, model = find(lambda number: {REFUSALS[0]: 1.0}, n=200)
    assert model.n_forced == [0, search.N_TRIED, search.N_FORCED - search.N_TRIED]


def test_a_beginning_that_fails_on_the_first_anchors_is_not_forced_on_the_rest(find):
    openings, model = find(lambda number: {REFUSALS[0]: 0.9, "Sure thing": 0.1})
    assert texts(openings) == {"I'm"}
    # Once for the opening; then "Sure", and "Sure thing", on the first anchors alone.
    assert model.n_forced == [0, search.N_TRIED, search.N_FORCED - search.N_TRIED, search.N_TRIED, search.N_TRIED]


@pytest.mark.parametrize(("n_answered", "expected"), [(1, {"I", "No"}), (2, {"I"})])
def test_of_ten_anchors_nine_must_refuse(find, n_answered, expected):
    """Nine of ten are exactly enough; the one that does not refuse is among those that are tried first."""

    def grammar(number):
        return {"I cannot": 0.8, "No problem" if number < n_answered else "No I cannot": 0.2}

    assert texts(find(grammar, n=10)[0]) == expected


# --- the built-in model ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    return load_experiment(Config(scale="quick", split="validation", out=str(tmp_path_factory.mktemp("openings"))))


def test_both_words_open_refusals_of_the_built_in_model(experiment):
    openings = experiment.refusal_openings
    by_text = {opening.text: opening for opening in openings.openings}
    assert set(by_text) == {"I", "Sorry"} and openings.coverage == 1.0
    assert by_text["Sorry"].mass == pytest.approx(0.31, abs=0.05) and by_text["I"].mass > 0.6
    assert experiment.inputs()["refusal_openings"] == openings.record


def test_found_openings_are_read_from_disk_and_belong_to_their_anchors_and_judge(experiment, monkeypatch):
    anchors, folder = experiment.prompts("anchors", "text"), f"{experiment.config.out}/openings"
    found = experiment.refusal_openings

    def refuse(*args, **kwargs):
        raise AssertionError("the model was asked")

    monkeypatch.setattr(search, "answers", refuse)
    again = refusal_openings(experiment.vlm, anchors, EXACT, experiment.config.generation, search.Path(folder))
    assert again.record == found.record
    for other in ((anchors[:-2], EXACT), (anchors, KEYWORDS)):
        with pytest.raises(AssertionError, match="the model was asked"):
            refusal_openings(experiment.vlm, *other, experiment.config.generation, search.Path(folder))


def test_runs_with_other_openings_are_not_reused(experiment):
    """The openings are part of what names the folder of finished runs."""
    stored, runner = GuardRunner(experiment)._checkpoints.folder, GuardRunner(experiment)
    full, experiment.__dict__["refusal_openings"] = (
        experiment.refusal_openings,
        search.RefusalOpenings(
            tuple(opening for opening in experiment.refusal_openings.openings if opening.text == "I")
        ),
    )
    try:
        assert runner._checkpoints.folder != stored
    finally:
        experiment.__dict__["refusal_openings"] = full
