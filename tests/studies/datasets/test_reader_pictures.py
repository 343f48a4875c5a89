"""Pictures: where they are looked for, where never, and which stand-ins are drawn for missing ones."""

import pytest
from PIL import Image

from interp.pictures import PictureError, open_picture
from studies.datasets import QueryFileError, check, read_benchmark, unreadable_pictures, without_pictures
from tests.studies.datasets.benchmark_files import (
    FORMS,
    JAILBREAKV,
    figstep,
    in_csv,
    in_json,
    in_jsonl,
    mossbench,
    write_form,
)


@pytest.fixture
def write(tmp_path):
    return lambda name, contents: write_form(tmp_path, (name, contents, 0))


def by_id(benchmark):
    return {record.id: record for record in benchmark.records}


@pytest.fixture
def vlsafe(write):
    def written(*names):
        return write("data/v.jsonl", in_jsonl([{"image_id": name, "query": "x"} for name in names]))

    return written


def test_a_picture_is_found_next_to_the_file_and_read_when_it_is_opened(tmp_path, vlsafe):
    path = vlsafe("1.png", "2.png")
    (path.parent / "images").mkdir()
    # The contents are WebP, whatever the name says.
    Image.new("RGB", (9, 12), (255, 0, 0)).save(path.parent / "images" / "1.png", "WEBP")
    benchmark = read_benchmark(path)
    assert benchmark.missing == ("2.png",)
    shown = benchmark.records[0].prompt().pictures[0]
    assert open_picture(shown).size == (9, 12) and open_picture(shown).format == "WEBP"
    with pytest.raises(ValueError, match="VLSafe, row 1: its picture '2.png' is missing"):
        benchmark.records[1].prompt()


def test_pictures_are_looked_for_where_the_user_says(tmp_path, vlsafe):
    path = vlsafe("1.png")
    for folder in ("elsewhere", "other/train2017"):
        (tmp_path / folder).mkdir(parents=True)
        Image.new("RGB", (9, 9)).save(tmp_path / folder / "1.png")
    assert not read_benchmark(path, pictures=tmp_path / "elsewhere").missing
    assert not read_benchmark(path, pictures=tmp_path / "other").missing
    with pytest.raises(QueryFileError, match="nowhere' does not exist"):
        read_benchmark(path, pictures=tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["../1.png", "a/../../1.png", "/1.png", "C:\\1.png", "..\\1.png", "\\\\host\\1.png"])
def test_a_picture_outside_the_folder_is_an_error_before_anything_is_read(tmp_path, vlsafe, monkeypatch, name):
    def opened(*args, **kwargs):
        raise AssertionError("a picture was opened")

    monkeypatch.setattr("PIL.Image.open", opened)
    Image.new("RGB", (9, 9)).save(tmp_path / "1.png")
    path = vlsafe("good.png", name)
    with pytest.raises(QueryFileError, match=r"v.jsonl: row 1: picture .*1.png' leads outside the data folder"):
        read_benchmark(path, stand_in=True)


def test_an_absolute_path_to_an_existing_picture_is_an_error(tmp_path, vlsafe):
    Image.new("RGB", (9, 9)).save(tmp_path / "data.png")
    with pytest.raises(QueryFileError, match="leads outside the data folder"):
        read_benchmark(vlsafe(str(tmp_path / "data.png")))


