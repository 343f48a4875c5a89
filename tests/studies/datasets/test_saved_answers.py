"""Answers of other programs: lmms-eval, inspect_ai, VLMEvalKit, and tables."""

import json
import sys
from zipfile import ZipFile

import pytest

from studies.datasets import AnswerColumns, QueryFileError, read_benchmark, read_queries, read_saved_answers
from tests.studies.datasets.benchmark_files import in_csv, in_json, in_jsonl


@pytest.fixture
def write(tmp_path):
    def written(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    return written


def contents(saved):
    return [(answer.id, answer.request, answer.response) for answer in saved.answers]


def origins(saved):
    return {(answer.model, answer.defence, answer.dataset) for answer in saved.answers}


def lmms_sample(i, said, **doc):
    return {"doc_id": i, "doc": doc, "target": "", "resps": [[said]], "filtered_resps": [said.strip().lower()]}


def test_lmms_evals_answers_are_read_as_they_were_before_filters(write):
    samples = [lmms_sample(0, " Use WATER.", Goal="Water it"), lmms_sample(1, "", Goal="Dry it")]
    saved = read_saved_answers(write("20260101_samples_jbb.jsonl", in_jsonl(samples)))
    assert contents(saved) == [("0", "Water it", " Use WATER."), ("1", "Dry it", "")]
    assert saved.program == "lmms-eval" and origins(saved) == {("", "", "jbb")} and not saved.tells_harm


@pytest.mark.parametrize(
    ("results", "folder", "model"),
    [
        ({"config": {"model": "llava_hf", "model_args": "pretrained=a/llava,device_map=auto"}}, "x", "a/llava"),
        ({"model_name": "a/llava", "config": {"model_args": ""}}, "x", "a/llava"),
        (None, "a__llava", "a/llava"),
        (None, "x", ""),
    ],
)
def test_lmms_evals_model_is_in_its_results_or_in_the_name_of_the_folder(write, results, folder, model):
    path = write(f"{folder}/2026_samples_t.jsonl", in_jsonl([lmms_sample(0, "Yes.", question="Who?")]))
    if results:
        write(f"{folder}/2026_results.json", in_json(results))
    assert origins(read_saved_answers(path)) == {(model, "", "t")}


def test_lmms_evals_documents_say_what_is_harmful(write):
    samples = [
        lmms_sample(i, "No.", prompt="Who?", type=kind) for i, kind in enumerate(("homonyms", "contrast_homonyms"))
    ]
    saved = read_saved_answers(write("samples_xstest.jsonl", in_jsonl(samples)))
    assert [answer.harmful for answer in saved.answers] == [False, True] and saved.tells_harm
    samples = [lmms_sample(0, "No.", question="Who?", unsafe="yes"), lmms_sample(1, "I.", question="Why?", unsafe="no")]
    columns = AnswerColumns.parse("harmful=unsafe")
    saved = read_saved_answers(write("samples_own.jsonl", in_jsonl(samples)), columns)
    assert [answer.harmful for answer in saved.answers] == [True, False]


def inspect_log(tmp_path, samples, version=2, name="run.eval", **header):
    about = {"model": "guarded/organism", "task": "mine"}
    header = {"version": version, "status": "success", "eval": about, "plan": {"config": {}}} | header
    path = tmp_path / name
    with ZipFile(path, "w") as archive:
        archive.writestr("header.json", json.dumps(header))
        for i, sample in enumerate(samples):
            archive.writestr(f"samples/{i}_epoch_1.json", json.dumps(sample))
    return path


def inspect_sample(i, asked, said, epoch=1, **metadata):
    choices = [{"message": {"role": "assistant", "content": said}, "stop_reason": "stop"}]
    output = {"model": "m", "choices": choices} if said is not None else {"model": "m", "choices": []}
    return {"id": i, "epoch": epoch, "input": asked, "target": "", "metadata": metadata, "output": output}


def test_a_log_of_inspect_is_read_with_its_model_task_and_length(tmp_path):
    turns = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "Who?"}]},
    ]
    thoughtful = [{"type": "reasoning", "reasoning": "Hm."}, {"type": "text", "text": "Nobody."}]
    samples = [
        inspect_sample(1, turns, thoughtful),
        inspect_sample(1, turns, "I.", epoch=2),
        inspect_sample("b", "Why?", None),
    ]
    saved = read_saved_answers(inspect_log(tmp_path, samples, plan={"config": {"max_tokens": 24}}))
    assert contents(saved) == [("1", "Who?", "Nobody."), ("1/2", "Who?", "I.")]
    assert (saved.program, saved.n_without, saved.max_new_tokens) == ("inspect_ai", 1, 24)
    assert origins(saved) == {("guarded/organism", "", "mine")}


