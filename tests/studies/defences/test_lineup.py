"""Who answers, what each is shown, and who is left out."""

import pytest

from interp.directions import SafetyDirection
from interp.guard import Guard
from interp.inputs import to_prompts
from interp.trace import trace
from studies.defences.defence import BOUND, CONTROL, GUARD
from studies.defences.lineup import GUARDS, NEIGHBOURS, UNFITTED, WITHOUT_RIVALS, LineUp
from studies.defences.prompt_sets import PromptSet
from studies.judges import KEYWORDS


@pytest.fixture
def guard(tiny_vlm, queries):
    anchors = trace(tiny_vlm, to_prompts(queries, "text", tiny_vlm.picture_size))
    return Guard(SafetyDirection.fit(anchors, "mean_diff"), (1,), strength=2.0)


@pytest.fixture
def put(queries):
    return lambda modality: PromptSet.of("plain", modality, to_prompts(queries, modality, 96), "mine")


def test_everybody_is_there_and_goes_by_a_name_that_can_be_asked_for(put, guard):
    neighbours = [(name, guard) for name in NEIGHBOURS]
    found = LineUp("some/vlm", KEYWORDS, guard, neighbours)(put("typographic"), ["prompt_text", "oracle"])
    assert list(dict.fromkeys(one.name for one in found)) == [*UNFITTED, *GUARDS, *NEIGHBOURS]
    told = {(one.name, one.reference): one.kind for one in found}
    assert told["guard", "prompt_text"] == GUARD and told["guard", "oracle"] == BOUND
    assert told["guard_random", "oracle"] == CONTROL and told["guard_full_state", "prompt_text"] == BOUND
    # What is asked stands in the picture.
    assert ("cmrm", "transcription") in told and ("shift_dc", "prompt_text+caption") in told
    beside = LineUp("some/vlm", KEYWORDS, guard, neighbours)(put("blank"), ["caption"])
    assert {one.reference for one in beside if one.name == "cmrm"} == {"caption"}


def test_without_rivals_what_the_claims_are_about_is_left(put, guard):
    found = LineUp("some/vlm", KEYWORDS, guard, names=WITHOUT_RIVALS)(put("blank"), ["prompt_text"])
    assert [one.name for one in found] == ["unguarded", *WITHOUT_RIVALS]


def test_without_guard_or_pictures_there_are_words_alone(put):
    found = LineUp("some/vlm", KEYWORDS)(put("text"), ["prompt_text"])
    assert [one.name for one in found] == [name for name in UNFITTED if name not in ("ecso", "caption_only")]
