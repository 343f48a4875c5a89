import pytest
from PIL import Image

from interp.inputs import Query
from studies.datasets import QueryFileError, is_paired, read_queries, split_queries


@pytest.fixture
def write(tmp_path):
    def written(text: str, encoding="utf-8"):
        path = tmp_path / "queries.csv"
        path.write_bytes(text.encode(encoding))
        return path

    return written


def test_a_file_is_read_with_quotes_line_ends_bom_and_other_columns(write):
    path = write('\ufeffid,text,harmful,category,pair\r\n1,"one, two\nthree",TRUE,c,p\r\n2,four,no,,\r\n')
    assert read_queries(path) == (Query("one, two\nthree", True, "c", "p"), Query("four", False))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("text,label\na,1\n", "line 1 has no column harmful; expected a header with text,harmful"),
        ("", "no rows; expected at least one"),
        ("text,harmful\na,true\nb,perhaps\n", "line 3, column harmful: got 'perhaps', expected true or false"),
        ("text,harmful\na,true\n ,true\n", "line 3, column text: empty"),
        ('text,harmful\n"a\nb",true\nc,maybe\n', "line 4, column harmful"),
        (
            "text,harmful\na, b,true\n",
            "line 2 has 3 cells, the header 2; a cell with commas or line ends must be quoted",
        ),
        ('text,harmful\n"a,true\n', "not a CSV file"),
    ],
)
def test_errors_of_a_malformed_file_name_line_and_column(write, text, message):
    with pytest.raises(QueryFileError, match=message):
        read_queries(write(text))


def test_missing_and_wrongly_encoded_files_are_named(write, tmp_path):
    with pytest.raises(QueryFileError, match="nowhere.csv' does not exist"):
        read_queries(tmp_path / "nowhere.csv")
    with pytest.raises(QueryFileError, match="is not UTF-8"):
        read_queries(write("text,harmful\ncafé,true\n", "latin-1"))


def test_json_lines_are_read_with_the_same_keys(tmp_path):
    path = tmp_path / "queries.jsonl"
    path.write_bytes(
        b'{"text": "one\\u2028two", "harmful": true, "category": "c", "pair": 3}\r\n\n{"text": "four", "harmful": 0}'
    )
    assert read_queries(path) == (Query("one\u2028two", True, "c", "3"), Query("four", False))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"text": "a", "harmful": true}\n{"text": "b"}', "line 2 has no harmful; got"),
        ("[1]", "line 1 has no column text, harmful; .* got nothing"),
        ('{"text": "a", "harmful": true}\n{"text": ', "line 2: not JSON, or truncated"),
        ('{"text": "a", "harmful": 2}', "line 1, column harmful: got 2, expected true or false"),
        ('{"text": null, "harmful": true}', "line 1, column text: empty"),
        ('{"text": NaN, "harmful": true}', "line 1, column text: got nan, expected a text"),
        ('{"text": {"a": 1}, "harmful": true}', "line 1, column text: got {'a': 1}, expected a text"),
        ('{"text": 3, "harmful": true}', "line 1, column text: got 3, expected a text"),
        ('{"text": "a", "harmful": true, "pair": [1]}', r"line 1, column pair: got \[1\], expected a text"),
        (r'{"text": "a \ud800", "harmful": true}', r"line 1: .*ud800. is half a surrogate pair"),
    ],
)
def test_errors_of_malformed_json_lines_name_the_line(tmp_path, text, message):
    path = tmp_path / "queries.jsonl"
    path.write_text(text)
    with pytest.raises(QueryFileError, match=message):
        read_queries(path)


@pytest.mark.parametrize("check_pictures", [True, False])
@pytest.mark.parametrize("name", ["../cat.png", "/cat.png", "C:/cat.png", "link.png"])
def test_a_picture_outside_the_files_folder_is_an_error(tmp_path, name, check_pictures):
    (tmp_path / "data").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "cat.png")
    (tmp_path / "data" / "link.png").symlink_to(tmp_path / "cat.png")
    path = tmp_path / "data" / "queries.csv"
    path.write_text(f"text,harmful,picture\na,true,{name}\n")
    with pytest.raises(QueryFileError, match="line 2, column picture: .* leads outside the data folder"):
        read_queries(path, check_pictures=check_pictures)


def paired(n):
    return [Query(f"{label} {i}", label, f"c{i % 3}", f"p{i}") for i in range(n) for label in (True, False)]


def test_splits_are_disjoint_whole_and_keep_pairs_together():
    splits = split_queries(paired(40))
    assert {split: len(part) for split, part in splits.items()} == {"anchors": 40, "validation": 20, "test": 20}
    owners = {}
    for split, part in splits.items():
        assert is_paired(part)
        for query in part:
            assert owners.setdefault(query.pair, split) == split
    assert len(owners) == 40


def test_splits_are_stratified_without_pairs_too():
    queries = [Query(f"q{i}", i % 4 == 0) for i in range(80)]
    for part in split_queries(queries).values():
        assert sum(query.harmful for query in part) / len(part) == pytest.approx(0.25, abs=0.06)
    assert not is_paired(queries)


def test_an_empty_or_tiny_class_is_named():
    with pytest.raises(QueryFileError, match="0 harmful queries, .* a study needs at least 5 in each split"):
        split_queries([Query(f"q{i}", False) for i in range(50)])
    with pytest.raises(QueryFileError, match="3 harmless queries"):
        split_queries([Query(f"q{i}", i > 2) for i in range(50)])
