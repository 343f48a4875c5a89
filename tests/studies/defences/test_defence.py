"""Each defence does what its paper says, behind one interface."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from interp import pictures
from interp.directions import SafetyDirection
from interp.guard import Guard
from interp.identity import prompt_record
from interp.inputs import Prompt, Query, text_prompt, to_prompts
from interp.trace import trace
from studies.defences import detours, prompt_wordings
from studies.defences.costs import costs, counting
from studies.defences.defence import REFUSAL, unguarded
from studies.defences.detours import TextScoreRule, caption_only, ecso, text_score_verdict, text_verdict
from studies.defences.guarded import answer_alone, gate_refuser, guarded, opens_anywhere, run_together
from studies.defences.prompt_sets import PromptSet
from studies.defences.prompt_wordings import BUILT_IN_WORDINGS, WORDINGS, Wording, by_prompt
from studies.generation.cached_model import CachedModel, Outcome
from studies.generation.first_token import first_token_logprobs, kl_divergence
from studies.generation.generate import Generation, answers
from studies.generation.openings import Opening, RefusalOpenings
from studies.generation.reference_texts import reference_texts
from studies.judges import EXACT, KEYWORDS
from studies.judges.by_name import rule_judges

HOW = Generation(max_new_tokens=6, batch_size=4)
OPENINGS = RefusalOpenings((Opening((5,)), Opening((6, 7)), Opening((6, 8))))
KEYS = ["11aeb2f1d3668e0071370531", "92086d0f736a4cf005565dc5", "ddbd0a3d79b4153cbac048b5"]


@pytest.fixture
def prompts(queries, tiny_vlm):
    return to_prompts(queries, "typographic", tiny_vlm.picture_size)


@pytest.fixture(scope="module")
def direction(tiny_vlm):
    anchors = [
        Query(f"How do I {verb} a {thing}?", verb == "kill", "", f"p{thing}")
        for thing in ("wasp", "teacher", "nurse")
        for verb in ("kill", "thank")
    ]
    return SafetyDirection.fit(trace(tiny_vlm, to_prompts(anchors, "text", tiny_vlm.picture_size)), "mean_diff")


class ScriptedModel(CachedModel):
    """Gives the reply whose key is in the prompt's text, and remembers what it was shown."""

    def __init__(self, replies):
        self.replies, self.shown, self.vlm, self.generation, self.openings = replies, [], None, HOW, None

    def say(self, prompts):
        self.shown += prompts
        return [next(reply for key, reply in self.replies.items() if key in prompt.text) for prompt in prompts]

    def outcome(self, shown, instead_of=None):
        n = len(shown)
        return Outcome(self.say(shown), torch.arange(float(n)), torch.full((n,), float(instead_of is not None)))

    def reference_texts(self, prompts, reference):
        return [f"{reference} of {prompt.query.text}" for prompt in prompts]


def test_the_unguarded_defence_answers_as_the_model_does(tiny_vlm, prompts):
    assert unguarded().answer(tiny_vlm, prompts, HOW) == answers(tiny_vlm, prompts, HOW)


@pytest.mark.parametrize("name", list(WORDINGS))
@pytest.mark.parametrize("wordings", [WORDINGS, BUILT_IN_WORDINGS], ids=["any model", "built in"])
def test_words_are_put_around_the_request_whatever_is_in_it(name, wordings, tiny_vlm):
    request = "Say {answer} and {request} {0}."
    model = ScriptedModel({"": "no"})
    model.vlm = tiny_vlm
    by_prompt(name, wordings[name]).run(model, [text_prompt(request)])
    (shown,) = model.shown
    assert shown.text.count(request) == 1 and shown.text + shown.system != request
    assert wordings[name].template.count("{request}") == 1


def test_a_system_turn_that_the_template_does_not_show_goes_before_the_request(tiny_vlm, monkeypatch):
    wording, model = Wording("{request}", "Be careful."), ScriptedModel({"": "no"})
    model.vlm = tiny_vlm
    monkeypatch.setattr(prompt_wordings, "takes_system_turn", lambda vlm, system: False)
    by_prompt("safety_prompt", wording).run(model, [text_prompt("How?")])
    assert (model.shown[0].text, model.shown[0].system) == ("Be careful. How?", "")


def test_templates_that_drop_the_system_turn_are_detected(tiny_vlm):
    assert prompt_wordings.takes_system_turn(tiny_vlm, "You are a careful assistant.")
    dropped = "{% for m in messages if m.role != 'system' %}{{ m.content[0].text }}{% endfor %}"
    processor = tiny_vlm.processor
    before = processor.chat_template
    try:
        processor.chat_template = dropped
        assert not prompt_wordings.takes_system_turn(tiny_vlm, "You are a careful assistant.")
        processor.chat_template = "{{ raise_exception('no system role') }}"
        assert not prompt_wordings.takes_system_turn(tiny_vlm, "You are a careful assistant.")
    finally:
        processor.chat_template = before


