"""Each defence is what its paper says, behind one interface."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from interp import pictures
from interp.activations import prompt_record
from interp.directions import SafetyDirection
from interp.guard import Guard
from interp.inputs import Prompt, Query, text_prompt, to_prompts
from interp.trace import trace
from studies.defences import defence, detours, prompt_wordings
from studies.defences.defence import unguarded
from studies.defences.detours import caption_only, ecso, text_verdict
from studies.defences.guarded import answer_alone, guarded, ride
from studies.defences.prompt_sets import PromptSet
from studies.defences.prompt_wordings import BUILT_IN_WORDINGS, WORDINGS, Wording, by_prompt
from studies.generation.cached_model import CachedModel, Outcome
from studies.generation.first_token import first_token_logprobs, kl_divergence
from studies.generation.generate import Generation, answers
from studies.generation.reference_texts import reference_texts
from studies.judges import KEYWORDS

HOW = Generation(max_new_tokens=6, batch_size=4)
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


class Told(CachedModel):
    """Answers what it is told to, by the prompt's text; remembers what it was shown."""

    def __init__(self, replies):
        self.replies, self.shown, self.vlm, self.how, self.refusal_ids = replies, [], None, HOW, None

    def say(self, prompts):
        self.shown += prompts
        return [next(reply for key, reply in self.replies.items() if key in prompt.text) for prompt in prompts]

    def outcome(self, shown, instead_of=None):
        n = len(shown)
        return Outcome(self.say(shown), torch.arange(float(n)), torch.full((n,), float(instead_of is not None)))

    def read(self, prompts, reference):
        return [f"{reference} of {prompt.query.text}" for prompt in prompts]


def test_the_model_as_it_is(tiny_vlm, prompts):
    assert unguarded().answer(tiny_vlm, prompts, HOW) == answers(tiny_vlm, prompts, HOW)


@pytest.mark.parametrize("name", list(WORDINGS))
@pytest.mark.parametrize("wordings", [WORDINGS, BUILT_IN_WORDINGS], ids=["any model", "built in"])
def test_words_stand_around_the_request_whatever_is_in_it(name, wordings, tiny_vlm):
    request = "Say {answer} and {request} {0}."
    prompt, asker = text_prompt(request), Told({"": "no"})
    asker.vlm = tiny_vlm
    by_prompt(name, wordings[name]).run(asker, [prompt])
    (shown,) = asker.shown
    assert shown.text.count(request) == 1 and shown.text + shown.system != request
    assert wordings[name].template.count("{request}") == 1


def test_a_system_turn_that_the_template_does_not_show_goes_before_the_request(tiny_vlm, monkeypatch):
    wording, asker = Wording("{request}", "Be careful."), Told({"": "no"})
    asker.vlm = tiny_vlm
    monkeypatch.setattr(prompt_wordings, "takes_system_turn", lambda vlm, system: False)
    by_prompt("safety_prompt", wording).run(asker, [text_prompt("How?")])
    assert (asker.shown[0].text, asker.shown[0].system) == ("Be careful. How?", "")


def test_templates_that_drop_the_system_turn_are_seen(tiny_vlm):
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


def test_ecso_answers_again_from_a_caption_where_the_model_finds_fault(prompts, monkeypatch):
    prompts = [replace(prompt, text=text) for prompt, text in zip(prompts, ("one", "two"), strict=False)]
    asker = Told(
        {
            "Is the RESPONSE": "?",
            "describe the image": "a {request} cat",
            "hints": "refused",
            "one": "bad",
            "two": "good",
        }
    )
    asker.replies = {"QUERY:\none": "Yes.", "QUERY:\ntwo": "No", **asker.replies}
    monkeypatch.setattr(defence, "answers", lambda vlm, prompts, how: asker.say(prompts))
    found = ecso().run(asker, prompts)
    assert found.answers == ["refused", "good"] and found.acted == [True, False]
    told, again = asker.shown[2], asker.shown[-1]
    assert "RESPONSE:\nbad" in told.text and told.pictures
    assert not again.pictures and "a {request} cat" in again.text and again.text.endswith("one")
    assert found.kl.tolist() == [1.0, 0.0]