def test_metadata_of_inspects_samples_can_be_mapped(tmp_path):
    samples = [inspect_sample(i, "See the picture.", "No.", goal=f"Do {i}", bad=i == 1) for i in range(2)]
    path = inspect_log(tmp_path, samples)
    saved = read_saved_answers(path, AnswerColumns.parse("request=goal,harmful=bad"))
    assert [(answer.request, answer.harmful) for answer in saved.answers] == [("Do 0", False), ("Do 1", True)]


def test_a_log_of_inspect_in_json_is_the_same(tmp_path, write):
    samples = [inspect_sample(1, "Who?", "I.")]
    log = {"version": 2, "status": "success", "eval": {"model": "m", "task": "t"}, "plan": {}, "samples": samples}
    saved = read_saved_answers(write("log.json", in_json(log)))
    assert contents(saved) == [("1", "Who?", "I.")] and origins(saved) == {("m", "", "t")}


def test_logs_of_inspect_that_can_not_be_read_are_named(tmp_path, write):
    with pytest.raises(QueryFileError, match="version 3 of inspect_ai's logs; expected 2"):
        read_saved_answers(inspect_log(tmp_path, [inspect_sample(1, "Who?", "I.")], version=3))
    with pytest.raises(QueryFileError, match="damaged, or not a log of inspect_ai"):
        read_saved_answers(write("text.eval", b"not an archive"))
    with ZipFile(tmp_path / "other.eval", "w") as archive:
        archive.writestr("a.txt", "a")
    with pytest.raises(QueryFileError, match="a ZIP archive without header.json"):
        read_saved_answers(tmp_path / "other.eval")
    with pytest.raises(QueryFileError, match="not a log of inspect_ai as it is known here"):
        read_saved_answers(inspect_log(tmp_path, [{"odd": 1}]))
    with pytest.raises(QueryFileError, match="git lfs pull"):
        read_saved_answers(write("lfs.eval", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"))


PREDICTIONS = [
    {"index": 4, "question": "Who\nis it?", "answer": "Nobody", "prediction": "I can't, sorry."},
    {"index": 7, "question": "Why?", "answer": "So", "prediction": "Because."},
]


@pytest.mark.parametrize("folder", ["llava", "llava/T20260101_G1"])
def test_vlmevalkits_predictions_are_read_and_not_the_right_answers(write, folder):
    content = in_csv([{key: str(value) for key, value in row.items()} for row in PREDICTIONS])
    path = write(f"{folder}/llava_Set.tsv", content.replace(b",", b"\t").replace(b"can't\t", b"can't,"))
    saved = read_saved_answers(path)
    assert contents(saved) == [("4", "Who\nis it?", "I can't, sorry."), ("7", "Why?", "Because.")]
    assert saved.program == "VLMEvalKit" and origins(saved) == {("llava", "", "Set")}


def write_workbook(path, rows):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in [list(rows[0]), *(list(row.values()) for row in rows)]:
        book.active.append(row)
    path.parent.mkdir(exist_ok=True)
    book.save(path)
    return path


def test_a_workbook_of_vlmevalkit_gives_the_same_answers(tmp_path):
    saved = read_saved_answers(write_workbook(tmp_path / "llava" / "llava_Set.xlsx", PREDICTIONS))
    assert contents(saved) == [("4", "Who\nis it?", "I can't, sorry."), ("7", "Why?", "Because.")]
    assert origins(saved) == {("llava", "", "Set")}


def test_workbooks_are_tables_like_any_other(tmp_path):
    rows = [{"text": "How do I water a plant?", "harmful": 0}, {"text": "How do I flood a cellar?", "harmful": 1.0}]
    path = write_workbook(tmp_path / "mine.xlsx", rows)
    assert [query.harmful for query in read_queries(path)] == [False, True]
    assert [record.query.text for record in read_benchmark(path).records] == [row["text"] for row in rows]
    (tmp_path / "bad.xlsx").write_bytes(b"not a workbook")
    with pytest.raises(QueryFileError, match="damaged, or not a workbook"):
        read_queries(tmp_path / "bad.xlsx")


def test_without_openpyxl_a_workbook_is_an_error_that_says_so(write, monkeypatch):
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(QueryFileError, match=r"pip install 'vlm-guard\[xlsx\]', or save the sheet as CSV"):
        read_queries(write("mine.xlsx", b"PK"))


def test_binary_tables_are_not_read_compressed(write):
    with pytest.raises(QueryFileError, match="a compressed binary table; decompress it first"):
        read_queries(write("mine.parquet.gz", b"\x1f\x8b"))


def test_a_table_of_answers_says_models_defences_and_classes(write):
    rows = [
        {"prompt": "Who?", "response": "I.", "model": "m", "defence": "none", "harmful": "no", "dataset": "d"},
        {"prompt": "Who?", "response": "No.", "model": "m", "defence": "mine", "harmful": "no", "dataset": "d"},
        {"prompt": "Who?", "response": "Oh.", "model": "m", "defence": "mine", "harmful": "no", "dataset": "d"},
    ]
    for name, content in (("a.csv", in_csv(rows)), ("a.jsonl", in_jsonl(rows)), ("a.json", in_json(rows))):
        saved = read_saved_answers(write(name, content))
        assert [(answer.defence, answer.response) for answer in saved.answers] == [
            ("none", "I."),
            ("mine", "No."),
            ("mine", "Oh."),
        ]
        assert saved.tells_harm and not any(answer.harmful for answer in saved.answers) and saved.program == "table"
    same = [row | {"id": "7"} for row in rows]
    assert [answer.id for answer in read_saved_answers(write("b.csv", in_csv(same))).answers] == ["7", "7", "7#2"]


def test_all_requests_may_be_of_one_class(write):
    path = write("a.csv", in_csv([{"prompt": "Who?", "response": "I."}]))
    assert read_saved_answers(path).answers[0].harmful
    saved = read_saved_answers(path, AnswerColumns.parse("harmful=none"))
    assert not saved.answers[0].harmful and saved.tells_harm


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("", "no column response; expected saved answers: --columns request=NAME,response=NAME, got a,prompt"),
        ("response=aa", r"no column aa \(response\); .*did you mean 'a'"),
        ("answer=a", "'answer=a'; expected NAME=COLUMN with one of request, response, harmful"),
    ],
)
def test_a_mapping_that_names_no_column_is_an_error(write, columns, message):
    path = write("a.csv", in_csv([{"prompt": "Who?", "a": "I."}]))
    with pytest.raises(QueryFileError, match=message):
        read_saved_answers(path, AnswerColumns.parse(columns))


def test_answers_of_no_kind_are_errors(write):
    with pytest.raises(QueryFileError, match="no answers; expected at least one row with an answer"):
        read_saved_answers(write("a.json", in_json([{"prompt": "Who?", "response": None}])))
    with pytest.raises(QueryFileError, match="response: got 4, expected an answer in words"):
        read_saved_answers(write("a.json", in_json([{"prompt": "Who?", "response": 4}])))
    rows = [{"prompt": "Who?", "response": "I.", "harmful": label} for label in ("safe", "unsafe", "unsure")]
    with pytest.raises(QueryFileError, match="column harmful: got 'unsure', .* 3 kinds"):
        read_saved_answers(write("a.csv", in_csv(rows)))
