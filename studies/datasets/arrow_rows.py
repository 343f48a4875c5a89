"""Parquet, Arrow and saved Hugging Face datasets -> rows, some at a time; pyarrow is imported only for these."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from interp.json_text import parse_json
from studies.datasets.embedded import is_picture_struct
from studies.datasets.opening import check_is_data
from studies.datasets.rows import QueryFileError

STATE, SPLITS = "state.json", "dataset_dict.json"
"""Files of a folder that `save_to_disk` wrote: of one split, and of several."""
SHARD = re.compile(r"(?P<split>.+)-\d{5}-of-(?P<n>\d{5})(?:-[0-9a-f]+)?\.parquet")
"""Name of a part of a split, as the Hugging Face hub has them."""
N_ROWS = 64
"""Rows that are read at once, which limits memory where they hold pictures."""
N_BYTES = 1 << 20
"""Size of the buffer through which a column is read."""


def is_saved_dataset(path: Path) -> bool:
    """Return whether a path is a folder of one split: written by `save_to_disk`, or with the hub's parts of Parquet."""
    return path.is_dir() and ((path / STATE).is_file() or bool(_shards(path)))


def _shards(folder: Path) -> list[Path]:
    """Return the parts of the one split that a folder holds; empty if it holds anything else.

    Raises:
        QueryFileError: a part is missing.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    matches = [SHARD.fullmatch(path.name) for path in files]
    splits = {match["split"] if match else None for match in matches}
    if len(splits) != 1 or None in splits:
        return []
    if len(files) != int(matches[0]["n"]):
        raise QueryFileError(f"{folder}: {len(files)} of {int(matches[0]['n'])} parts; expected all of them")
    return files


def arrow_header(path: Path) -> list[str]:
    """Return the names of the columns.

    Raises:
        QueryFileError: the file is damaged, a column is named twice, or a column of pictures has no bytes.
    """
    with _readable(path):
        schema = _schema(path)
    if len(set(schema.names)) < len(schema.names):
        raise QueryFileError(f"{path}: names a column twice: {', '.join(schema.names)}")
    for field in schema:
        _check_pictures(path, field)
    return schema.names


def arrow_length(path: Path) -> int:
    """Return the number of rows of a file that `arrow_header` has found to be whole at its ends."""
    import pyarrow.parquet as pq

    parts = _parts(path)
    with _readable(path):
        if _is_parquet(parts):
            return sum(pq.read_metadata(part).num_rows for part in parts)
        return sum(batch.num_rows for batch in _arrow_batches(parts))


def _is_parquet(parts: Sequence[Path]) -> bool:
    return parts[0].suffix.lower() == ".parquet"


def _schema(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    parts = _parts(path)
    if not parts:
        raise QueryFileError(f"{path}: a saved dataset without data-*.arrow; expected the whole folder")
    for part in parts:
        check_is_data(part)
    if _is_parquet(parts):
        return pq.read_schema(parts[0])
    with pa.OSFile(str(parts[0])) as file, _opened(file) as reader:
        return reader.schema


def _check_pictures(path: Path, field: Any) -> None:
    """Check that a struct of a picture's path has its bytes too."""
    import pyarrow.types as kinds

    kind = field.type.value_type if kinds.is_list(field.type) or kinds.is_large_list(field.type) else field.type
    if kinds.is_struct(kind) and {part.name for part in kind} == {"path"}:
        raise QueryFileError(
            f"{path}: column {field.name!r} holds paths of pictures without their bytes; expected structs of bytes and "
            "path, as `datasets` writes them, or a column of names and the pictures next to the file"
        )