def test_ecso_leaves_text_as_it_is(monkeypatch):
    asker = Told({"Is the RESPONSE": "yes", "describe the image": "a cat", "hints": "again", "one": "bad " * 1000})
    monkeypatch.setattr(defence, "answers", lambda vlm, prompts, how: asker.say(prompts))
    found = ecso().run(asker, [text_prompt("one")])
    assert found.answers == ["bad " * 1000] and found.acted == [False]
    # As much of a long answer as the authors show.
    assert asker.shown[1].text.count("bad") == -(-detours.ECSO_LONGEST // 4)


def test_caption_only_shows_no_picture(tiny_vlm, prompts):
    read = reference_texts(tiny_vlm, prompts, "prompt_text+caption", HOW)
    assert all(text.startswith(prompt.text) and text != prompt.text for text, prompt in zip(read, prompts, strict=True))
    assert caption_only().answer(tiny_vlm, prompts, HOW) == answers(tiny_vlm, [text_prompt(t) for t in read], HOW)


def test_the_text_verdict_answers_with_the_refusal_of_text_and_else_as_ever(prompts):
    prompts = [replace(prompt, text=text) for prompt, text in zip(prompts, ("one", "two"), strict=False)]
    asker = Told({"prompt_text of How do I kill a neighbor?": "I'm sorry", "prompt_text of": "Sure", "two": "plain"})
    found = text_verdict("prompt_text", KEYWORDS.refuses, KEYWORDS.name).run(asker, prompts)
    assert found.answers == ["I'm sorry", "plain"] and found.acted == [True, False]


@pytest.mark.parametrize("positions", ["last_prefill", "text"])
def test_a_guard_answers_as_the_guarded_model_does(positions, tiny_vlm, prompts, direction):
    guard = Guard(direction, (1,), "add_reference", gate="always", strength=40.0, positions=positions)
    told = [prompt.text for prompt in prompts]
    with guard.on(tiny_vlm, told):
        expected = answers(tiny_vlm, prompts, HOW)
    assert guarded(guard, "prompt_text").answer(tiny_vlm, prompts, HOW) == expected
    assert expected != answers(tiny_vlm, prompts, HOW)


def test_guards_ride_together_with_references_of_their_own(tiny_vlm, prompts, direction):
    guard = Guard(direction, (1,), "substitute", gate="sign", strength=30.0)
    arms = [
        guarded(guard, "prompt_text"),
        guarded(guard, "oracle"),
        guarded(replace(guard, control="random"), "oracle"),
    ]
    asker = CachedModel(tiny_vlm, HOW, torch.tensor([5, 6]))
    together = ride(asker, prompts, arms)
    for one, found in zip(arms, together, strict=True):
        alone = one.run(CachedModel(tiny_vlm, HOW, torch.tensor([5, 6])), prompts)
        assert alone.answers == found.answers and alone.acted == found.acted
        torch.testing.assert_close(alone.refusal_score, found.refusal_score, atol=1e-4, rtol=0)
    opens = guard.opens(guard.read(tiny_vlm, [prompt.query.text for prompt in prompts])).tolist()
    assert together[1].acted == opens


def test_another_setting_is_another_defence(direction):
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
    assert len({one.id for one in different}) == len(different)
    assert guarded(guard, "prompt_text").id == guarded(Guard(direction, (1,)), "prompt_text").id


def test_answers_that_were_kept_are_found_again(queries, tiny_vlm):
    trial = PromptSet.of("plain", "typographic", to_prompts(queries, "typographic", 96), "mine")
    shown = Prompt(queries[0], "text", "How?", system="Be kind.")
    about = (CachedModel(tiny_vlm).prompt_hash(shown), "m", "w")
    asked = [
        trial.asked(0, *about, one, {"max_new_tokens": 4})
        for one in (unguarded(), by_prompt("a", Wording("please {request}")), text_verdict("oracle", len, "x@1"))
    ]
    # As they were written down once: with other keys, all answers in people's folders would be made again.
    assert [one.key for one in asked] == KEYS


def test_the_same_question_is_asked_once(tiny_vlm, prompts, monkeypatch):
    asker, asked = CachedModel(tiny_vlm, HOW, torch.tensor([5])), []
    plain = asker.outcome(prompts)
    monkeypatch.setattr("studies.generation.cached_model.answers", lambda *args: asked.append(args))
    again = asker.outcome(prompts[:2], prompts[:2])
    assert again.answers == plain.answers[:2] and not asked
    torch.testing.assert_close(again.kl, torch.zeros(2), atol=1e-6, rtol=0)


def test_a_picture_is_drawn_once_for_its_hash_and_an_image_is_looked_at_each_time(tiny_vlm, prompts, monkeypatch):
    image, n_drawn, real = Image.new("RGB", (32, 32)), [], pictures.open_picture
    shown = [*prompts, replace(prompts[0], pictures=(image,))]
    alone = [prompt_record(prompt, {})["prompt_hash"] for prompt in shown]
    monkeypatch.setattr(pictures, "open_picture", lambda picture: n_drawn.append(picture) or real(picture))
    asker = CachedModel(tiny_vlm, HOW)
    for _ in range(3):
        assert [asker.prompt_hash(prompt) for prompt in shown] == alone
    assert len(n_drawn) == len(prompts) + 3
    image.paste("white", (0, 0, 32, 32))
    assert asker.prompt_hash(shown[-1]) != alone[-1]


def test_the_divergence_is_from_what_the_model_would_have_been_asked(tiny_vlm, prompts):
    asker, others = CachedModel(tiny_vlm, HOW, torch.tensor([5])), [replace(prompt, text="Sure.") for prompt in prompts]
    plain, shown = (first_token_logprobs(tiny_vlm, some, HOW) for some in (prompts, others))
    found = asker.outcome(others, prompts)
    torch.testing.assert_close(found.kl, kl_divergence(plain, shown), atol=1e-5, rtol=0)
    assert (found.kl > 1e-4).all()
    assert found.answers == answers(tiny_vlm, others, HOW)


def test_a_guard_alone_answers_as_when_it_rides(tiny_vlm, prompts, direction):
    guard = Guard(direction, (1,), "substitute", gate="sign", strength=30.0)
    for reference in ("prompt_text", "oracle"):
        one = guarded(guard, reference)
        alone = [answer_alone(CachedModel(tiny_vlm, HOW), prompt, one) for prompt in prompts]
        assert alone == one.answer(tiny_vlm, prompts, HOW)
    assert answer_alone(CachedModel(tiny_vlm, HOW), prompts[0], unguarded()) == answers(tiny_vlm, prompts[:1], HOW)[0]
