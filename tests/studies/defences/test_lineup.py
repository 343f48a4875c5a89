"""Which defences are in the line-up, which references they read, and which are left out."""

import pytest

from interp.directions import SafetyDirection
from interp.guard import Guard
from interp.inputs import to_prompts
from interp.trace import trace
from studies.defences.arms import GIVEN, arms_of
from studies.defences.defence import BOUND, CONTROL, GUARD
from studies.defences.detours import TextScoreRule
from studies.defences.lineup import GUARDS, RELATED_METHODS, UNFITTED, WITHOUT_RIVALS, LineUp
from studies.defences.prompt_sets import PromptSet
from studies.defences.related import RelatedMethod
from studies.generation.openings import Opening, RefusalOpenings
from studies.judges import KEYWORDS

RULE = TextScoreRule(RefusalOpenings((Opening((5,)),)))


@pytest.fixture
def guard(tiny_vlm, queries):
    anchors = trace(tiny_vlm, to_prompts(queries, "text", tiny_vlm.picture_size))
    return Guard(SafetyDirection.fit(anchors, "mean_diff"), (1,), strength=2.0)


@pytest.fixture
def prompt_set(queries):
    return lambda modality: PromptSet.of("plain", modality, to_prompts(queries, modality, 96), "mine")


def test_every_defence_is_in_the_line_up_under_a_name_that_can_be_asked_for(prompt_set, guard):
    related = [RelatedMethod(name, guard) for name in RELATED_METHODS]
    line_up = LineUp("some/vlm", KEYWORDS, RULE, guard, related)
    defences = line_up(prompt_set("typographic"), ["prompt_text", "oracle"])
    assert set(defence.name for defence in defences) == {*UNFITTED, *GUARDS, *RELATED_METHODS}
    kinds = {(defence.name, defence.reference): defence.kind for defence in defences}
    assert kinds["guard", "prompt_text"] == GUARD and kinds["guard", "oracle"] == BOUND
    # One random direction is not a control: it is compared with hundreds, by the first token.
    assert "guard_random" not in {name for name, _ in kinds}
    # The request is in the picture.
    assert ("cmrm", "transcription") in kinds and ("shift_dc", "prompt_text+caption") in kinds
    blank = line_up(prompt_set("blank"), ["caption"])
    assert {defence.reference for defence in blank if defence.name == "cmrm"} == {"caption"}


def test_every_bound_reads_every_reference(prompt_set, guard):
    defences = LineUp("some/vlm", KEYWORDS, RULE, guard)(prompt_set("typographic"), ["prompt_text", "transcription"])
    kinds = {(defence.name, defence.reference): defence.kind for defence in defences}
    for reference in ("prompt_text", "transcription"):
        for name in ("gate_refuser", "text_score_verdict", "text_verdict", "guard_full_state"):
            assert kinds[name, reference] == BOUND
        assert kinds["guard_always", reference] == CONTROL
    (always, _) = (defence for defence in defences if defence.name == "guard_always")
    assert (always.guard_setup.guard.gate, always.guard_setup.guard.strength) == ("always", 2.0)


def test_without_rivals_only_the_defences_of_the_claims_are_left(prompt_set, guard):
    line_up = LineUp("some/vlm", KEYWORDS, RULE, guard, names=WITHOUT_RIVALS)
    names = [defence.name for defence in line_up(prompt_set("blank"), ["prompt_text"])]
    assert len(names) == len(set(names)) and set(names) == {"unguarded", *WITHOUT_RIVALS}


def test_without_guard_or_pictures_only_prompt_defences_and_text_verdicts_are_left(prompt_set):
    defences = LineUp("some/vlm", KEYWORDS, RULE)(prompt_set("text"), ["prompt_text"])
    assert [defence.name for defence in defences] == [name for name in UNFITTED if name not in ("ecso", "caption_only")]


def tunings(line_up, prompts):
    """The column `tuning` by defence, as it is in a table of their answers."""
    model = {"prompt": "p", "model": "m", "weights": "w", "generation": {}}
    records = [prompts.record(0, defence, model) for defence in line_up(prompts, ["prompt_text"])]
    return {arm.first.defence: arm.columns.get("tuning") for arm in arms_of(records)}


def test_tables_say_what_was_tuned(prompt_set, guard):
    related = [
        RelatedMethod("cmrm", guard, "layer 1, strength 2: best of 9 on validation"),
        RelatedMethod("astra", guard),
    ]
    rule = TextScoreRule(RULE.openings, 0.5, "threshold 0.5: midpoint of 4 anchors")
    found = tunings(
        LineUp("some/vlm", KEYWORDS, rule, guard, related, tuning="best of 8 on validation"), prompt_set("blank")
    )
    assert found["unguarded"] is None
    untuned = ("self_reminder", "goal_priority", "adashield_s", "safety_prompt", "ecso", "caption_only", "text_verdict")
    assert {found[name] for name in (*untuned, "astra")} == {"untuned"}
    assert found["cmrm"] == related[0].tuning and found["text_score_verdict"] == rule.tuning
    assert {found[name] for name in GUARDS} == {"best of 8 on validation"}


def test_a_guard_from_a_file_is_told_apart_from_an_untuned_defence(prompt_set, guard):
    found = tunings(LineUp("some/vlm", KEYWORDS, RULE, guard), prompt_set("blank"))
    assert {found[name] for name in GUARDS} == {GIVEN}
    assert found["text_score_verdict"] == "untuned"
