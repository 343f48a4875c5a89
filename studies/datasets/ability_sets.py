"""Readers of ability benchmarks: harmless questions with correct answers."""

from collections.abc import Iterator

from interp import Query
from studies.datasets.files import VALUE, DataFile, Row, read_file
from studies.datasets.record import ANSWER, Record, SkippedRow, Source
from studies.datasets.rows import QueryFileError

MM_VET = Source("MM-Vet", "https://github.com/yuweihao/MM-Vet", "CC BY-NC 4.0")
SCIENCEQA = Source("ScienceQA", "https://github.com/lupantech/ScienceQA", "CC BY-NC-SA 4.0")


def read_mm_vet(file: DataFile) -> Iterator[Record]:
    """Read an object of rows by id. `<OR>` separates correct answers; every part of one with `<AND>` is required."""
    for row in file.rows:
        answers = tuple(answer.strip() for answer in row.text("answer").split("<OR>"))
        query, path = Query(row.text("question"), False, ",".join(row.texts("capability"))), row.text("imagename")
        yield Record(
            query,
            row.key or path.rpartition(".")[0],
            ANSWER,
            MM_VET,
            "scene",
            picture_path=path,
            answers=answers,
            needs_picture=True,
        )


def read_scienceqa(file: DataFile) -> Iterator[Record | SkippedRow]:
    """Read the questions of the test split that have a picture, with their options; ids are not contiguous.

    Raises:
        QueryFileError: `pid_splits.json`, if it is next to the problems, has a different test split.
    """
    _check_splits(file)
    for row in file.rows:
        split = row.one_of("split", ("train", "val", "test"))
        if split != "test":
            yield SkippedRow(row.where, f"split {split}")
        elif not row.get("image"):
            yield SkippedRow(row.where, "no picture")
        else:
            yield _scienceqa(row)


def _check_splits(file: DataFile) -> None:
    path = file.path.with_name("pid_splits.json")
    if not path.exists():
        return
    listed = {row.key: row.texts(VALUE) for row in read_file(path).rows if row.key == "test"}
    differing = set(listed.get("test", ())) ^ {row.key for row in file.rows if row.cells.get("split") == "test"}
    if differing:
        raise QueryFileError(
            f"{path}: {len(differing)} test ids are not those of {file.path.name}, {min(differing)!r} among them; "
            "expected both from one release"
        )


def _scienceqa(row: Row) -> Record:
    choices, right = row.texts("choices"), row.get("answer")
    if not (type(right) is int and 0 <= right < len(choices)):
        raise row.error(f"answer {right!r} is not one of the choices {choices!r}; expected the index of one")
    question = row.text("question")
    return Record(
        Query(question, False, row.text_or_empty("topic")),
        row.key,
        ANSWER,
        SCIENCEQA,
        "scene",
        said=multiple_choice(question, choices, row.text_or_empty("hint")),
        picture_path=f"test/{row.key}/{row.text('image')}",
        answers=(choices[right],),
        choices=choices,
        needs_picture=True,
        extra=row.extra("subject", "grade", "skill"),
    )


def multiple_choice(question: str, choices: tuple[str, ...], hint: str = "") -> str:
    """Return a question after its hint, with choices lettered from A; the instruction is this project's own wording."""
    options = "\n".join(f"{chr(ord('A') + i)}. {choice}" for i, choice in enumerate(choices))
    text = f"{question}\n{options}\nAnswer with the letter of the right choice."
    return f"{hint.strip()}\n{text}" if hint.strip() else text
