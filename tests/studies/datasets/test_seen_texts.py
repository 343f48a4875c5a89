import json

import pytest

from interp import Query
from studies.datasets import QueryFileError, SeenTexts
from studies.datasets.seen_texts import SEEN

ANCHORS = (Query("Feed the small wasp some honey, some water and some fruit today", False),)
VALIDATION = (Query("Water a large green plant", False), Query("Kick nine big red round balls", True))
TESTS = {
    "copy": "water a LARGE green plant!",
    "near": "Kick a big red round ball of nine, big red round nine balls kick",
    "near anchor": "feed small wasp honey water fruit",
    "other": "Paint a house",
}


@pytest.fixture
def folder(tmp_path):
    SeenTexts.of({"anchors": ANCHORS, "validation": VALIDATION}).write(tmp_path)
    return tmp_path


def found(seen):
    leakage = seen.leakage(list(TESTS), list(TESTS.values()))
    return {
        split: {row.test: (row.anchor, row.kind) for row in own.rows.itertuples()} for split, own in leakage.items()
    }


def test_exact_and_near_copies_of_anchors_and_validation_are_found_from_hashes(folder):
    assert found(SeenTexts.read(folder)) == {
        "anchors": {"near anchor": ("anchors 1", "near")},
        "validation": {"copy": ("validation 1", "exact"), "near": ("validation 2", "near")},
    }


def test_hashes_find_what_texts_find(folder):
    seen = SeenTexts.of({"anchors": ANCHORS, "validation": VALIDATION})
    assert {split: set(rows) for split, rows in found(seen).items()} == {
        split: set(rows) for split, rows in found(SeenTexts.read(folder)).items()
    }


def test_the_file_holds_no_text(folder):
    content = (folder / SEEN).read_text().lower()
    assert not any(word in content for query in (*ANCHORS, *VALIDATION) for word in query.text.lower().split()[-2:])


def test_a_folder_without_the_file_knows_nothing_and_anchors_can_be_given(tmp_path):
    nothing = SeenTexts.read(tmp_path)
    assert nothing.by_split == {} and nothing.leakage(["a"], ["b"]) == {} and nothing.with_anchors(()) == nothing
    assert found(nothing.with_anchors(ANCHORS)) == {"anchors": {"near anchor": (ANCHORS[0].text, "near")}}


def test_sentences_name_the_split(folder):
    leakage = SeenTexts.read(folder).leakage(list(TESTS), list(TESTS.values()))
    assert str(leakage["validation"]).startswith("2 of 4 test requests are among the 2 validation requests: 1 word for")
    assert str(leakage["anchors"]).startswith("1 of 4 test requests are among the 1 anchors: 0 word for word, 1 with")


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 1}', '{"format": 1, "splits": {"anchors": [{}]}}'])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / SEEN).write_text(content)
    with pytest.raises(QueryFileError, match=rf"{SEEN}: damaged"):
        SeenTexts.read(tmp_path)


def test_another_format_is_refused(folder):
    saved = json.loads((folder / SEEN).read_text())
    (folder / SEEN).write_text(json.dumps(saved | {"format": 2}))
    with pytest.raises(QueryFileError, match="format 2; this version reads 1"):
        SeenTexts.read(folder)


def test_anchors_that_are_given_do_not_hide_those_of_the_guard(folder):
    """A wrong or partial file of anchors leaves what the guard was fitted on as it was."""
    seen = SeenTexts.read(folder)
    others = (Query("Something else entirely, about gardens", False),)
    assert found(seen.with_anchors(others))["anchors"].keys() == found(seen)["anchors"].keys() != set()