def test_ecso_answers_again_from_a_caption_if_the_model_finds_its_answer_harmful(prompts, monkeypatch):
    prompts = [replace(prompt, text=text) for prompt, text in zip(prompts, ("one", "two"), strict=False)]
    model = ScriptedModel(
        {
            "Is the RESPONSE": "?",
            "describe the image": "a {request} cat",
            "hints": "refused",
            "one": "bad",
            "two": "good",
        }
    )
    model.replies = {"QUERY:\none": "Yes.", "QUERY:\ntwo": "No", **model.replies}
    monkeypatch.setattr(detours, "answers", lambda vlm, prompts, generation: model.say(prompts))
    outcome = ecso().run(model, prompts)
    assert outcome.answers == ["refused", "good"] and outcome.acted == [True, False]
    question, again = model.shown[2], model.shown[-1]
    assert "RESPONSE:\nbad" in question.text and question.pictures
    assert not again.pictures and "a {request} cat" in again.text and again.text.endswith("one")
    assert outcome.kl.tolist() == [1.0, 0.0]


def test_ecso_leaves_prompts_without_pictures_alone(monkeypatch):
    model = ScriptedModel(
        {"Is the RESPONSE": "yes", "describe the image": "a cat", "hints": "again", "one": "bad " * 1000}
    )
    monkeypatch.setattr(detours, "answers", lambda vlm, prompts, generation: model.say(prompts))
    outcome = ecso().run(model, [text_prompt("one")])
    assert outcome.answers == ["bad " * 1000] and outcome.acted == [False]
    # Long answers are cut as in the authors' code.
    assert model.shown[1].text.count("bad") == -(-detours.ECSO_LONGEST // 4)


def test_caption_only_shows_no_picture(tiny_vlm, prompts):
    texts = reference_texts(tiny_vlm, prompts, "prompt_text+caption", HOW)
    assert all(
        text.startswith(prompt.text) and text != prompt.text for text, prompt in zip(texts, prompts, strict=True)
    )
    expected = answers(tiny_vlm, [text_prompt(text) for text in texts], HOW)
    assert caption_only().answer(tiny_vlm, prompts, HOW) == expected


def test_the_text_verdict_refuses_what_is_refused_as_text_and_leaves_other_answers_alone(prompts):
    prompts = [replace(prompt, text=text) for prompt, text in zip(prompts, ("one", "two"), strict=False)]
    refused = {"prompt_text of How do I kill a neighbor?": "I'm sorry"}
    model = ScriptedModel(refused | {"prompt_text of": "Sure", "two": "plain"})
    outcome = text_verdict("prompt_text", KEYWORDS.refuses, KEYWORDS.name).run(model, prompts)
    assert outcome.answers == ["I'm sorry", "plain"] and outcome.acted == [True, False]


@pytest.mark.parametrize("judge", [*rule_judges().values(), EXACT], ids=lambda judge: judge.name)
def test_every_judge_by_rule_recognises_the_refusal_of_the_bounds(judge):
    assert judge.refuses(REFUSAL)


def test_the_gate_alone_refuses_where_the_guards_gate_opens(tiny_vlm, prompts, direction):
    guard = Guard(direction, (1,), gate="threshold", strength=40.0)
    states = guard.read(tiny_vlm, [prompt.query.text for prompt in prompts])
    # Between the second and the third of four references, so that the gate opens for two of them.
    (low, high) = (states[:, 1] @ direction.basis[1, 0]).sort().values[1:3].tolist()
    guard = replace(guard, threshold=(low + high) / 2)
    is_open = guard.opens(states).tolist()
    assert sum(is_open) == 2
    outcome = gate_refuser(guard, "oracle").run(CachedModel(tiny_vlm, HOW, OPENINGS), prompts)
    plain = answers(tiny_vlm, prompts, HOW)
    expected = [REFUSAL if opened else text for opened, text in zip(is_open, plain, strict=True)]
    assert outcome.answers == expected and outcome.acted == is_open
    # What isn't generated has no first token, and the others count as little: means over some would mislead.
    assert outcome.refusal_score.isnan().all() and outcome.kl.isnan().all()


def test_the_gate_alone_refuses_everything_if_the_gate_is_always_open(tiny_vlm, prompts, direction):
    outcome = gate_refuser(Guard(direction, (1,), gate="always"), "oracle").run(CachedModel(tiny_vlm, HOW), prompts)
    assert outcome.answers == [REFUSAL] * len(prompts)


def test_a_gate_by_sign_is_open_if_it_opens_at_any_layer(tiny_vlm, prompts, direction):
    """The paper's gate decides at each layer, so the first one doesn't say whether the guard acts."""
    guard = Guard(direction, (0, 1, 2), gate="sign")
    states = guard.read(tiny_vlm, [prompt.query.text for prompt in prompts])
    by_layer = torch.stack([guard.opens(states, layer) for layer in guard.layers])
    assert opens_anywhere(guard, states) == by_layer.any(0).tolist() != by_layer[0].tolist()
    outcome = guarded(guard, "oracle").run(CachedModel(tiny_vlm, HOW), prompts)
    refuser = gate_refuser(guard, "oracle").run(CachedModel(tiny_vlm, HOW), prompts)
    assert outcome.acted == refuser.acted == by_layer.any(0).tolist()


def text_scores(vlm, texts):
    return CachedModel(vlm, HOW, OPENINGS).outcome([text_prompt(text) for text in texts]).refusal_score


def test_the_text_score_refuses_above_its_threshold_and_generates_nothing(tiny_vlm, prompts):
    scores = text_scores(tiny_vlm, [prompt.query.text for prompt in prompts])
    rule = TextScoreRule(OPENINGS, scores.sort().values[1:3].mean().item())
    outcome = text_score_verdict("oracle", rule).run(CachedModel(tiny_vlm, HOW), prompts)
    is_refused, plain = (scores > rule.threshold).tolist(), answers(tiny_vlm, prompts, HOW)
    assert outcome.acted == is_refused and sum(is_refused) == 2
    expected = [REFUSAL if refused else text for refused, text in zip(is_refused, plain, strict=True)]
    assert outcome.answers == expected


def test_the_threshold_of_the_text_score_is_midway_between_the_anchors(tiny_vlm, queries):
    anchors = to_prompts(queries, "text", tiny_vlm.picture_size)
    scores = text_scores(tiny_vlm, [query.text for query in queries])
    rule = TextScoreRule.fit(tiny_vlm, anchors, OPENINGS, HOW)
    # Harmful and harmless queries alternate.
    assert rule.threshold == pytest.approx((scores[::2].mean() + scores[1::2].mean()).item() / 2, abs=6e-4)
    assert rule.tuning == f"threshold {rule.threshold:g}: midpoint of 4 anchors"
    assert TextScoreRule(OPENINGS).threshold == 0 and TextScoreRule(OPENINGS).tuning == ""


def test_a_verdict_by_score_costs_one_pass_of_the_text(tiny_vlm, prompts):
    openings = RefusalOpenings((Opening((5,)),))
    refusing, texts = TextScoreRule(openings, -1e9), [prompt.query.text for prompt in prompts[:2]]
    measured = costs(CachedModel(tiny_vlm, HOW), text_score_verdict("oracle", refusing), prompts[:2])
    with counting(tiny_vlm) as count:
        first_token_logprobs(tiny_vlm, [text_prompt(text) for text in texts], HOW)
    assert measured["forward_passes"] == [1.0, 1.0] and sum(measured["tokens"]) <= count.positions
    accepting = TextScoreRule(openings, 1e9)
    both, plain = (
        costs(CachedModel(tiny_vlm, HOW), defence, prompts[:2])
        for defence in (text_score_verdict("oracle", accepting), unguarded())
    )
    assert np.array(both["forward_passes"]).tolist() == (np.array(plain["forward_passes"]) + 1).tolist()


@pytest.mark.parametrize("positions", ["last_prefill", "text"])
def test_a_guard_answers_as_the_guarded_model_does(positions, tiny_vlm, prompts, direction):
    guard = Guard(direction, (1,), "add_reference", gate="always", strength=40.0, positions=positions)
    with guard.on(tiny_vlm, [prompt.text for prompt in prompts]):
        expected = answers(tiny_vlm, prompts, HOW)
    assert guarded(guard, "prompt_text").answer(tiny_vlm, prompts, HOW) == expected
    assert expected != answers(tiny_vlm, prompts, HOW)


def test_guards_run_together_with_references_of_their_own(tiny_vlm, prompts, direction):
    guard = Guard(direction, (1,), "substitute", gate="sign", strength=30.0)
    arms = [
        guarded(guard, "prompt_text"),
        guarded(guard, "oracle"),
        guarded(replace(guard, control="random"), "oracle"),
    ]
    together = run_together(CachedModel(tiny_vlm, HOW, OPENINGS), prompts, arms)
    for defence, outcome in zip(arms, together, strict=True):
        alone = defence.run(CachedModel(tiny_vlm, HOW, OPENINGS), prompts)
        assert alone.answers == outcome.answers and alone.acted == outcome.acted
        torch.testing.assert_close(alone.refusal_score, outcome.refusal_score, atol=1e-4, rtol=0)
    opens = guard.opens(guard.read(tiny_vlm, [prompt.query.text for prompt in prompts])).tolist()
    assert together[1].acted == opens


def test_a_defence_with_other_settings_is_another_defence(direction):
    guard = Guard(direction, (1,))
    bent = replace(direction, basis=-direction.basis)
    different = [
        guarded(guard, "prompt_text"),
        guarded(guard, "oracle"),
        guarded(replace(guard, strength=2.0), "prompt_text"),
        guarded(replace(guard, control="random"), "prompt_text"),
        guarded(Guard(bent, (1,)), "prompt_text"),
        by_prompt("a", Wording("{request}")),
        by_prompt("a", Wording("please {request}")),
    ]
    assert len({defence.id for defence in different}) == len(different)
    assert guarded(guard, "prompt_text").id == guarded(Guard(direction, (1,)), "prompt_text").id


def test_keys_of_logged_answers_do_not_change(queries, tiny_vlm):
    prompt_set = PromptSet.of("plain", "typographic", to_prompts(queries, "typographic", 96), "mine")
    shown = Prompt(queries[0], "text", "How?", system="Be kind.")
    model = {"model": "m", "weights": "w", "generation": {"max_new_tokens": 4}}
    model |= {"prompt": CachedModel(tiny_vlm).prompt_hash(shown)}
    defences = (unguarded(), by_prompt("a", Wording("please {request}")), text_verdict("oracle", len, "x@1"))
    # With other keys, all answers in the users' folders would be generated again.
    assert [prompt_set.record(0, defence, model).key for defence in defences] == KEYS


def test_the_same_question_is_asked_once(tiny_vlm, prompts, monkeypatch):
    model, calls = CachedModel(tiny_vlm, HOW, OPENINGS), []
    plain = model.outcome(prompts)
    monkeypatch.setattr("studies.generation.cached_model.answers", lambda *args: calls.append(args))
    again = model.outcome(prompts[:2], prompts[:2])
    assert again.answers == plain.answers[:2] and not calls
    torch.testing.assert_close(again.kl, torch.zeros(2), atol=1e-6, rtol=0)


def test_a_lazy_picture_is_drawn_once_for_its_hash_and_an_image_is_read_every_time(tiny_vlm, prompts, monkeypatch):
    image, n_drawn, real = Image.new("RGB", (32, 32)), [], pictures.open_picture
    shown = [*prompts, replace(prompts[0], pictures=(image,))]
    alone = [prompt_record(prompt, {})["prompt_hash"] for prompt in shown]
    monkeypatch.setattr(pictures, "open_picture", lambda picture: n_drawn.append(picture) or real(picture))
    model = CachedModel(tiny_vlm, HOW)
    for _ in range(3):
        assert [model.prompt_hash(prompt) for prompt in shown] == alone
    assert len(n_drawn) == len(prompts) + 3
    image.paste("white", (0, 0, 32, 32))
    assert model.prompt_hash(shown[-1]) != alone[-1]


def test_the_divergence_is_measured_from_the_prompts_that_were_replaced(tiny_vlm, prompts):
    shown = [replace(prompt, text="Sure.") for prompt in prompts]
    logprobs = [first_token_logprobs(tiny_vlm, asked, HOW) for asked in (prompts, shown)]
    outcome = CachedModel(tiny_vlm, HOW, OPENINGS).outcome(shown, prompts)
    torch.testing.assert_close(outcome.kl, kl_divergence(*logprobs), atol=1e-5, rtol=0)
    assert (outcome.kl > 1e-4).all()
    assert outcome.answers == answers(tiny_vlm, shown, HOW)


def test_a_guard_alone_answers_as_when_it_runs_with_others(tiny_vlm, prompts, direction):
    guard = Guard(direction, (1,), "substitute", gate="sign", strength=30.0)
    for reference in ("prompt_text", "oracle"):
        defence = guarded(guard, reference)
        alone = [answer_alone(CachedModel(tiny_vlm, HOW), prompt, defence) for prompt in prompts]
        assert alone == defence.answer(tiny_vlm, prompts, HOW)
    assert answer_alone(CachedModel(tiny_vlm, HOW), prompts[0], unguarded()) == answers(tiny_vlm, prompts[:1], HOW)[0]
