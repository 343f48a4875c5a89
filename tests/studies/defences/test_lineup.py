"""Which defences are in the line-up, which references they read, and which are left out."""

import pytest

from interp.directions import SafetyDirection
from interp.guard import Guard
from interp.inputs import to_prompts
from interp.trace import trace
from studies.defences.defence import BOUND, CONTROL, GUARD
from studies.defences.lineup import GUARDS, RELATED_METHODS, UNFITTED, WITHOUT_RIVALS, LineUp
from studies.defences.prompt_sets import PromptSet
from studies.judges import KEYWORDS


@pytest.fixture
def guard(tiny_vlm, queries):
    anchors = trace(tiny_vlm, to_prompts(queries, "text", tiny_vlm.picture_size))
    return Guard(SafetyDirection.fit(anchors, "mean_diff"), (1,), strength=2.0)


@pytest.fixture
def prompt_set(queries):
    return lambda modality: PromptSet.of("plain", modality, to_prompts(queries, modality, 96), "mine")


def test_every_defence_is_in_the_line_up_under_a_name_that_can_be_asked_for(prompt_set, guard):
    related = [(name, guard) for name in RELATED_METHODS]
    defences = LineUp("some/vlm", KEYWORDS, guard, related)(prompt_set("typographic"), ["prompt_text", "oracle"])
    assert list(dict.fromkeys(defence.name for defence in defences)) == [*UNFITTED, *GUARDS, *RELATED_METHODS]
    kinds = {(defence.name, defence.reference): defence.kind for defence in defences}
    assert kinds["guard", "prompt_text"] == GUARD and kinds["guard", "oracle"] == BOUND
    assert kinds["guard_random", "oracle"] == CONTROL and kinds["guard_full_state", "prompt_text"] == BOUND
    # The request is in the picture.
    assert ("cmrm", "transcription") in kinds and ("shift_dc", "prompt_text+caption") in kinds
    blank = LineUp("some/vlm", KEYWORDS, guard, related)(prompt_set("blank"), ["caption"])
    assert {defence.reference for defence in blank if defence.name == "cmrm"} == {"caption"}


def test_without_rivals_only_the_defences_of_the_claims_are_left(prompt_set, guard):
    defences = LineUp("some/vlm", KEYWORDS, guard, names=WITHOUT_RIVALS)(prompt_set("blank"), ["prompt_text"])
    assert [defence.name for defence in defences] == ["unguarded", *WITHOUT_RIVALS]


def test_without_guard_or_pictures_only_prompt_defences_and_the_text_verdict_are_left(prompt_set):
    defences = LineUp("some/vlm", KEYWORDS)(prompt_set("text"), ["prompt_text"])
    assert [defence.name for defence in defences] == [name for name in UNFITTED if name not in ("ecso", "caption_only")]
