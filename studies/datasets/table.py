"""CSV files of the user's own: `text,harmful[,category,pair,picture]`."""

import csv
from pathlib import Path

from interp.inputs import Query
from interp.pictures import PictureError, read_picture

TRUE, FALSE = ("true", "1", "yes", "harmful"), ("false", "0", "no", "harmless")
COLUMNS = ("text", "harmful", "category", "pair", "picture")


class QueryFileError(ValueError):
    """The file can't be read as queries; the message says which line and column."""


def read_queries(path: str | Path, look: bool = True) -> tuple[Query, ...]:
    """Reads a CSV with columns `text,harmful[,category,pair,picture]`; other columns are left alone.

    Cells may span lines. `harmful` is true/false, 1/0, yes/no or harmful/harmless, in any case. `picture` is a path,
    relative to the file, of what modality `scene` shows beside this query.

    Args:
        path: of the file.
        look: whether every picture is read once: better now than in the middle of a run.

    Raises:
        QueryFileError: no such file, not UTF-8, a missing column, an empty text, a label that is neither, a picture
            that can't be read.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return tuple(_parse(path, file, look))
    except FileNotFoundError:
        raise QueryFileError(f"query file {str(path)!r} does not exist; expected a CSV with text,harmful") from None
    except UnicodeDecodeError as error:
        raise QueryFileError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    except OSError as error:
        raise QueryFileError(f"{path}: can't be read ({error.strerror})") from None
    except csv.Error as error:
        raise QueryFileError(f"{path}: not a CSV file ({error})") from None


def _parse(path: Path, file, look: bool) -> list[Query]:
    reader = csv.DictReader(file, strict=True)
    missing = [column for column in COLUMNS[:2] if column not in (reader.fieldnames or ())]
    if missing:
        raise QueryFileError(
            f"{path}: line 1 has no column {', '.join(missing)}; expected a header with {','.join(COLUMNS[:2])} "
            f"and perhaps {','.join(COLUMNS[2:])}, got {','.join(reader.fieldnames or ['nothing'])}"
        )
    queries, first_line = [], reader.line_num + 1
    for row in reader:
        queries.append(_query(path, first_line, row, look))
        first_line = reader.line_num + 1
    return queries


def _query(path: Path, line: int, row: dict, look: bool) -> Query:
    if None in row:
        raise QueryFileError(f"{path}: line {line} has more cells than the header; put text with commas in quotes")
    text, label = (row["text"] or "").strip(), (row["harmful"] or "").strip().lower()
    if not text:
        raise QueryFileError(f"{path}: line {line}, column text: empty; every query needs a text")
    if label not in TRUE + FALSE:
        raise QueryFileError(f"{path}: line {line}, column harmful: got {row['harmful']!r}, expected true or false")
    category, pair, picture = ((row.get(column) or "").strip() for column in COLUMNS[2:])
    picture = str(path.parent / picture) if picture else None
    if picture and look:
        try:
            read_picture(picture)
        except PictureError as error:
            reason = str(error).splitlines()[0]
            raise QueryFileError(f"{path}: line {line}, column picture: {reason}") from None
    return Query(text, label in TRUE, category, pair or None, picture=picture)
