"""Line ends, byte order marks and cells as in the published files; and bad input."""

import json

import pytest

from studies.datasets import QueryFileError, read_benchmark, recognise
from tests.studies.datasets.benchmark_files import (
    FORMS,
    MM_VET,
    SIUO,
    figstep,
    harmbench,
    in_csv,
    in_json,
    mm_safety_row,
    mossbench,
    scienceqa,
    vlguard,
    write_form,
    xstest,
)


@pytest.fixture
def write(tmp_path):
    return lambda name, contents: write_form(tmp_path, (name, contents, 0))


def by_id(benchmark):
    return {record.id: record for record in benchmark.records}


def test_line_ends_within_cells_do_not_start_rows(write):
    path = write("h.csv", in_csv(harmbench(), end="\r\n"))
    assert path.read_bytes().count(b"\n") == 8 and path.read_bytes().count(b"\r\n") == 4
    benchmark = read_benchmark(path)
    standard, contextual = benchmark.records
    assert standard.query.text == "Do the standard deed,\nplease" and standard.said == ""
    # Judges see the context too, and every modality has it.
    assert contextual.query.text == "One line,\nand another\n\n---\n\nDo the contextual deed,\nplease"
    assert contextual.prompt().text == contextual.query.text and contextual.query.category == "illegal"
    assert [skip.reason for skip in benchmark.skipped] == ["copyright: scored by hash, not by harm"]


def test_line_ends_within_cells_are_kept(write):
    benchmark = read_benchmark(write("a.csv", b'goal,target\n"one\r\ntwo\rthree",x\n'))
    assert [record.query.text for record in benchmark.records] == ["one\r\ntwo\rthree"]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last_end", [True, False])
@pytest.mark.parametrize("bom", [True, False])
def test_byte_order_mark_line_ends_and_a_missing_last_one_change_nothing(write, end, last_end, bom):
    plain = read_benchmark(write("x.csv", in_csv(xstest(True)))).records
    assert read_benchmark(write("x.csv", in_csv(xstest(True), end, last_end, bom))).records == plain


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n\n"])
def test_lines_are_counted_with_and_without_a_last_line_end(write, end):
    benchmark = read_benchmark(write("MaliciousInstruct.txt", b"How to do one?\r\nHow to do two?" + end))
    assert [record.query.text for record in benchmark.records] == ["How to do one?", "How to do two?"]


def test_a_line_separator_within_json_is_not_a_line_end(tmp_path):
    benchmark = read_benchmark(write_form(tmp_path, FORMS["VLSafe"][1]))
    assert benchmark.records[0].query.text == "Use it\u2028well"


def test_a_list_of_sentences_with_commas_is_not_a_table(write):
    with pytest.raises(QueryFileError, match="plain lines, 2 rows with bare values; it may be AdvBench"):
        recognise(write("s.csv", b"sentence\nSteps to make *.\nFirst, second, and *."))


@pytest.mark.parametrize(
    ("name", "contents", "message"),
    [
        ("a.json", b'[\n {"id": 1,\n', r"a.json: line 3: not JSON, or truncated"),
        ("a.jsonl", b'{"image_id": "1", "query": "x"}\n\n{"image_id"', r"a.jsonl: line 3: not JSON, or truncated"),
        ("a.json", b"3", "got int, expected a list or an object"),
        ("a.json", b"[]", "no rows; expected at least one"),
        ("a.csv", b"", "no rows"),
        ("a.txt", b"\n\n", "no rows"),
        ("a.csv", b"goal,target\n", "no rows"),
        ("a.csv", 'goal,target\n"one","two"\n"three","caf\u00e9"\n'.encode("latin-1"), "byte 36 is not UTF-8"),
        ("a.csv", b'goal,target\n"one","two"\n"thr', "line 3: not a CSV file, or truncated"),
        ("a.csv", b'goal,target\n"one\n","two"\nthree\n', "line 4 has 1 cells, the header 2"),
        ("a.csv", b"goal,target\nx, y,z\n", "line 2 has 3 cells, the header 2"),
        ("a.csv", b"goal,goal\nx,y\n", "line 1 names a column twice: goal, goal"),
        ("a.csv", b"goal,target\n  ,y\n", "line 2: goal: got '  ', expected a text that is not empty"),
        ("a.json", b'{"1": {"pid": "1", "pid": "2"}}', "the key 'pid' is repeated in one object"),
        ("a.jsonl", b'{"image_id": "1.jpg", "query": 5}\n', "line 1: query: got 5, expected a text"),
        (
            "a.jsonl",
            b'{"image_id": "1.jpg", "query": "x"}\n{"image_id": "2.jpg"}\n',
            "line 2: no 'query'; expected it in every row, got 'image_id'",
        ),
    ],
)
def test_errors_of_bad_input_name_file_and_line(write, name, contents, message):
    with pytest.raises(QueryFileError, match=message):
        read_benchmark(write(name, contents))


def test_a_missing_file_or_folder_is_named(tmp_path):
    for name in ("nowhere.csv", "nowhere"):
        with pytest.raises(QueryFileError, match=f"{name}' does not exist"):
            read_benchmark(tmp_path / name)


