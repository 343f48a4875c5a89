"""Logs of inspect_ai, `.eval` or `.json` -> rows: the input, the answer, and what the sample knows of itself."""

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

from interp.json_text import parse_json
from studies.datasets.rows import QueryFileError, Row

SUFFIX = ".eval"
VERSION = 2
"""Version of the logs' format."""
HEADERS = ("header.json", "_journal/start.json")
"""Members of the archive that say what was run; a run that is not finished has only the second."""
SAMPLES = "samples/"


@dataclass(frozen=True)
class InspectLog:
    """The answers of one run of inspect_ai."""

    rows: tuple[Row, ...]
    """One for each sample: its metadata, `input`, `target`, `id`, and the `response`, which is None after an error."""
    model: str
    task: str
    max_new_tokens: int | None
    """At most this many tokens were generated, as far as the log says."""


def read_inspect_log(path: Path) -> InspectLog:
    """Read a log that inspect_ai has written as `.eval`.

    Raises:
        QueryFileError: the file is no such log, damaged, or of another version.
    """
    try:
        with ZipFile(path) as archive:
            names = archive.namelist()
            header = next((name for name in HEADERS if name in names), None)
            if header is None:
                raise QueryFileError(f"{path}: a ZIP archive without {HEADERS[0]}; expected a log of inspect_ai")
            samples = [name for name in names if name.startswith(SAMPLES) and name.endswith(".json")]
            return _log(path, parse_json(archive.read(header)), (parse_json(archive.read(name)) for name in samples))
    except NotImplementedError as error:
        raise QueryFileError(f"{path}: {error}; write it anew with `inspect log convert --to json`") from None
    except (BadZipFile, EOFError, OSError, ValueError, zlib.error) as error:
        if isinstance(error, QueryFileError):
            raise
        raise QueryFileError(f"{path}: damaged, or not a log of inspect_ai ({error})") from None


def is_inspect_json(parts: Mapping[str, object]) -> bool:
    """Return whether the parts of a JSON object are those of a log that inspect_ai has written as `.json`."""
    return {"version", "eval", "samples"} <= set(parts)


def inspect_log_of(path: Path, parts: Mapping[str, Any]) -> InspectLog:
    """Return the log that a JSON object holds, see `read_inspect_log`."""
    return _log(path, parts, iter(parts["samples"]))


def _log(path: Path, header: Mapping[str, Any], samples: Iterator[Mapping[str, Any]]) -> InspectLog:
    if not isinstance(header, dict) or header.get("version") != VERSION:
        version = header.get("version") if isinstance(header, dict) else None
        raise QueryFileError(
            f"{path}: version {version} of inspect_ai's logs; expected {VERSION}, which `inspect log convert` writes"
        )
    try:
        about = header["eval"]
        limits = (about.get("model_generate_config"), header.get("plan", {}).get("config"))
        tokens = next((limit["max_tokens"] for limit in limits if limit and limit.get("max_tokens")), None)
        rows = tuple(_row(path, sample) for sample in samples)
        return InspectLog(rows, str(about["model"]), str(about["task"]), tokens)
    except (KeyError, TypeError, AttributeError) as error:
        raise QueryFileError(f"{path}: not a log of inspect_ai as it is known here ({error!r})") from None


def _row(path: Path, sample: Mapping[str, Any]) -> Row:
    epoch = sample.get("epoch", 1)
    id = f"{sample['id']}" if epoch == 1 else f"{sample['id']}/{epoch}"
    own = {"input": _asked(sample["input"]), "target": sample.get("target"), "id": id, "response": _answer(sample)}
    return Row(path, f"sample {id}", dict(sample.get("metadata") or {}) | own)


def _asked(given: Any) -> str:
    """Return the text of the last turn of the user, without pictures."""
    if isinstance(given, str):
        return given
    turns = [turn for turn in given if turn["role"] == "user"]
    return _words(turns[-1]["content"]) if turns else ""


def _answer(sample: Mapping[str, Any]) -> str | None:
    """Return the words of the answer, without the thoughts before it; None if the sample ended in an error."""
    choices = (sample.get("output") or {}).get("choices")
    return _words(choices[0]["message"]["content"]) if choices else None


def _words(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content if part["type"] == "text")