def raw_arrow_rows(path: Path, start: int = 0) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield the numbers and cells of the rows, from a given one or an earlier one.

    Raises:
        QueryFileError: the file is damaged.
    """
    with _readable(path):
        batches, number = _batches(path, start)
        names = _class_names(_schema(path))
        for batch in batches:
            for cells in batch.to_pylist():
                yield number, {name: _named(value, names.get(name)) for name, value in cells.items()}
                number += 1


def _batches(path: Path, start: int) -> tuple[Iterator[Any], int]:
    """Return batches of rows from the group that holds a row, and the number of the first row."""
    parts = _parts(path)
    if not _is_parquet(parts):
        return _arrow_batches(parts), 0
    groups = [(part, group, size) for part in parts for group, size in enumerate(_group_sizes(part))]
    chosen, first = 0, 0
    while chosen < len(groups) - 1 and first + groups[chosen][2] <= start:
        first, chosen = first + groups[chosen][2], chosen + 1
    return _parquet_batches(groups[chosen:]), first


def _group_sizes(part: Path) -> list[int]:
    import pyarrow.parquet as pq

    metadata = pq.read_metadata(part)
    return [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]


def _parquet_batches(groups: Sequence[tuple[Path, int, int]]) -> Iterator[Any]:
    """Yield batches of the rows of groups, given by their file and number."""
    import pyarrow.parquet as pq

    for part, own in groupby(groups, key=itemgetter(0)):
        with pq.ParquetFile(part, buffer_size=N_BYTES, pre_buffer=False) as file:
            yield from file.iter_batches(N_ROWS, row_groups=[group for _, group, _ in own], use_threads=False)


def _arrow_batches(paths: Sequence[Path]) -> Iterator[Any]:
    import pyarrow as pa

    for path in paths:
        with pa.OSFile(str(path)) as file, _opened(file) as reader:
            is_stream = hasattr(reader, "read_next_batch")
            for batch in reader if is_stream else map(reader.get_batch, range(reader.num_record_batches)):
                yield from (batch.slice(first, N_ROWS) for first in range(0, batch.num_rows, N_ROWS))


def _opened(file: Any) -> Any:
    """Open an Arrow file in either of its formats: `datasets` writes streams."""
    import pyarrow as pa

    is_file = file.read(6) == b"ARROW1"
    file.seek(0)
    return pa.ipc.open_file(file) if is_file else pa.ipc.open_stream(file)


def _parts(path: Path) -> list[Path]:
    """Return the files of a table: those of a saved dataset are listed, in their order, in its state."""
    if not path.is_dir():
        return [path]
    if not (path / STATE).is_file():
        return _shards(path)
    try:
        listed = [part["filename"] for part in parse_json((path / STATE).read_text(encoding="utf-8"))["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError):
        return sorted(path.glob("*.arrow"))
    parts = [path / Path(name).name for name in listed]
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise QueryFileError(f"{path}: {missing[0]} is missing; expected the whole folder that `save_to_disk` wrote")
    return parts


def _class_names(schema: Any) -> dict[str, list[str]]:
    """Return the names of the classes of columns that hold class numbers, as `datasets` stores them."""
    try:
        features = parse_json((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: list(one["names"]) for name, one in features.items() if one.get("_type") == "ClassLabel"}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def _named(value: Any, names: Sequence[str] | None) -> Any:
    """Return the name of a class: its number alone would be read as a label, the wrong way round as often as not."""
    if names and isinstance(value, int):
        return names[value] if 0 <= value < len(names) else value
    return _without_gaps(value) if isinstance(value, dict | list) else value


def _without_gaps(value: Any) -> Any:
    """Leave out the empty keys of objects: in a table every object has the keys of all."""
    if isinstance(value, list):
        return [_without_gaps(item) for item in value]
    if not isinstance(value, dict) or is_picture_struct(value):
        return value
    return {key: _without_gaps(item) for key, item in value.items() if item is not None}


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn the errors of pyarrow into errors that name the file."""
    from pyarrow import ArrowException

    try:
        yield
    except (ArrowException, OSError) as error:
        raise QueryFileError(f"{path}: damaged, or not a table ({_first_line(error)})") from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
