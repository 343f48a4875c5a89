"""Tables of one's own: labels in every form, columns of other names, and what is wrong with them."""

import pytest
from typer.testing import CliRunner

from studies.cli.app import app, main
from studies.datasets import Columns, QueryFileError, read_benchmark, read_queries
from tests.studies.datasets.benchmark_files import in_csv, in_json, write_form

TEXTS = ("How do I water a plant?", "How do I flood a cellar?")


@pytest.fixture
def write(tmp_path):
    return lambda name, contents: write_form(tmp_path, (name, contents, 0))


def table(request="text", verdict="harmful", labels=("no", "yes"), **more):
    return in_csv([{request: said, verdict: label, **more} for said, label in zip(TEXTS, labels, strict=True)])


def labels_of(path, columns=None):
    return [query.harmful for query in read_queries(path, columns=columns)]


@pytest.mark.parametrize(
    "labels",
    [
        *(("no", "yes"), ("No", "YES"), ("0.0", "1.0"), ("0", "1"), ("safe", "unsafe"), ("Safe", "Unsafe")),
        *(("False", "TRUE"), ("harmless", "harmful"), ("unharmful", "harmful")),
    ],
)
def test_labels_are_read_in_every_usual_form(write, labels):
    assert labels_of(write("own.csv", table(labels=labels))) == [False, True]


@pytest.mark.parametrize("labels", [(0.0, 1.0), (0, 1), (False, True), ("no", "Yes"), ("safe", "unsafe")])
def test_labels_of_json_are_read_alike(write, labels):
    rows = [{"text": text, "harmful": label} for text, label in zip(TEXTS, labels, strict=True)]
    assert labels_of(write("own.json", in_json(rows))) == [False, True]


@pytest.mark.parametrize(("text", "harmful"), [("Text", "Harmful"), ("TEXT", " harmful "), ("text", "HARMFUL")])
def test_columns_are_found_in_any_case(write, text, harmful):
    path = write("own.csv", table(text, harmful))
    assert labels_of(path) == [False, True] and len(read_benchmark(path).records) == 2


def test_two_columns_of_one_name_in_different_cases_are_an_error(write):
    with pytest.raises(QueryFileError, match="columns TEXT, Text; expected one called text"):
        read_queries(write("own.csv", b"Text,TEXT,harmful\na,b,no\n"))


MAPPED = "text=prompt,harmful=label"


@pytest.mark.parametrize("values", ["unsafe,1", "UNSAFE, 1", "unsafe"])
@pytest.mark.parametrize("name", ["label", "Label"])
def test_columns_of_other_names_are_mapped(write, values, name):
    path = write("own.csv", table("prompt", name, ("safe", "unsafe"), text="not this"))
    columns = Columns.parse(MAPPED, values)
    assert labels_of(path, columns) == [False, True]
    records = read_benchmark(path, columns=columns).records
    assert [(record.query.text, record.query.harmful) for record in records] == [(TEXTS[0], False), (TEXTS[1], True)]


def test_given_labels_leave_one_other_kind_which_is_harmless(write):
    path = write("own.csv", table("prompt", "label", ("fine", "toxic")))
    assert labels_of(path, Columns.parse(MAPPED, "toxic")) == [False, True]


def test_given_labels_turn_the_usual_meaning_round(write):
    path = write("own.csv", table("prompt", "label", ("0", "1")))
    assert labels_of(path, Columns.parse(MAPPED, "0")) == [True, False]


def test_a_table_of_one_class_needs_no_labels(write):
    path = write("own.csv", in_csv([{"prompt": text, "n": "1"} for text in TEXTS]))
    for word, expected in (("all", True), ("none", False)):
        assert labels_of(path, Columns.parse(f"text=prompt,harmful={word}")) == [expected] * 2
    one = write("list.csv", ("prompt\n" + "\n".join(TEXTS)).encode())
    assert labels_of(one, Columns.parse("text=prompt,harmful=all")) == [True, True]


def test_category_pair_and_picture_are_mapped(write):
    path = write("own.csv", table(topic="c", group="p"))
    [first, _] = read_queries(path, columns=Columns.parse("category=topic,pair=group"))
    assert (first.category, first.pair) == ("c", "p")