def test_links_that_leave_the_folder_are_errors(tmp_path, vlsafe):
    path = vlsafe("1.png")
    (path.parent / "images").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "secret.png")
    (path.parent / "images" / "1.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(QueryFileError, match="row 0: picture '1.png' is a link that leads outside"):
        read_benchmark(path)
    (tmp_path / "secret.csv").write_bytes(in_csv(figstep()))
    (tmp_path / "data" / "linked.csv").symlink_to(tmp_path / "secret.csv")
    with pytest.raises(QueryFileError, match="linked.csv is a link that leads outside"):
        read_benchmark(tmp_path / "data")


def test_a_damaged_picture_is_an_error_when_it_is_opened(vlsafe):
    path = vlsafe("1.png")
    (path.parent / "images").mkdir()
    (path.parent / "images" / "1.png").write_bytes(b"<html>")
    with pytest.raises(PictureError, match="1.png' can't be read"):
        open_picture(read_benchmark(path).records[0].picture)


EVERY_FORM = [(name, place) for name, forms in FORMS.items() for place in range(len(forms))]


@pytest.mark.parametrize(("name", "form"), EVERY_FORM)
def test_stand_ins_are_drawn_and_marked_unless_the_picture_decides(tmp_path, name, form):
    benchmark = read_benchmark(write_form(tmp_path, FORMS[name][form]), stand_in=True)
    for record in benchmark.records:
        assert record.is_stand_in == (bool(record.picture_path) and not record.needs_picture)
        assert record.is_missing_picture == record.needs_picture
        if record.is_stand_in and record == benchmark.records[0]:
            assert min(open_picture(record.prompt().pictures[0]).size) >= 336
    assert len(benchmark.missing) == len({record.picture_path for record in benchmark.records} - {""})
    assert len(benchmark.not_drawn) == sum(record.needs_picture for record in benchmark.records)


def test_no_stand_in_is_drawn_if_the_picture_decides_what_is_right(tmp_path):
    decided = {}
    for name, form in EVERY_FORM:
        path = write_form(tmp_path / name / str(form), FORMS[name][form])
        decided[name, form] = {r.id for r in read_benchmark(path, stand_in=True).records if r.is_missing_picture}
    assert {place: ids for place, ids in decided.items() if ids} == {
        ("MM-SafetyBench", 0): {f"01-Illegal_Activitiy#{i}/SD" for i in range(2)},
        ("MM-SafetyBench", 1): {"10-Legal_Opinion#0/SD"},
        ("MM-SafetyBench", 2): {"09-Privacy_Violence#87/SD"},
        # Without the harmless set it is unknown which questions have the same words.
        ("MOSSBench", 1): {"contrast/1", "contrast/2", "contrast/7"},
        ("LVLM-SafeR", 0): {f"2-same_prompt_different_attibutes/0/{name}" for name in ("safe", "unsafe")},
        ("HarmBench-multimodal", 0): {"misuse"},
        ("VLGuard", 0): {"7/unsafe"},
        ("MM-HarmfulBench", 0): {"0", "1"},
        ("SIUO", 0): {"1001"},
        ("SIUO", 1): {"1001"},
        ("MM-Vet", 0): {"v1_0", "v1_9"},
        ("ScienceQA", 0): {"3"},
    }
    with pytest.raises(ValueError, match="is missing; .* none is drawn instead: the picture decides what is right"):
        read_benchmark(tmp_path / "SIUO" / "0", stand_in=True).records[0].prompt()


def mossbench_with_contrast(folder, same=("2",)):
    """Write both sets with all pictures; in some rows the contrast set asks the same as the harmless set."""
    rows = mossbench("x", {"over": "type 1", "harm": [7]})
    contrast = mossbench("y", {"over": "type 1"})
    for pid in same:
        contrast[pid]["question"] = rows[pid]["question"].upper()
    for place, content in (("data", rows), ("data/contrast", contrast)):
        write_form(folder / place / "images_information", ("information.json", in_json(content), 0))
        (folder / place / "images").mkdir()
        for pid in content:
            Image.new("RGB", (9, 9), (len(place), 0, 0)).save(folder / place / "images" / f"{pid}.png")
    return folder / "data"


def test_partners_with_the_same_words_need_their_pictures(tmp_path):
    folder = mossbench_with_contrast(tmp_path)
    for path in folder.rglob("*.png"):
        path.unlink()
    benchmark = read_benchmark(folder, stand_in=True)
    assert sorted(benchmark.missing) == ["1.png", "1.png", "2.png", "2.png", "7.png", "7.png"]
    absent = {id for id, record in by_id(benchmark).items() if record.is_missing_picture}
    assert absent == {"2", "contrast/2"}


def test_pictures_of_one_name_in_two_folders_are_different(tmp_path):
    folder = mossbench_with_contrast(tmp_path)
    records = by_id(read_benchmark(folder))
    assert open_picture(records["1"].picture) != open_picture(records["contrast/1"].picture)
    with pytest.raises(QueryFileError, match="picture '1.png' is named by .*, and is not the same one; expected each"):
        read_benchmark(folder, pictures=folder / "images")
    assert not read_benchmark(folder / "images_information", pictures=folder / "images").missing
    (folder / "contrast" / "images" / "1.png").write_bytes(b"<html>")
    (folder / "contrast" / "images" / "2.png").unlink()
    benchmark = read_benchmark(folder)
    assert benchmark.missing == ("2.png",) and not by_id(benchmark)["2"].is_missing_picture
    files = unreadable_pictures(benchmark)
    assert files == (str(folder / "contrast" / "images" / "1.png"),)
    assert dict(check(folder).lines())["pictures"] == "4 present, 1 missing, 1 damaged"
    remaining = by_id(without_pictures(benchmark, files))
    assert {id for id, record in remaining.items() if record.is_missing_picture} == {"contrast/1", "contrast/2"}


# Benchmark, form -> path of a picture of its first row, relative to the folder that the form is written to.
PUBLISHED_PATHS = {
    ("FigStep", 0): "images/safebench/query_ForbidQI_1_1_6.png",
    ("FigStep", 1): "images/SafeBench-Tiny/query_ForbidQI_1_1_6.png",
    ("MM-SafetyBench", 0): "imgs/01-Illegal_Activitiy/SD/0.jpg",
    ("MM-SafetyBench", 2): "imgs/09-Privacy_Violence/SD/87.jpg",
    ("MOSSBench", 0): "images/1.png",
    ("MOSSBench", 1): "contrast/images/1.png",
    ("MOSSBench", 2): "images/1.png",
    ("LVLM-SafeR", 0): "imgs/Assassin's Hat.jpg",
    ("LVLM-SafeR", 1): "imgs/02937.png",
    ("HarmBench-multimodal", 0): "multimodal_behavior_images/misuse.jpeg",
    ("VLSafe", 0): "train2017/000000000009.jpg",
    ("VLSafe", 1): "images/000000000009.jpg",
    ("VLGuard", 0): "test/bad_ads/3.png",
    ("JailBreakV-28K", 0): "llm_transfer_attack/SD_related_1542.png",
    ("MM-HarmfulBench", 0): "images/0.jpg",
    ("SIUO", 0): "images/S-01.png",
    ("MM-Vet", 0): "images/v1_0.jpg",
    ("ScienceQA", 0): "images/test/3/image.png",
    ("own", 0): "seen/bird.png",
}


@pytest.mark.parametrize(("name", "form"), PUBLISHED_PATHS)
def test_published_pictures_are_found_where_their_authors_put_them(tmp_path, name, form):
    picture = tmp_path / PUBLISHED_PATHS[name, form]
    picture.parent.mkdir(parents=True)
    Image.new("RGB", (9, 12)).save(picture)
    path = write_form(tmp_path, FORMS[name][form])
    record = next(r for r in read_benchmark(path, stand_in=True).records if r.picture_path)
    if name == "own":
        assert record.modality == "scene"
    assert not record.is_stand_in and open_picture(record.picture).size == (9, 12)
    assert record.picture_file == str(picture.resolve())


def test_a_picture_folder_that_links_outside_the_data_is_an_error_unless_given(tmp_path, vlsafe):
    path = vlsafe("1.png")
    (tmp_path / "elsewhere").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "elsewhere" / "1.png")
    (path.parent / "images").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(QueryFileError, match="v.jsonl: folder of pictures .*images' is a link that leads outside"):
        read_benchmark(path)
    assert not read_benchmark(path, pictures=path.parent / "images").missing
    (path.parent / "images").unlink()
    (tmp_path / "train2017").symlink_to(tmp_path / "elsewhere")
    # `../train2017` is one of VLSafe's published folders, and the link doesn't leave its parent.
    assert not read_benchmark(path).missing