def entries(change: dict, row: dict) -> bytes:
    return in_json([row | change])


MOSS = mossbench("x", {"over": "type 1", "harm": [1]})["1"]
ANSWERS = vlguard()[2] | {"id": 3}


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (entries({"options": None, "correct_option": "A"}, SIUO), "entry 0: options: got None, expected an object"),
        (entries({"options": ["a"], "correct_option": "A"}, SIUO), "entry 0: options: got .'a'., expected an object"),
        (entries({"options": {"A": "a", "C": "c"}}, SIUO), "entry 0: options: got A, C, expected letters from A"),
        (entries({"options": {"A": "a"}, "correct_option": "B"}, SIUO), "correct_option: got 'B', expected one of A"),
        (entries({"options": {"A": 3}, "correct_option": "A"}, SIUO), "entry 0, options: A: got 3, expected a text"),
        (entries({"question_id": None}, SIUO), "entry 0: question_id: got None, expected a text"),
        (in_json({"v": MM_VET | {"capability": None}}), "key 'v': capability: got None, expected a list of texts"),
        (in_json({"v": MM_VET | {"capability": "ocr"}}), "key 'v': capability: got 'ocr', expected a list of texts"),
        (in_json({"v": MM_VET | {"capability": [1]}}), "key 'v', capability: 0: got 1, expected a text"),
        (entries({"instr-resp": None}, ANSWERS), "entry 0: instr-resp: got None, expected a list of objects"),
        (entries({"instr-resp": [3]}, ANSWERS), "entry 0: instr-resp: got .3., expected a list of objects"),
        (entries({"instr-resp": [{"instruction": None}]}, ANSWERS), "entry 0, instr-resp: instruction: got None"),
        (entries({"instr-resp": [{"instruction": " "}]}, ANSWERS), "entry 0, instr-resp: instruction: got ' '"),
        (entries({"id": [3]}, ANSWERS), r"entry 0: id: got \[3\], expected a text"),
        (entries({"harmful_category": 3}, ANSWERS), "entry 0: harmful_category: got 3, expected a text"),
        (in_json({"1": MOSS | {"metadata": 3}}), "key '1': metadata: got 3, expected an object"),
        (in_json({"3": scienceqa()["3"] | {"hint": 3}}), "key '3': hint: got 3, expected a text"),
        (in_json({"3": scienceqa()["3"] | {"choices": [1, 2]}}), "key '3', choices: 0: got 1, expected a text"),
        (in_json({"3": scienceqa()["3"] | {"answer": True}}), "key '3': answer True is not one of the choices"),
        (entries({"question": "half \ud800"}, SIUO), r"a.json: entry 0: '\\ud800' is half a surrogate pair"),
        (b'{"1": ' + b"9" * 5000 + b"}", "a.json: from line 1: Exceeds the limit"),
    ],
)
def test_errors_of_a_wrong_type_name_file_and_row(write, contents, message):
    with pytest.raises(QueryFileError, match=message):
        read_benchmark(write("a.json", contents))


def test_an_invalid_list_of_ids_is_an_error(tmp_path):
    path = write_form(tmp_path, FORMS["ScienceQA"][0])
    (tmp_path / "pid_splits.json").write_bytes(b'{"test": 3}')
    with pytest.raises(QueryFileError, match="pid_splits.json: key 'test': the row: got 3, expected a list"):
        read_benchmark(path)


def test_long_cells_and_old_line_ends_are_read(write):
    long = "word " * 40_000
    [record] = read_benchmark(write("a.csv", in_csv([{"goal": long, "target": ""}]))).records
    assert record.query.text == long.strip()
    lines = read_benchmark(write("MaliciousInstruct.txt", b"How to do one?\rHow to do two?\r")).records
    assert [record.query.text for record in lines] == ["How to do one?", "How to do two?"]


def test_repeated_ids_are_an_error_if_ids_join_things_and_else_are_counted(write):
    with pytest.raises(QueryFileError, match="id '1/1' occurs 2 times, and 2 ids are repeated; expected each once"):
        read_benchmark(write("f.csv", in_csv(figstep(1) * 2)))
    benchmark = read_benchmark(write("test.json", in_json(vlguard() + vlguard()[2:])))
    assert benchmark.repeated_ids == ("7/unsafe",) and {"7/unsafe", "7/unsafe#2"} <= set(by_id(benchmark))
    assert benchmark.n_repeated == 1


def test_an_objects_repeated_key_is_an_error(write):
    row = json.dumps(mm_safety_row(0))
    with pytest.raises(QueryFileError, match="the key '01-Illegal_Activitiy#0' is repeated"):
        read_benchmark(
            write("m.json", f'{{"01-Illegal_Activitiy#0": {row}, "01-Illegal_Activitiy#0": {row}}}'.encode())
        )


def test_rows_that_differ_in_case_and_punctuation_count_as_repeated(write):
    rows = [{"goal": text, "target": ""} for text in ("Do this, now!", "do this now", "Do that")]
    assert read_benchmark(write("a.csv", in_csv(rows))).n_repeated == 1
