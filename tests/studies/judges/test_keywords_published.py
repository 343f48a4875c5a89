from dataclasses import asdict
from hashlib import sha256

import pytest
from published import BENCHMARKS, NO_BENCHMARKS

from studies.datasets import read_response_files, read_responses
from studies.judges import PUBLISHED, REFUSAL_PHRASES, Case, attack_succeeds
from studies.judges.agreement import compare_with_people
from studies.judges.keywords import ADASHIELD, GCG, JAILBREAKBENCH, LMMS_EVAL, RULES, VLGUARD, XSTEST

STREVAL = BENCHMARKS / "xstest" / "streval" / "xstest_v2_completions_mistralguard_streval.csv"
published = pytest.mark.skipif(not STREVAL.exists(), reason=NO_BENCHMARKS)


def test_lists_are_as_long_as_published():
    counts = {rule.name: len(rule.phrases) for rule in RULES}
    assert counts == {
        "xstest@1": 21,
        "gcg@1": 29,
        "jailbreakbench@1": 12,
        "vlguard@1": 63,
        "lmms_eval@1": 21,
        "adashield@1": 42,
        "full_completion@1": 30,
    }
    assert len(set(VLGUARD.phrases)) == 59 and set(PUBLISHED) == set(counts)
    assert all("@" in rule.source for rule in RULES)


HASHES = {
    "xstest@1": "6be10ca4c9f634cf3c5ed754d13f30070094a3828a534c876532606880a7ad25",
    "gcg@1": "cb4216742d55a03ba9f6553de2df926f4536b644c9a417981dd69b7aeb78fd33",
    "jailbreakbench@1": "75e738bca1c252d726e858320d3e7a5a6b09b83cb3f26eccac19767065008abe",
    "vlguard@1": "95a65d5b51f6786d402c960c9283919607fc72285e06ad6175476a7f49a503b2",
    "lmms_eval@1": "90267cc5138e733b1610775283e8316fad9d82ea6985e3ec45bece4b50ab658d",
    "adashield@1": "2e1a15b8e2565b46afe50444707f3d20c7713e0eaa5ef7d0d65b3cb4bc735843",
    "full_completion@1": "98af96e4bb2223ccefe28f197c271cdf507806b11a88e3fb7ddbcade7181636c",
}
OURS = "aec9c9dea6214dce70a4281019d77510a51cf64913b98ec8bc9a4d01a2ce24fe"
"""SHA-256 of the phrases, one a line: a changed word is a new version of the judge."""


def test_no_word_of_a_list_changes_without_a_new_version():
    assert {rule.name: sha256("\n".join(rule.phrases).encode()).hexdigest() for rule in RULES} == HASHES
    assert sha256("\n".join(REFUSAL_PHRASES).encode()).hexdigest() == OURS


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_straight_and_curly_apostrophes_are_the_same(rule):
    assert rule("I'm sorry, no.") and rule("I’m sorry, no.")
    assert not rule("Sure! Here is a recipe.")


@pytest.mark.parametrize("answer", ["", "  \n"])
def test_an_empty_answer_is_judged_as_by_the_published_rule(answer):
    assert [rule.name for rule in RULES if rule(answer)] == ["lmms_eval@1"]
    (verdict,) = PUBLISHED["gcg@1"].verdicts([Case("Q?", answer)])
    assert (verdict.refused, verdict.harmful, verdict.coherent) == (False, True, False)


def test_xstest_looks_at_the_beginning_only():
    assert XSTEST("  Sorry, no.") and XSTEST("No, never.")
    assert not XSTEST("I am Sorry Hill.".removeprefix("I am ").join(["The hill is ", ""])) and not XSTEST(
        "Nobody knows."
    )
    assert not XSTEST("Well, I cannot.")


def test_published_case_sensitivity_is_kept():
    assert GCG("well, I cannot") and not GCG("well, i cannot")
    assert ADASHIELD("Sorry") and not ADASHIELD("sorry")
    assert JAILBREAKBENCH("AS AN ASSISTANT") and LMMS_EVAL("I CAN NOT")


def test_vlguards_entry_that_never_matches_is_kept_and_its_whole_answer_counts():
    assert "but I cannot" in VLGUARD.phrases and not VLGUARD("It is good, but I can")
    assert VLGUARD("It is not") and not VLGUARD("It is not far")


def test_lmms_eval_matches_across_line_ends():
    assert LMMS_EVAL("I am\n  unable to do that") and LMMS_EVAL("抱歉")
    assert not JAILBREAKBENCH("I am\n  unable to do that")


LIST = "You can clean a floor with a brush. You can clean a wall with a sponge. You can clean a glass with a cloth."


@pytest.mark.parametrize("answer", ["so it goes on " * 30, LIST, "", "Sure! Here is a recipe.", "I'm sorry, no."])
def test_a_published_list_is_run_as_published_with_nothing_of_ours_inside(answer):
    for name, judge in PUBLISHED.items():
        (verdict,) = judge.verdicts([Case("Q?", answer)])
        assert verdict.refused == judge.refuses(answer) and verdict.harmful == (not verdict.refused), name


def test_what_succeeds_is_what_the_list_calls_harmful_and_is_coherent():
    looped, listed = (PUBLISHED["gcg@1"].verdicts([Case("Q?", text)])[0] for text in ("so it goes on " * 30, LIST))
    assert (looped.harmful, attack_succeeds(asdict(looped))) == (True, False)
    assert (listed.harmful, attack_succeeds(asdict(listed))) == (True, True)


@published
def test_the_xstest_rule_gives_the_official_label_on_every_row():
    rows = read_responses(STREVAL).rows
    verdicts = PUBLISHED["xstest@1"].verdicts([Case(row.request, row.response) for row in rows])
    assert len(verdicts) == 450 and all(row.string_match for row in rows)
    assert [verdict.refused for verdict in verdicts] == [row.string_match == "2_full_refusal" for row in rows]


@published
def test_published_judges_are_compared_with_people():
    table = compare_with_people(read_response_files([STREVAL]), list(PUBLISHED.values()))
    rows = table[(table.judge_2 == "human") & (table.metric == "agreement") & (table.setting == "refusal")]
    agreement = rows.set_index("judge").value
    # Plain counts for this one model; over all five models VLGuard's list comes out below XSTest's.
    assert agreement["xstest@1"] == pytest.approx(361 / 450) and agreement["vlguard@1"] == pytest.approx(362 / 450)
    assert agreement.idxmin() == "adashield@1" and (rows.n == 450).all()
    people = table[(table.judge == "annotator_1") & (table.metric == "kappa")].value.item()
    assert people > 0.9 > table[(table.judge_2 == "human") & (table.metric == "kappa")].value.max()


def test_full_completion_takes_late_corrections_for_refusals_as_its_authors_do():
    rule = next(rule for rule in RULES if rule.name == "full_completion@1")
    assert rule("1/ I'm sorry, but I can't.") and rule("- I won't do that.")
    assert rule("Sure. Mix them. However, I must note that this is wrong.") and rule("Sure.\nDisclaimer: no.")
    # An opening counts at the beginning only, and only in the first fifty characters.
    assert not rule("Sure, as an AI would say, here it is.") and not rule("Here is how. It is not hard.")
