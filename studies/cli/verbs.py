"""The options that all verbs share (`--json`, `--quiet`, `--verbose`) and their exit codes, by one wrapper.

A verb prints for people and returns a `VerbResult` for programs. With `--json` what it prints goes to stderr, and the
outcome to stdout: the tables that were written, row by row, and what else was found.
"""

import io
import json
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass, field, is_dataclass
from functools import wraps
from importlib.metadata import version
from inspect import Parameter, Signature, getdoc, signature
from math import isfinite
from pathlib import Path
from typing import Annotated

import typer

from studies.bookkeeping.console import NORMAL, QUIET, VERBOSE, VERBOSITY
from studies.cli.errors import is_about_input

PANEL = "What is printed"
OPTIONS = {
    "as_json": Annotated[
        bool,
        typer.Option(
            "--json", metavar="", rich_help_panel=PANEL, help="Print the result as JSON, and everything else on stderr."
        ),
    ],
    "is_quiet": Annotated[
        bool,
        typer.Option(
            "--quiet", "-q", metavar="", rich_help_panel=PANEL, help="Print results and errors only, no progress."
        ),
    ],
    "is_verbose": Annotated[
        bool,
        typer.Option(
            "--verbose",
            "-v",
            metavar="",
            rich_help_panel=PANEL,
            help="Also print warnings of the libraries, and where errors were raised.",
        ),
    ],
}
"""The options that every verb has."""


@dataclass(frozen=True)
class VerbResult:
    """The result of a verb, as `--json` prints it."""

    found: Mapping[str, object] = field(default_factory=dict)
    """Values by name: texts, numbers, paths, dataclasses, data frames, and lists or mappings of these."""
    files: Sequence[Path] = ()
    """Files that were written. CSV files among them are printed as tables."""
    is_ok: bool = True
    """False ends the command with exit code 1."""


class Verbs(typer.Typer):
    """Verbs that return a `VerbResult`."""

    def command(self, name: str | None = None, **settings) -> Callable[[Callable], Callable]:
        register = super().command
        return lambda verb: register(name, help=paragraphs(getdoc(verb)), **settings)(_reporting(verb))


def paragraphs(text: str) -> str:
    """Join the lines of each paragraph, so that help fills the width of any terminal."""
    return re.sub(r"(?<!\n)\n(?!\n)", " ", text.strip())


def with_parameters(
    command: Callable, wrapper: Callable, added: Sequence[Parameter], without: str = "", first: bool = False
) -> Callable:
    """Return a wrapper around a command to which typer gives further options.

    Args:
        command: the command, whose options typer reads off signature and annotations.
        wrapper: called with all options, those of the command and the added ones.
        added: further options.
        without: a parameter of the command that the wrapper fills in.
        first: whether the added options come before those of the command in its help.
    """
    own = [parameter for parameter in signature(command).parameters.values() if parameter.name != without]
    # Typer names them all, so that their order is free.
    own = [parameter.replace(kind=Parameter.KEYWORD_ONLY) for parameter in own]
    every = [*added, *own] if first else [*own, *added]
    wrapped = wraps(command)(wrapper)
    wrapped.__signature__ = Signature(every)
    wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in every}
    return wrapped


def _reporting(verb: Callable[..., VerbResult]) -> Callable:
    def reporting(as_json: bool, is_quiet: bool, is_verbose: bool, **values) -> None:
        VERBOSITY.set(QUIET if is_quiet else VERBOSE if is_verbose else NORMAL)
        if is_verbose:
            warnings.simplefilter("default")
        with _traceback_shown(is_verbose), _stdout_for_programs(as_json, is_quiet):
            outcome = verb(**values)
        if as_json:
            print(as_text(outcome))
        if not outcome.is_ok:
            raise typer.Exit(1)

    kind = Parameter.KEYWORD_ONLY
    added = [Parameter(name, kind, default=False, annotation=option) for name, option in OPTIONS.items()]
    return with_parameters(verb, reporting, added)


@contextmanager
def _stdout_for_programs(as_json: bool, is_quiet: bool) -> Iterator[None]:
    """Keep stdout free for JSON."""
    if not as_json:
        yield
        return
    with redirect_stdout(io.StringIO() if is_quiet else sys.stderr):
        yield


@contextmanager
def _traceback_shown(is_verbose: bool) -> Iterator[None]:
    """Print where an error about input was raised, which is otherwise reported in one line; bugs show it anyway."""
    try:
        yield
    except Exception as error:
        if is_verbose and is_about_input(error):
            traceback.print_exc()
        raise


# --- JSON --------------------------------------------------------------------------------------------------------


def as_text(outcome: VerbResult) -> str:
    """Return an outcome as JSON."""
    content = {"vlm_guard": version("vlm-guard"), **outcome.found}
    if outcome.files:
        content |= {"tables": _tables(outcome.files), "files": outcome.files}
    return json.dumps(plain(content), indent=1, ensure_ascii=False, allow_nan=False)


def _tables(files: Sequence[Path]) -> dict[str, list[dict]]:
    """Return the rows of the CSV files by the name of the file; several of one name are one table."""
    import pandas as pd

    tables: dict[str, list[dict]] = {}
    for path in files:
        if path.suffix == ".csv":
            tables.setdefault(path.stem, []).extend(plain(pd.read_csv(path)))
    return tables


def plain(value: object) -> object:
    """Return a value in the types of JSON; what is not a number, or empty in a table, is null."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if is_dataclass(value):
        return plain(asdict(value))
    if hasattr(value, "to_dict"):
        return plain(value.to_dict("records"))
    if hasattr(value, "item"):
        return plain(value.item())
    return str(value)
