"""The user's own tables: `text,harmful[,category,pair,picture]`, under these names or others."""

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from interp import Query
from interp.pictures import PictureError, read_picture
from interp.whole_files import replaced
from studies.datasets.columns import COLUMNS, Columns, Labels
from studies.datasets.embedded import PICTURE_COLUMNS
from studies.datasets.files import TEXT, DataFile, Row, read_file
from studies.datasets.picture_paths import picture_within
from studies.datasets.rows import VALUE, EmbeddedPicture, QueryFileError


def read_queries(
    path: str | Path, check_pictures: bool = True, columns: Columns | None = None, check_labels: bool = True
) -> tuple[Query, ...]:
    """Read a table of queries with `text,harmful[,category,pair,picture]`; other columns are ignored.

    It may be CSV, with any usual delimiter, TSV, JSON, JSON lines, Parquet, or a saved Hugging Face dataset. Columns
    are found in any case. `harmful` is true/false, 1/0, yes/no, harmful/harmless or unsafe/safe, in any case. `picture`
    is the path of a picture, relative to the file and within its folder, which modality `scene` shows next to the
    query.

    Args:
        path: the file, or the folder of a saved dataset.
        check_pictures: open every picture once, to find unreadable ones now rather than in the middle of a run.
        columns: names of the columns if they are others, and the labels that mean harmful.
        check_labels: refuse a request that is labelled both ways.

    Raises:
        QueryFileError: there is no such file, it is not UTF-8, a column is missing, a text is empty, a label is
            invalid, a request is labelled both ways, or a picture can't be read, is outside the folder, or inside the
            file.
    """
    path = Path(path)
    if not path.exists():
        raise QueryFileError(f"query file {str(path)!r} does not exist; expected a table with text,harmful")
    queries: list[Query] = []
    labelled: dict[tuple[str, str | None], tuple[bool, str]] = {}
    for row, query, embedded in own_rows(read_file(path), columns or Columns(), check_pictures):
        if embedded and check_pictures:
            raise row.error(
                f"column {embedded.column}: a picture inside the file, which only benchmarks may have (`vlm-guard "
                "defend`, `data check`); write it to a file, and its path into the table"
            )
        # With another picture, the same words are another request.
        shown = (query.text, embedded.digest if embedded else query.picture)
        is_harmful, where = labelled.setdefault(shown, (query.harmful, row.where))
        if check_labels and is_harmful != query.harmful:
            raise row.error(f"the request of {where}, with the other label; expected one label for each request")
        queries.append(query)
    return tuple(queries)


def is_own(file: DataFile) -> bool:
    """Return whether a file has the two columns that a table of one's own needs, in any case."""
    return {"text", "harmful"} <= {key.strip().lower() for key in file.keys}


def own_rows(
    file: DataFile, columns: Columns, check_pictures: bool = False
) -> Iterator[tuple[Row, Query, EmbeddedPicture | None]]:
    """Yield the rows of a table of one's own, as queries, with the picture inside each row if there is one.

    Raises:
        QueryFileError: see `read_queries`.
    """
    # A list of texts has one column, called by its heading if it has one.
    header = {file.heading} if file.kind == TEXT else file.all_keys
    found = columns.find(file.path, header)
    if file.kind == TEXT:
        found = {ours: VALUE for ours in found}
    key, labels = found.get("harmful"), columns.labels
    remaining = labels.remaining(file.path, words_in(file, key)) if key else None
    for row in file.rows:
        embedded = _embedded(row, found)
        _check_row(file, row, found)
        is_harmful = label_in(row, key, labels, remaining, words_in(file, key)) if key else columns.all_harmful(found)
        yield row, _query(row, found, is_harmful, embedded, check_pictures), embedded


def _check_row(file: DataFile, row: Row, found: Mapping[str, str]) -> None:
    """Check that a row has the required cells, all of them texts: `str` would turn an object or NaN into a request."""
    missing = [ours for ours in ("text", "harmful") if ours in found and found[ours] not in row.cells]
    if missing:
        raise QueryFileError(f"{file.path}: {row.where} has no {', '.join(missing)}; got {str(row.cells)[:80]}")
    for ours, key in found.items():
        value = row.cells.get(key)
        allowed = (str, type(None)) if ours in ("text", "picture") else (str, int, float, type(None))
        if not isinstance(value, allowed) or value != value:
            raise QueryFileError(f"{file.path}: {row.where}, column {key or ours}: got {value!r}, expected a text")


def word(value: Any) -> str:
    """Return a cell as text; a whole number with decimals, as tables with gaps hold it, without them."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None else str(value).strip()


def words_in(file: DataFile, key: str) -> Iterator[str]:
    """Yield the cells of a column as text."""
    return (word(row.cells.get(key)) for row in file.rows)


def label_in(row: Row, key: str, labels: Labels, remaining: str | None, words: Iterable[str]) -> bool:
    """Return what the label of a row means.

    Args:
        row: a row of a table.
        key: the column of labels.
        labels: what words mean.
        remaining: see `Labels.remaining`.
        words: the whole column, for the error message.

    Raises:
        QueryFileError: it means neither; the message names every kind that the column holds.
    """
    meaning = labels.meaning(word(row.cells.get(key)), remaining)
    if meaning is None:
        raise QueryFileError(f"{row.path}: {row.where}, column {key}: {labels.unknown(row.cells.get(key), words)}")
    return meaning


def _embedded(row: Row, found: Mapping[str, str]) -> EmbeddedPicture | None:
    """Return the picture inside a row: that of the column `picture`, else that of the one column of pictures."""
    columns = {picture.column for picture in row.pictures}
    if "picture" in found:
        columns &= {found["picture"]}
    elif len(columns) > 1:
        columns = {column for column in columns if column.lower() == PICTURE_COLUMNS[1]}
    pictures = [picture for picture in row.pictures if picture.column in columns]
    if len(pictures) > 1:
        raise row.error(f"column {pictures[0].column}: {len(pictures)} pictures; expected one for each request")
    return pictures[0] if pictures else None


def _query(
    row: Row, found: Mapping[str, str], is_harmful: bool, embedded: EmbeddedPicture | None, check_pictures: bool
) -> Query:
    text, category, pair, picture = (
        word(row.cells.get(found[ours])) if ours in found else "" for ours in ("text", "category", "pair", "picture")
    )
    if not text:
        raise QueryFileError(f"{row.path}: {row.where}, column text: empty; every query needs a text")
    path = _picture(row, picture, check_pictures) if picture and not embedded else None
    return Query(text, is_harmful, category, pair or None, picture=path)


def _picture(row: Row, name: str, check_pictures: bool) -> str:
    folder = row.path.parent
    try:
        picture_within(folder, name)
        if check_pictures:
            read_picture(folder / name)
    except (PictureError, ValueError) as error:
        raise QueryFileError(f"{row.path}: {row.where}, column picture: {str(error).splitlines()[0]}") from None
    return str(folder / name)


def write_queries(path: str | Path, queries: Sequence[Query]) -> None:
    """Write a CSV file that `read_queries` reads; pictures are left out, as they would be outside its folder."""
    with replaced(Path(path)) as new, new.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS[:4])
        writer.writerows((q.text, str(q.harmful).lower(), q.category, q.pair or "") for q in queries)
