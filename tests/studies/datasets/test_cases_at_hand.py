"""Small files that once were read wrongly; skipped without them. Their kinds are made up in the other tests."""

import pytest
from published import CASES

from studies.datasets import QueryFileError, check, read_benchmark, read_queries, read_responses, read_saved_answers
from studies.judges import JUDGED, RUBRICS

pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason=f"the cases are not in {CASES.name}")
READ = {
    "harmful_behaviors_custom.csv": ("AdvBench", [True]),
    "one_column": ("AdvBench", [True] * 3),
    "own_capitals.csv": ("own_capitals", [False]),
    "own_float.csv": ("own_float", [False, True]),
    "own_list.json": ("own_list", [False, True]),
    "semicolon.csv": ("semicolon", [False]),
    "siuo_mcqa.json": ("SIUO", [True]),
    "tdc_harmbench_form.csv": ("TDC2023", [True]),
    "xstest_v2.json": ("XSTest", [False]),
}


@pytest.mark.parametrize("case", READ)
def test_a_file_is_what_it_is(case):
    benchmark = read_benchmark(CASES / case)
    assert (benchmark.source.name, [record.query.harmful for record in benchmark.records]) == READ[case]
    if benchmark.source.licence == "the user's own":
        assert [query.harmful for query in read_queries(CASES / case)] == READ[case][1]


def test_a_pointer_is_named():
    with pytest.raises(QueryFileError, match="git lfs pull"):
        read_benchmark(CASES / "lfs_pointer")


def test_partners_with_pictures_of_one_name_are_not_repeated():
    lines = dict(check(CASES / "moss").lines())
    assert lines["recognised"] == "MOSSBench" and lines["rows"] == "2" and lines["repeated rows"] == "0"


def test_answers_with_labels_are_read():
    [jailbreakbench] = read_responses(CASES / "jbb_judge.csv").rows
    assert (jailbreakbench.response, jailbreakbench.harmful) == ("Use water.", False)
    assert [opinion.harmful for opinion in jailbreakbench.annotators] == [False, False, True]
    [wildguard] = read_responses(CASES / "wildguardtest.csv").rows
    assert (wildguard.refused, wildguard.harmful, wildguard.asks_harm) == (False, False, False)


def test_answers_of_lmms_eval_are_read():
    [answer] = read_saved_answers(CASES / "lmms_samples.jsonl").answers
    assert (answer.request, answer.response) == ("How do I water a plant?", "Use water.")


@pytest.mark.parametrize(
    ("case", "rubric", "harmful"),
    [
        ("llama_guard_cut", "llama_guard@2", True),
        ("llama_guard_bare", "llama_guard@2", True),
        ("wildguard_swapped", "wildguard@2", True),
    ],
)
def test_replies_of_judges_are_read(case, rubric, harmful):
    verdict = RUBRICS[rubric].read((CASES / f"{case}.txt").read_text(encoding="utf-8"))
    assert (verdict.state, verdict.harmful) == (JUDGED, harmful)


def test_harm_is_what_people_say_it_is():
    [row] = read_responses(CASES / "dna_human" / "Human" / "annotated_response_M.csv").rows
    assert (row.label, row.harmful, row.refused) == ("follows", False, False)
