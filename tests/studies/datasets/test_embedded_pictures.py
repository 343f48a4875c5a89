"""Pictures inside data files: Parquet, saved datasets and base64 give the same records as files next to a table."""

import base64
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from interp.pictures import PictureError, open_picture
from studies.cli.app import main
from studies.cli.benchmark_run import describe_set
from studies.datasets import Columns, QueryFileError, check, read_benchmark, read_queries, recognise
from studies.datasets.arrow_rows import raw_arrow_rows
from tests.studies.datasets.benchmark_files import SIUO, figstep, in_csv, in_json, vlguard

N = 5


def content(i):
    out = io.BytesIO()
    Image.new("RGB", (9, 9 + i % 2), (40 * (i % 6), i, 7)).save(out, "PNG")
    return out.getvalue()


def own_rows():
    return [{"text": f"Request {i}", "harmful": i % 2 == 0, "picture": f"seen/{i}.png"} for i in range(N)]


def structs(rows, column="picture", named=True):
    return [row | {column: {"bytes": content(i), "path": row[column] if named else None}} for i, row in enumerate(rows)]


def write_parquet(path, rows, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, **options)
    return path


def save_to_disk(folder, rows, n_files=2):
    """Write a folder as `datasets.Dataset.save_to_disk` does: Arrow streams, listed in `state.json`."""
    folder.mkdir(parents=True)
    size, names = -(-len(rows) // n_files), []
    for i in range(n_files):
        names.append(f"data-{i:05}-of-{n_files:05}.arrow")
        table = pa.Table.from_pylist(rows[i * size : (i + 1) * size])
        with pa.OSFile(str(folder / names[-1]), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def write_shards(folder, rows, split="train", n_files=3):
    """Write a folder as the Hugging Face hub has them: Parquet in parts."""
    size = -(-len(rows) // n_files)
    for i in range(n_files):
        part = rows[i * size : (i + 1) * size]
        write_parquet(folder / f"{split}-{i:05}-of-{n_files:05}.parquet", part, row_group_size=1)
    return folder


def write_base64(path, rows, column="picture"):
    cells = [row | {column: base64.encodebytes(content(i)).decode()} for i, row in enumerate(rows)]
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["\t".join(cells[0])] + ["\t".join(f'"{value}"' for value in row.values()) for row in cells]
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def plain(tmp_path):
    """A table of one's own next to its pictures."""
    (tmp_path / "plain" / "seen").mkdir(parents=True)
    for i in range(N):
        (tmp_path / "plain" / "seen" / f"{i}.png").write_bytes(content(i))
    (tmp_path / "plain" / "mine.csv").write_bytes(in_csv(own_rows()))
    return tmp_path / "plain" / "mine.csv"


def seen(path):
    """Everything that reaches a model or a judge, pictures as their pixels."""
    return [
        (r.id, r.query.text, r.query.harmful, r.query.category, r.expected, r.modality, r.prompt().text, pixels(r))
        for r in read_benchmark(path).records
    ]


def pixels(record):
    picture = open_picture(record.picture)
    return picture.size, picture.tobytes()


def lines(path):
    return {name: text for name, text in check(path).lines() if name != "files"}


FORMS = {
    "parquet": lambda folder: write_parquet(folder / "mine.parquet", structs(own_rows())),
    "groups": lambda folder: write_parquet(folder / "mine.parquet", structs(own_rows()), row_group_size=2),
    "nameless": lambda folder: write_parquet(folder / "mine.parquet", structs(own_rows(), named=False)),
    "lists": lambda folder: write_parquet(
        folder / "mine.parquet", [row | {"picture": [row["picture"]]} for row in structs(own_rows())]
    ),
    "bytes": lambda folder: write_parquet(
        folder / "mine.parquet", [row | {"picture": content(i)} for i, row in enumerate(own_rows())]
    ),
    "saved": lambda folder: save_to_disk(folder / "mine", structs(own_rows())),
    "hub": lambda folder: write_shards(folder / "mine", structs(own_rows())),
    "tsv": lambda folder: write_base64(folder / "mine.tsv", own_rows()),
}


@pytest.mark.parametrize("form", FORMS)
def test_embedded_pictures_are_those_of_a_table_with_files(tmp_path, plain, form):
    path = FORMS[form](tmp_path / form)
    assert seen(path) == seen(plain) and lines(path) == lines(plain)
    assert seen(path.parent) == seen(plain)


@pytest.mark.parametrize("form", ["saved", "hub", "parquet"])
def test_a_run_on_a_file_or_folder_says_what_it_read(tmp_path, form):
    path = FORMS[form](tmp_path / form)
    described = describe_set(read_benchmark(path))
    assert set(described["files"]) == {str(path)} and described["rows"] == N


def test_pictures_are_opened_in_any_order_and_more_than_once(tmp_path):
    path = write_parquet(tmp_path / "mine.parquet", structs(own_rows()), row_group_size=2)
    records = read_benchmark(path).records
    for i in (4, 0, 3, 3, 1, 4):
        assert pixels(records[i])[0] == (9, 9 + i % 2) and open_picture(records[i].picture).getpixel((0, 0))[1] == i


def test_reading_starts_at_the_group_of_a_row(tmp_path):
    path = write_parquet(tmp_path / "mine.parquet", structs(own_rows()), row_group_size=2)
    assert next(raw_arrow_rows(path, 3))[0] == 2 and [number for number, _ in raw_arrow_rows(path)] == list(range(N))


@pytest.mark.parametrize("named", [True, False])
def test_a_benchmark_with_its_pictures_inside_equals_the_published_one(tmp_path, named):
    rows = [{key: str(value) for key, value in row.items()} for row in figstep()]
    names = [f"query_ForbidQI_{row['category_id']}_{row['task_id']}_6.png" for row in rows]
    folder = tmp_path / "plain" / "images" / "SafeBench"
    folder.mkdir(parents=True)
    for i, name in enumerate(names):
        (folder / name).write_bytes(content(i))
    (tmp_path / "plain" / "safebench.csv").write_bytes(in_csv(rows))
    exported = structs([row | {"image": name} for row, name in zip(rows, names, strict=True)], "image", named)
    path = write_parquet(tmp_path / "export" / "safebench.parquet", exported)
    assert recognise(path) == "FigStep" and seen(path) == seen(tmp_path / "plain" / "safebench.csv")
    assert lines(path) == lines(tmp_path / "plain" / "safebench.csv")


def test_rows_with_several_records_show_the_picture_of_the_row(tmp_path):
    # A column holds values of one kind.
    rows = [row | {"id": str(row["id"]), "harmful_category": "c"} for row in structs(vlguard(), "image")]
    records = read_benchmark(write_parquet(tmp_path / "test.parquet", rows), "VLGuard").records
    assert [r.query.text for r in records] == [
        *("Insult them", "Describe it", "Insult them", "Describe it", "Read their card"),
    ]
    assert [open_picture(r.picture).getpixel((0, 0))[1] for r in records] == [0, 0, 1, 1, 2]


def test_equal_names_of_different_pictures_are_two_pictures(tmp_path):
    rows = [row | {"picture": {"bytes": content(i), "path": "image.png"}} for i, row in enumerate(own_rows())]
    assert lines(write_parquet(tmp_path / "mine.parquet", rows))["pictures"] == f"{N} present, 0 missing, 0 damaged"


def test_a_row_without_a_picture_is_text(tmp_path):
    rows = [row | {"picture": None} if i == 1 else row for i, row in enumerate(structs(own_rows()))]
    records = read_benchmark(write_parquet(tmp_path / "mine.parquet", rows)).records
    assert [record.modality for record in records] == ["scene", "text", "scene", "scene", "scene"]


def test_a_picture_that_is_only_named_is_found_next_to_the_file(tmp_path, plain):
    rows = [row | {"picture": {"bytes": None, "path": row["picture"]}} for row in own_rows()]
    rows[0] = structs(own_rows())[0]
    path = write_parquet(plain.with_name("mine.parquet"), rows)
    assert seen(path) == seen(plain)


def test_names_of_classes_are_read_and_not_their_numbers(tmp_path):
    """The number 0 is the first name, which may be the harmful one."""
    info = {"info": {"features": {"harmful": {"names": ["unsafe", "safe"], "_type": "ClassLabel"}}}}
    table = pa.table({"text": ["a", "b"], "harmful": [0, 1]}).replace_schema_metadata({"huggingface": json.dumps(info)})
    pq.write_table(table, tmp_path / "mine.parquet")
    assert [query.harmful for query in read_queries(tmp_path / "mine.parquet")] == [True, False]


def test_a_saved_dataset_of_several_splits_needs_one_of_them(tmp_path):
    for split in ("train", "test"):
        save_to_disk(tmp_path / "all" / split, structs(own_rows()))
    (tmp_path / "all" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(QueryFileError, match="files of own: test, train; expected one, so give the path"):
        read_benchmark(tmp_path / "all")
    assert len(read_benchmark(tmp_path / "all" / "test").records) == N


def test_parts_of_one_split_are_one_table_and_all_of_them_are_needed(tmp_path):
    folder = write_shards(tmp_path / "data", structs(own_rows()))
    assert [number for number, _ in raw_arrow_rows(folder, 3)] == [3, 4]
    records = read_benchmark(folder).records
    for i in (4, 0, 3):
        assert open_picture(records[i].picture).getpixel((0, 0))[1] == i
    (folder / "train-00001-of-00003.parquet").unlink()
    with pytest.raises(QueryFileError, match="data: 2 of 3 parts; expected all of them"):
        read_benchmark(folder)


def test_parts_of_several_splits_are_not_one_table(tmp_path):
    for split in ("train", "test"):
        write_shards(tmp_path / "data", structs(own_rows()), split, n_files=1)
    with pytest.raises(QueryFileError, match="files of own: .*; expected one, so give the path"):
        read_benchmark(tmp_path / "data")
    assert len(read_benchmark(tmp_path / "data" / "test-00000-of-00001.parquet").records) == N


def test_several_pictures_in_the_cell_of_one_request_are_an_error(tmp_path):
    rows = [row | {"picture": [row["picture"]] * 2} for row in structs(own_rows())]
    with pytest.raises(QueryFileError, match="row 0: column picture: 2 pictures; expected one"):
        read_benchmark(write_parquet(tmp_path / "mine.parquet", rows))


def test_queries_for_fitting_have_their_pictures_in_files(tmp_path):
    path = write_parquet(tmp_path / "mine.parquet", structs(own_rows()))
    with pytest.raises(QueryFileError, match="row 0: column picture: a picture inside the file"):
        read_queries(path)
    assert len(read_queries(path, check_pictures=False)) == N


TEXT = {"text": "a", "harmful": True}
NOT_A_PICTURE = base64.b64encode(b"this is not a picture").decode()
BAD = {
    "without the columns": (
        lambda f: write_parquet(f / "a.parquet", [{"prompt": "a"}]),
        "'prompt', which is not a known",
    ),
    "without bytes": (
        lambda f: write_parquet(f / "a.parquet", [TEXT | {"picture": {"path": "x.png"}}]),
        "column 'picture' holds paths of pictures without their bytes",
    ),
    "empty bytes": (
        lambda f: write_parquet(f / "a.parquet", [TEXT | {"picture": {"bytes": b"", "path": "x.png"}}]),
        "row 0, column picture: a picture without bytes, and 'x.png' is not next to the file",
    ),
    "bytes of something else": (
        lambda f: write_parquet(f / "a.parquet", [TEXT | {"picture": {"bytes": b"GIF", "path": "x.png"}}]),
        "1 pictures inside the file can't be read",
    ),
    "base64 of something else": (
        lambda f: write_base64_text(f, NOT_A_PICTURE),
        "1 pictures inside the file can't be read",
    ),
    "base64 cut short": (
        lambda f: write_base64_text(f, base64.b64encode(content(0)).decode()[:-40]),
        "1 pictures inside the file can't be read",
    ),
    "truncated": (lambda f: truncated(f, 50), "damaged, or not a table"),
    "not a table": (lambda f: truncated(f, None), "damaged, or not a table"),
}


def write_base64_text(folder, text):
    folder.mkdir(exist_ok=True)
    (folder / "a.tsv").write_text(f"text\tharmful\timage\na\tyes\t{text}\n")
    return folder / "a.tsv"


def truncated(folder, n):
    path = write_parquet(folder / "a.parquet", structs(own_rows()))
    path.write_bytes(path.read_bytes()[:-n] if n else b"PAR1 and more that is not a table PAR1")
    return path


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_message_and_exit_code_2(tmp_path, case, capsys, monkeypatch):
    make, message = BAD[case]
    path = make(tmp_path / "data")
    before = path.read_bytes()
    monkeypatch.setattr("sys.argv", ["vlm-guard", "data", "check", str(path)])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.startswith("vlm-guard: ") and message in said and said.count("\n") == 1
    assert path.read_bytes() == before


def test_a_file_that_changes_after_it_was_read_is_named(tmp_path):
    path = write_parquet(tmp_path / "mine.parquet", structs(own_rows()))
    record = read_benchmark(path).records[4]
    write_parquet(path, structs(own_rows())[:2])
    with pytest.raises((QueryFileError, PictureError), match="row 4 is gone"):
        open_picture(record.picture)


def test_short_cells_name_the_row_that_holds_the_picture(tmp_path):
    """VLMEvalKit writes a picture once, and in further rows about it the index of that row."""
    encoded = base64.b64encode(content(3)).decode()
    path = tmp_path / "mine.tsv"
    path.write_text(f"index\tquestion\timage\n7\tone\t{encoded}\n8\ttwo\t7\n")
    records = read_benchmark(path, columns=Columns.parse("text=question,harmful=all,picture=image")).records
    assert pixels(records[0]) == pixels(records[1]) and [record.modality for record in records] == ["scene", "scene"]


@pytest.mark.parametrize(
    "name",
    ["0123456789abcdef0123456789abcdef", "S-01.png", "train/Kitchen/Picture12", "COCO_2014_000000009"],
)
def test_names_of_pictures_are_not_taken_for_base64(tmp_path, name):
    (tmp_path / "siuo_gen.json").write_bytes(in_json([SIUO | {"image": name}]))
    assert read_benchmark(tmp_path / "siuo_gen.json").missing == (name,)
