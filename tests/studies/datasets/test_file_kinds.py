"""Delimited text, JSON and compressed files as people have them: delimiters, quotes, headings, pointers."""

import gzip
import json

import pytest

from studies.datasets import QueryFileError, read_benchmark, read_queries, recognise
from studies.datasets.files import read_file
from tests.studies.datasets.benchmark_files import FORMS, figstep, in_csv, in_json, in_jsonl, requests, write_form

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 82125\n"


@pytest.fixture
def write(tmp_path):
    return lambda name, contents: write_form(tmp_path, (name, contents, 0))


def texts(path, name=None):
    return [record.query.text for record in read_benchmark(path, name).records]


@pytest.mark.parametrize("name", ["advbench.csv", "safebench.csv", "mine.jsonl", "test.json", "MaliciousInstruct.txt"])
def test_a_git_lfs_pointer_is_named_as_one(write, name):
    for path in (write(name, POINTER), write(f"folder/{name}", POINTER).parent):
        with pytest.raises(QueryFileError, match=rf"{name}: a Git LFS pointer, .* `git lfs pull`"):
            read_benchmark(path)
    with pytest.raises(QueryFileError, match="a Git LFS pointer"):
        read_queries(write(name, POINTER))


@pytest.mark.parametrize("name", ["a.parquet", "saved/data-00000-of-00001.arrow"])
def test_pointers_to_binary_tables_are_named_too(tmp_path, write, name):
    path = write(name, POINTER)
    if path.suffix == ".arrow":
        write("saved/state.json", in_json({"_data_files": [{"filename": path.name}]}))
        path = path.parent
    with pytest.raises(QueryFileError, match="a Git LFS pointer"):
        read_benchmark(path)


@pytest.mark.parametrize(
    ("contents", "reason"),
    [
        (b"/annex/objects/SHA256E-s1--00.csv\n", "a git-annex pointer"),
        (b"\n<!DOCTYPE html>\n<html></html>", "a web page"),
    ],
)
def test_other_files_that_only_stand_for_the_data_are_named(write, contents, reason):
    with pytest.raises(QueryFileError, match=reason):
        read_benchmark(write("advbench.csv", contents))


def test_a_heading_is_not_a_request_and_quoted_cells_are_whole(write):
    path = write(
        "advbench.csv", b'goal\n"Fold a map, then\nfold it again"\n"Say ""hello"" to them"\n\nTell me how, please\n'
    )
    assert texts(path) == ["Fold a map, then\nfold it again", 'Say "hello" to them', "Tell me how, please"]