@pytest.mark.parametrize(("kind", "n_colors"), [("blank", 1), ("noise", 1000), ("SD", 2)])
def test_stand_ins_of_jailbreakv_match_the_kind_of_picture(write, kind, n_colors):
    row = JAILBREAKV | {"image_path": f"llm_transfer_attack/{kind}_1.png"}
    [record] = read_benchmark(write("j.csv", in_csv([row])), stand_in=True).records
    n_drawn = len(set(open_picture(record.picture).get_flattened_data()))
    assert n_drawn >= n_colors and (n_drawn == 1) == (kind == "blank") and (n_drawn > 999) == (kind == "noise")


def test_stand_ins_have_the_published_layout(tmp_path):
    [figure, *_] = read_benchmark(write_form(tmp_path, FORMS["FigStep"][0]), stand_in=True).records
    assert open_picture(figure.picture).size == (760, 760)
    records = by_id(read_benchmark(write_form(tmp_path, FORMS["MM-SafetyBench"][2]), stand_in=True))
    kinds = {kind: records[f"09-Privacy_Violence#87/{kind}"].picture for kind in ("TYPO", "SD_TYPO")}
    assert len({open_picture(picture).tobytes() for picture in kinds.values()}) == 2
    assert open_picture(kinds["TYPO"]).width == open_picture(kinds["SD_TYPO"]).width == 1024
