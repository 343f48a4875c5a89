"""Recognising files and folders, and reading every published format whole, on small files made for the tests."""

import pytest

from studies.datasets import EXPECTED, QueryFileError, check, read_benchmark, recognise
from studies.datasets.files import read_file
from studies.datasets.finding import matching_entries
from studies.datasets.registry import ENTRIES, entry_named
from tests.studies.datasets.benchmark_files import (
    FORMS,
    figstep,
    in_csv,
    in_json,
    requests,
    write_form,
)

EVERY_FORM = [(name, form) for name, forms in FORMS.items() for form in forms]


@pytest.fixture
def write(tmp_path):
    return lambda name, contents: write_form(tmp_path, (name, contents, 0))


def by_id(benchmark):
    return {record.id: record for record in benchmark.records}


def test_every_benchmark_has_a_test_file():
    assert list(FORMS) and set(FORMS) == {entry.name for entry in ENTRIES}


@pytest.mark.parametrize(("name", "form"), EVERY_FORM, ids=lambda part: part if isinstance(part, str) else part[0])
def test_a_file_is_recognised_as_one_benchmark_and_read_whole(tmp_path, name, form):
    path = write_form(tmp_path, form)
    assert [entry.name for entry in matching_entries(read_file(path))] == [name] and recognise(path) == name
    benchmark = read_benchmark(path)
    assert len(benchmark.records) == form[2] == len(by_id(benchmark))
    for record in benchmark.records:
        assert record.source == benchmark.source and record.query.text and record.expected in EXPECTED
        assert (record.modality == "text") == (not record.picture_path)
    if name != "own":
        assert benchmark.source.url.startswith("https://") and benchmark.source.licence


def test_most_files_are_recognised_without_their_name(write):
    by_name = {name for name, forms in FORMS.items() if any(form.name_pattern for form in entry_named(name).forms)}
    assert by_name == {"AdvBench", "MaliciousInstruct", "TDC2023", "refusal_direction"}
    # The names of MM-SafetyBench's files are its scenarios.
    for name in set(FORMS) - by_name - {"MM-SafetyBench"}:
        path, contents, _ = FORMS[name][0]
        assert recognise(write(f"something.{path.rpartition('.')[2]}", contents)) == name


def test_names_are_found_in_any_spelling(write):
    path = write("a.csv", in_csv(figstep()))
    for name in ("FigStep", "figstep", "SafeBench", "FIG-STEP"):
        assert read_benchmark(path, name).source.name == "FigStep"
    assert entry_named("mm safetybench").name == "MM-SafetyBench" and entry_named("JBB").name == "JailbreakBench"
    with pytest.raises(
        ValueError, match="benchmark 'FigStop' does not exist; expected one of AdvBench, XSTest, FigStep"
    ):
        read_benchmark(path, "FigStop")
    with pytest.raises(QueryFileError, match="not a form of XSTest; it looks like FigStep"):
        read_benchmark(path, "XSTest")


def test_ambiguous_files_are_an_error_until_the_user_names_the_benchmark(write):
    path = write("prompts.json", in_json(requests(2)))
    with pytest.raises(
        QueryFileError, match="it may be AdvBench, TDC2023, but neither contents nor file name show which"
    ):
        recognise(path)
    assert len(read_benchmark(path, "tdc2023").records) == 2


def test_the_error_for_an_unknown_file_describes_it(write):
    with pytest.raises(QueryFileError, match="CSV, 1 rows with 'a', 'b', which is not a known form of AdvBench"):
        recognise(write("odd.csv", b"a,b\n1,2\n"))
    for header in (b"id,action", b"goal,target_response,human_majority"):
        with pytest.raises(QueryFileError, match="labelled answers, which `vlm-guard judges` reads"):
            recognise(write("odd.csv", header + b"\n" + b",".join([b"1"] * (header.count(b",") + 1)) + b"\n"))
    with pytest.raises(QueryFileError, match="expected one of .csv, .tsv, .json, .jsonl, .ndjson, .txt, .parquet"):
        recognise(write("odd.xml", b"<a/>"))


def test_a_set_is_read_and_its_parts_in_the_same_folder_are_listed(tmp_path):
    for form in FORMS["FigStep"]:
        write_form(tmp_path, form)
    benchmark = read_benchmark(tmp_path)
    assert [path.name for path in benchmark.files] == ["safebench.csv"] and len(benchmark.records) == 4
    assert [path.name for path in benchmark.unused_files] == ["SafeBench-Tiny.csv"]


def test_a_folder_of_several_benchmarks_needs_a_name(tmp_path):
    for name in ("HarmBench", "HarmBench-multimodal"):
        write_form(tmp_path, FORMS[name][0])
    with pytest.raises(QueryFileError, match="holds files of HarmBench, HarmBench-multimodal; name one"):
        read_benchmark(tmp_path)
    assert len(read_benchmark(tmp_path, "harmbench-multimodal").records) == 1


def test_folders_without_a_benchmark_or_with_too_many_files_are_errors(tmp_path, write):
    with pytest.raises(QueryFileError, match="no known benchmark among 0 data files"):
        read_benchmark(tmp_path)
    for name in ("a.csv", "b.csv"):
        write(name, in_csv(figstep()))
    with pytest.raises(QueryFileError, match="files of FigStep: a.csv, b.csv; expected one"):
        read_benchmark(tmp_path)


@pytest.mark.parametrize("name", [".git/a.csv", ".ipynb_checkpoints/safebench-checkpoint.csv", "question/.a.csv"])
def test_hidden_files_are_not_read(tmp_path, write, name):
    write_form(tmp_path, FORMS["FigStep"][0])
    write(name, in_csv(figstep()))
    benchmark = read_benchmark(tmp_path)
    assert [path.name for path in benchmark.files] == ["safebench.csv"] and not benchmark.unused_files


def test_an_unreadable_file_next_to_readable_ones_is_listed(tmp_path, write):
    write_form(tmp_path, FORMS["FigStep"][0])
    path = write("notes.csv", b"a,a\n")
    benchmark = read_benchmark(tmp_path)
    assert len(benchmark.records) == 4 and benchmark.unused_files == (path,)
    assert [skip.reason for skip in benchmark.unreadable] == [f"{path}: line 1 names a column twice: a, a"]
    assert "names a column twice" in dict(check(tmp_path).lines())["not read"]
    for folder, name in ((path, None), (tmp_path, "SIUO")):
        with pytest.raises(QueryFileError, match="notes.csv: line 1 names a column twice"):
            read_benchmark(folder, name)
    (tmp_path / "question" / "safebench.csv").unlink()
    with pytest.raises(QueryFileError, match="notes.csv: line 1 names a column twice"):
        recognise(tmp_path)


def test_a_damaged_part_of_a_set_of_several_files_is_an_error(tmp_path, write):
    write_form(tmp_path, FORMS["LVLM-SafeR"][0])
    write("4-same_image_same_region.json", FORMS["LVLM-SafeR"][1][1][:-40])
    with pytest.raises(QueryFileError, match="4-same_image_same_region.json: line 1: not JSON, or truncated"):
        read_benchmark(tmp_path)