@pytest.mark.parametrize("heading", ["prompt", "Behavior", "instruction"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_headings_of_other_names_are_headings(write, heading, end):
    path = write("advbench.csv", end.join([heading.encode(), b"Do one, and two", b'"Do three"', b""]))
    assert texts(path) == ["Do one, and two", "Do three"]


@pytest.mark.parametrize(
    ("contents", "expected"),
    [
        (b"Do this deed\nDo that, too\n", ["Do this deed", "Do that, too"]),
        (b'"Do this, now"\nDo that\n', ["Do this, now", "Do that"]),
        (b'"Robin" is who?\nAnd "they", who?\n', ['"Robin" is who?', 'And "they", who?']),
    ],
)
def test_a_list_without_a_heading_keeps_its_first_row(write, contents, expected):
    assert texts(write("advbench.csv", contents)) == expected


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_every_usual_delimiter_is_found(write, delimiter, suffix):
    cell = f'"one{delimiter} two, three; four\nfive"'
    path = write(f"mine.{suffix}", f"text{delimiter}harmful\n{cell}{delimiter}no\nsix{delimiter}yes\n".encode())
    assert recognise(path) == "own"
    assert [(query.text, query.harmful) for query in read_queries(path)] == [
        (f"one{delimiter} two, three; four\nfive", False),
        ("six", True),
    ]


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_benchmarks_are_recognised_with_other_delimiters(write, delimiter):
    rows = [delimiter.join(row.values()) for row in ({key: str(value) for key, value in r.items()} for r in figstep())]
    path = write("f.csv", "\n".join([delimiter.join(figstep()[0]), *rows]).encode())
    assert recognise(path) == "FigStep" and len(read_benchmark(path).records) == 4


def test_texts_full_of_one_delimiter_do_not_hide_the_other(write):
    path = write("mine.csv", b"text;harmful\na, b, c;no\nd, e, f;yes\n")
    assert [query.text for query in read_queries(path)] == ["a, b, c", "d, e, f"]


TABLES = ("XSTest", "FigStep", "HarmBench", "JailbreakBench", "StrongREJECT", "Do-Not-Answer", "own", "RedTeam-2K")


def rows_of(path):
    return [dict(row.cells) for row in read_file(path).rows]


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("suffix", ["json", "jsonl", "ndjson", "tsv"])
def test_a_set_published_as_csv_is_the_same_in_every_kind_of_file(tmp_path, write, name, suffix):
    plain = write_form(tmp_path, FORMS[name][0])
    rows = rows_of(plain)
    contents = {"json": in_json, "tsv": lambda rows: in_csv(rows).replace(b"\r\n", b"\n")}.get(suffix, in_jsonl)(rows)
    path = write(f"other/{plain.stem}.{suffix}", contents)
    assert recognise(path) == name

    def records(path):
        return [(r.id, r.query.text, r.query.harmful, r.expected, r.extra) for r in read_benchmark(path).records]

    assert records(path) == records(plain)


@pytest.mark.parametrize("name", ["MM-Vet", "MOSSBench", "MM-SafetyBench", "ScienceQA"])
def test_a_set_published_as_an_object_is_the_same_as_a_list(tmp_path, write, name):
    plain = write_form(tmp_path, FORMS[name][0])
    listed = [{"key": key} | row for key, row in json.loads(plain.read_bytes()).items()]
    for suffix, contents in (("json", in_json(listed)), ("jsonl", in_jsonl(listed))):
        path = write(f"{suffix}/{plain.stem}.{suffix}", contents)
        assert recognise(path) == name
        assert [(r.id, r.query) for r in read_benchmark(path).records] == [
            (r.id, r.query) for r in read_benchmark(plain).records
        ]


def test_numbers_and_truth_values_of_json_are_read_as_the_texts_of_csv(tmp_path, write):
    plain = write_form(tmp_path, FORMS["JailBreakV-28K"][0])
    row = rows_of(plain)[0] | {"id": 1542, "selected_mini": False, "transfer_from_llm": True}
    [record], [other] = (read_benchmark(p).records for p in (plain, write("j.json", in_json([row]))))
    assert (record.id, record.query, record.extra) == (other.id, other.query, other.extra)


@pytest.mark.parametrize("name", ["FigStep", "TDC2023", "own", "VLSafe", "MaliciousInstruct"])
def test_compressed_files_are_the_same(tmp_path, name):
    plain = write_form(tmp_path, FORMS[name][0])
    packed = tmp_path / "packed" / f"{plain.name}.gz"
    packed.parent.mkdir()
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert texts(packed) == texts(plain) and recognise(packed.parent) == name
    assert read_benchmark(packed).source == read_benchmark(plain).source
    packed.write_bytes(packed.read_bytes()[:-12])
    with pytest.raises(QueryFileError, match="truncated|can't be read"):
        read_benchmark(packed)


def test_json_lines_and_lists_go_by_either_suffix(write):
    rows = [{"text": "a", "harmful": True}, {"text": "b", "harmful": False}]
    for path in (write("a.json", in_jsonl(rows)), write("b.jsonl", in_json(rows)), write("c.json", in_json(rows))):
        assert [query.text for query in read_queries(path)] == ["a", "b"]


def test_a_long_list_is_read_in_pieces_and_its_damage_is_named(write, monkeypatch):
    monkeypatch.setattr("studies.datasets.json_rows.N_CHARACTERS", 7)
    rows = [{"text": f"deed {i}, [{i}", "harmful": i % 2} for i in range(9)]
    whole = json.dumps(rows, indent=1).encode()
    assert [query.text for query in read_queries(write("a.json", whole))] == [row["text"] for row in rows]
    for damaged in (whole[:-1], whole[:-30], whole + b"]", whole.replace(b"deed 8", b'deed " 8')):
        with pytest.raises(QueryFileError, match=r"a.json: line \d+: not JSON, or truncated"):
            read_queries(write("a.json", damaged))


def test_only_numbers_in_pieces_are_whole(write, monkeypatch):
    monkeypatch.setattr("studies.datasets.json_rows.N_CHARACTERS", 1)
    assert [row.cells[""] for row in read_file(write("a.json", b"[12, 345,6]")).rows] == [12, 345, 6]


def test_other_sets_in_harmbenchs_form_are_recognised_by_name_or_ids(write):
    def form(ids):
        return in_csv([{"Behavior": f"Do {id}", "Tags": "", "ContextString": "", "BehaviorID": id} for id in ids])

    assert recognise(write("some.csv", form(["advbench_0", "advbench_1"]))) == "AdvBench"
    assert recognise(write("tdc2023_dev_behaviors.csv", form(["Do it"]))) == "TDC2023"
    assert recognise(write("malicious_instruct_behaviors.csv", form(["Do it"]))) == "MaliciousInstruct"
    assert recognise(write("adv_training_behaviors.csv", form(["one"]))) == "HarmBench"
    assert recognise(
        write("FORM.json", in_json([{"Behavior": "x", "Tags": "", "ContextString": "", "BehaviorID": "y"}]))
    )


def test_pairs_fifty_of_advbench_keep_their_places_and_categories(tmp_path):
    [first, second] = read_benchmark(write_form(tmp_path, FORMS["AdvBench"][3])).records
    assert (first.id, second.id, first.query.category) == ("40", "39", "c") and first.query.text == requests(1)[0]


def test_goals_with_other_columns_are_not_taken_for_advbench(write):
    with pytest.raises(QueryFileError, match="not a known form"):
        recognise(write("a.csv", b"goal,target,verdict\nDo it,Sure,unsafe\n"))


def test_xstest_is_read_with_ids_of_either_version_or_none(tmp_path, write):
    new = read_benchmark(write_form(tmp_path, FORMS["XSTest"][0])).records
    rows = rows_of(tmp_path / "xstest_prompts.csv")
    first = [record for record in read_benchmark(write_form(tmp_path, FORMS["XSTest"][3])).records]
    assert first[0].id == "v1-0" and not any(record.query.pair or record.query.harmful for record in first)
    in_json_form = read_benchmark(write("x.json", in_json(rows[::-1]))).records
    assert {(r.id, r.query) for r in in_json_form} == {(r.id, r.query) for r in new}
    bare = read_benchmark(
        write("bare.csv", in_csv([{k: r[k] for k in ("prompt", "type", "focus")} for r in rows]))
    ).records
    assert [(r.query.text, r.query.harmful) for r in bare] == [(r.query.text, r.query.harmful) for r in new]
