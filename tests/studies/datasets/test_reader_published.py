"""Counts on the published files; skipped without them."""

import pytest
from published import BENCHMARKS, NO_BENCHMARKS

from interp.pictures import open_picture
from studies.datasets import (
    QueryFileError,
    check,
    find_leakage,
    read_benchmark,
    read_queries,
    read_responses,
    recognise,
)

pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason=NO_BENCHMARKS)
COUNTS = {
    "advbench/advbench_behaviors.harmbench_format.csv": ("AdvBench", 520, 520, 0, 0, 0),
    "advbench/harmful_behaviors.csv": ("AdvBench", 520, 520, 0, 0, 0),
    "do_not_answer/do_not_answer_en.csv": ("Do-Not-Answer", 939, 939, 0, 0, 0),
    "figstep/question/SafeBench-Tiny.csv": ("FigStep", 50, 35, 0, 0, 38),
    "harmbench/harmbench_behaviors_multimodal_all.csv": ("HarmBench-multimodal", 110, 110, 0, 0, 110),
    "harmbench/harmbench_behaviors_text_val.csv": ("HarmBench", 60, 60, 0, 20, 0),
    "jailbreakbench/behaviors.github_schema.csv": ("JailbreakBench", 100, 100, 0, 0, 0),
    "lvlm_safer/1-same_prompt_multiple_meaning.json": ("LVLM-SafeR", 250, 125, 125, 0, 250),
    "lvlm_safer/2-same_prompt_different_attibutes.json": ("LVLM-SafeR", 250, 125, 125, 0, 250),
    "malicious_instruct/MaliciousInstruct.txt": ("MaliciousInstruct", 100, 100, 0, 0, 0),
    "mm_harmful_bench/questions.jsonl": ("MM-HarmfulBench", 100, 100, 0, 0, 100),
    "mm_safetybench/astra_subset_80.official_schema.json": ("MM-SafetyBench", 320, 320, 0, 0, 240),
    "mm_vet/astra_val_mmvet_50.official_schema.json": ("MM-Vet", 50, 0, 0, 0, 50),
    "mossbench/information.csv": ("MOSSBench", 300, 0, 0, 0, 300),
    "mossbench/information.json": ("MOSSBench", 300, 0, 0, 0, 300),
    "refusal_direction/processed/harmbench_val.json": ("refusal_direction", 41, 41, 0, 0, 0),
    "refusal_direction/processed/tdc2023.json": ("refusal_direction", 100, 100, 0, 0, 0),
    "refusal_direction/splits/harmful_train.json": ("refusal_direction", 260, 260, 0, 0, 0),
    "refusal_direction/splits/harmful_val.json": ("refusal_direction", 39, 39, 0, 0, 0),
    "refusal_direction/splits/harmless_val.json": ("refusal_direction", 6264, 0, 0, 0, 0),
    "siuo/siuo_gen.json": ("SIUO", 167, 167, 0, 0, 167),
    "tdc2023/dev_behaviors.json": ("TDC2023", 50, 50, 0, 0, 0),
    "tdc2023/test_behaviors.json": ("TDC2023", 50, 50, 0, 0, 0),
    "vlsafe/vlsafe_convert_safe.jsonl": ("VLSafe", 6000, 3000, 3000, 0, 3000),
    "xstest/xstest_prompts.csv": ("XSTest", 450, 200, 199, 0, 0),
    "xstest/xstest_v2_prompts.older_schema.csv": ("XSTest", 450, 200, 199, 0, 0),
}
RESPONSES = {
    "do_not_answer/Example/sample_questions_GPT4_response_annotated.csv": 5,
    "xstest/model_completions/xstest_v2_completions_mistralguard.csv": 450,
    "xstest/streval/xstest_v2_completions_mistralguard_streval.csv": 450,
}
NOT_BENCHMARKS = {
    "cast_ibm/alpaca.json": "contrasts for steering, harmful and harmless unmarked",
    "cast_ibm/behavior_refusal.json": "openings of answers",
    "figstep/question/benign_sentences_without_harmful_phase.csv": "templates of FigStep-Pro",
    "harmbench/LICENSE.txt": "a licence",
    "lvlm_safer/eval_prompt.txt": "a prompt for judges",
    "vlsafe/ecso_judge_prompts.jsonl": "prompts for judges",
}


def n_pairs(records):
    classes = {(record.query.pair, record.query.harmful) for record in records if record.query.pair}
    return sum((pair, False) in classes for pair, harmful in classes if harmful)


def test_every_file_is_a_benchmark_or_known_not_to_be_one():
    files = {
        str(p.relative_to(BENCHMARKS)) for p in BENCHMARKS.rglob("*") if p.suffix in (".csv", ".json", ".jsonl", ".txt")
    }
    assert files <= set(COUNTS) | set(RESPONSES) | set(NOT_BENCHMARKS)