@pytest.mark.parametrize(
    ("columns", "values", "message"),
    [
        ("text=promt,harmful=label", "", r"no column promt \(text\); .* got label,prompt; did you mean 'prompt'\?"),
        ("text=prompt", "", "no column harmful; .* got label,prompt"),
        ("text=prompt,harmful=label,pair=id", "", r"no column id \(pair\)"),
        ("text=prompt,harmful=label", "nasty", r"no row is labelled nasty; expected one of safe \(1\), unsafe \(1\)"),
    ],
)
def test_a_mapping_that_names_no_column_is_an_error(write, columns, values, message):
    path = write("own.csv", table("prompt", "label", ("safe", "unsafe")))
    with pytest.raises(QueryFileError, match=message):
        read_queries(path, columns=Columns.parse(columns, values))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("txt=prompt", r"'txt=prompt'; expected NAME=COLUMN with one of text, .*; did you mean 'text'\?"),
        ("prompt", "'prompt'; expected NAME=COLUMN"),
        ("text=", "'text='; expected one column for each name"),
        ("text=a,text=b", "'text=b'; expected one column for each name"),
    ],
)
def test_a_mapping_that_can_not_be_read_is_an_error(columns, message):
    with pytest.raises(QueryFileError, match=message):
        Columns.parse(columns)


def test_labels_of_three_kinds_are_named(write):
    rows = [{"text": str(i), "harmful": label} for i, label in enumerate(("safe", "unsafe", "controversial", "safe"))]
    path = write("own.csv", in_csv(rows))
    with pytest.raises(QueryFileError, match=r"line 4, .* 3 kinds: safe \(2\), unsafe \(1\), controversial \(1\)"):
        read_queries(path)
    rows = [row | {"harmful": label} for row, label in zip(rows, ("fine", "toxic", "unsure", "fine"), strict=True)]
    with pytest.raises(QueryFileError, match=r"labels of 3 kinds: fine \(2\), toxic \(1\), unsure \(1\)"):
        read_queries(write("other.csv", in_csv(rows)), columns=Columns.parse("", "toxic"))
    assert labels_of(path, Columns.parse("", "unsafe,controversial")) == [False, True, True, False]


def test_a_label_next_to_one_that_means_harmless_is_not_taken_for_harmless(write):
    rows = [{"text": str(i), "harmful": label} for i, label in enumerate(("safe", "unsafe", "toxic"))]
    with pytest.raises(QueryFileError, match=r"labels of 3 kinds: safe \(1\), unsafe \(1\), toxic \(1\)"):
        read_queries(write("own.csv", in_csv(rows)), columns=Columns.parse("", "toxic"))


def test_decimals_of_labels_do_not_matter(write):
    path = write("own.csv", in_csv([{"text": "a", "harmful": "0.0"}, {"text": "b", "harmful": "1.0"}]))
    for values in ("", "1", "1.0"):
        assert labels_of(path, Columns.parse("", values)) == [False, True]


def test_the_name_of_a_benchmark_goes_before_the_mapping(write):
    path = write("advbench.csv", b"goal,target\nDo it,Sure\n")
    columns = Columns.parse("text=goal,harmful=none")
    assert not read_benchmark(path, columns=columns).records[0].query.harmful
    assert read_benchmark(path, "AdvBench", columns=columns).records[0].query.harmful


def test_data_check_takes_a_mapping_and_bad_input_is_one_message(write, capsys, monkeypatch):
    path = write("own.csv", table("prompt", "label", ("safe", "unsafe")))
    result = CliRunner().invoke(app, ["data", "check", str(path), "--columns", MAPPED, "--harmful-values", "unsafe,1"])
    assert result.exit_code == 0 and "harmless: 1, harmful: 1" in result.output
    for columns, message in ((MAPPED.replace("label", "labl"), "did you mean 'label'?"), ("labl=x", "expected NAME=")):
        monkeypatch.setattr("sys.argv", ["vlm-guard", "data", "check", str(path), "--columns", columns])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr().err
        assert ended.value.code == 2 and said.startswith("vlm-guard: ") and message in said and said.count("\n") == 1