@pytest.mark.parametrize("file", COUNTS)
def test_published_files_have_the_published_counts(file):
    path = BENCHMARKS / file
    if not path.exists():
        pytest.skip(f"{file} is not at hand")
    name, n, n_harmful, pairs, n_left_out, n_missing = COUNTS[file]
    assert recognise(path) == name
    benchmark = read_benchmark(path)
    records = benchmark.records
    assert (len(records), sum(record.query.harmful for record in records)) == (n, n_harmful)
    assert n_pairs(records) == pairs and len(benchmark.skipped) == n_left_out and len(benchmark.missing) == n_missing
    assert benchmark.repeated_ids == ()


@pytest.mark.parametrize("file", NOT_BENCHMARKS)
def test_other_files_are_not_recognised(file):
    with pytest.raises(QueryFileError, match="not a known form|it may be AdvBench"):
        recognise(BENCHMARKS / file)


@pytest.mark.parametrize("file", RESPONSES)
def test_labelled_answers_are_read(file):
    assert len(read_responses(BENCHMARKS / file).rows) == RESPONSES[file]


def test_folders_are_read_as_one_benchmark():
    counts = {
        "figstep": 50,
        "lvlm_safer": 500,
        "tdc2023": 100,
        "refusal_direction": 6563,
        "xstest": 450,
        "mossbench": 300,
    }
    assert {folder: len(read_benchmark(BENCHMARKS / folder).records) for folder in counts} == counts


def test_figsteps_pictures_are_found_and_stand_ins_have_their_size():
    records = read_benchmark(BENCHMARKS / "figstep", stand_in=True).records
    published = [record for record in records if not record.is_stand_in]
    assert len(published) == 12 and {open_picture(record.picture).size for record in (*published[:2], records[-1])} == {
        (760, 760)
    }


def test_both_schemas_of_xstest_hold_the_same_requests():
    new, old = (
        read_benchmark(BENCHMARKS / "xstest" / name).records
        for name in ("xstest_prompts.csv", "xstest_v2_prompts.older_schema.csv")
    )
    assert [(r.id, r.query) for r in new] == [(r.id, r.query) for r in old]
    pairs = {}
    for record in new:
        pairs.setdefault(record.query.pair, set()).add(record.extra.get("focus"))
    del pairs[None]
    # One row of safe_contexts has a different word in focus, and no partner.
    assert list(map(len, pairs.values())) == [1] * 199


def test_answers_to_xstest_match_its_prompts_by_id():
    prompts = {r.id: r.query.text for r in read_benchmark(BENCHMARKS / "xstest" / "xstest_prompts.csv").records}
    for file in (file for file in RESPONSES if file.startswith("xstest")):
        requests = {row.id: row.request for row in read_responses(BENCHMARKS / file).rows}
        # One prompt was changed after the answers had been collected.
        assert requests.keys() == prompts.keys() and {id for id in requests if requests[id] != prompts[id]} == {"195"}


def test_known_overlaps_are_found():
    read = {
        name: [record.query.text for record in read_benchmark(BENCHMARKS / file).records]
        for name, file in {
            "advbench": "advbench/harmful_behaviors.csv",
            "malicious": "malicious_instruct/MaliciousInstruct.txt",
            "train": "refusal_direction/splits/harmful_train.json",
            "xstest": "xstest/xstest_prompts.csv",
        }.items()
    }

    def n_exact(test):
        rows = find_leakage(read["train"], [str(i) for i in range(len(read[test]))], read[test]).rows
        return (rows.kind == "exact").sum(), len(rows)

    assert n_exact("malicious") == (88, 88) and n_exact("advbench")[0] == 117 and n_exact("xstest") == (0, 0)


def test_a_check_of_do_not_answer_names_its_one_repetition():
    assert dict(check(BENCHMARKS / "do_not_answer").lines())["repeated rows"] == "1"


def test_harm_words_in_vlsafes_harmless_questions_are_parts_of_other_words():
    texts = [r.query.text.lower() for r in read_benchmark(BENCHMARKS / "vlsafe").records if not r.query.harmful]
    words = ("kill", "weapon", "harm", "attack", "bomb", "steal", "destroy", "damage", "murder")
    assert sum(any(word in text for word in words) for text in texts) == 183
    whole = [text for text in texts if set(words) & set(text.strip("?.").split())]
    assert len(whole) == 1 and whole[0].endswith("without causing any harm?")


def test_a_table_of_benchmark_rows_is_read_as_the_users_own(tmp_path):
    rows = [record.query for record in read_benchmark(BENCHMARKS / "xstest" / "xstest_prompts.csv").records]
    path = tmp_path / "mine.csv"
    path.write_text("text,harmful\n" + "".join(f'"{q.text.replace(chr(34), chr(34) * 2)}",{q.harmful}\n' for q in rows))
    assert [query.text for query in read_queries(path)] == [query.text for query in rows]
