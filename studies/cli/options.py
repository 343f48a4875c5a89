"""Options that several verbs share, and how their values are read."""

from collections.abc import Callable, Sequence
from inspect import Parameter, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer.models import OptionInfo

from studies import organism
from studies.cli import arguments
from studies.cli.verbs import with_parameters
from studies.experiment import built_models

if TYPE_CHECKING:
    from studies.datasets import Columns

OWN_DATA, LOADING = "Your own requests", "How the model is loaded"
"""Panels of the help."""


def choice(what: str, names: Sequence[str], help: str, **settings) -> OptionInfo:
    """Return an option with one of some names: the help lists them, the shell completes them, others are an error.

    Args:
        what: what a name stands for, for errors.
        names: the names.
        help: what is chosen.
        settings: of `typer.Option`.
    """
    return typer.Option(
        metavar="NAME",
        help=f"{help}: {', '.join(names[:-1])} or {names[-1]}.",
        callback=arguments.one_of(what, tuple(names)),
        autocompletion=lambda incomplete: [name for name in names if name.startswith(incomplete)],
        **settings,
    )


def choices(what: str, names: Sequence[str], help: str, more: str = "", **settings) -> OptionInfo:
    """Return an option with some of some names, separated by commas; see `choice`.

    Args:
        what: what a name stands for, for errors.
        names: the names.
        help: what is chosen.
        more: said after the names.
        settings: of `typer.Option`.
    """
    return typer.Option(
        metavar="NAMES",
        help=f"{help}, separated by commas: {', '.join(names)}.{more}",
        callback=arguments.some_of(what, tuple(names)),
        autocompletion=lambda incomplete: _completed_lists(incomplete, names),
        **settings,
    )


def flag(name: str, help: str, **settings) -> OptionInfo:
    """Return an option without a value."""
    return typer.Option(name, metavar="", help=help, **settings)


def _completed_lists(incomplete: str, names: Sequence[str]) -> list[str]:
    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in names if name.startswith(last) and name not in before.split(",")]


DEFAULT_MODEL = organism.ALIAS
MODEL_HELP = (
    "The model: a folder in Hugging Face format, a hub id, or one that the project provides: "
    f"{' or '.join((f'{organism.ALIAS} (tiny, built in)', *built_models.PROVIDED))}."
)
PROVIDED = (organism.ALIAS, *built_models.PROVIDED)

Model = Annotated[
    str,
    typer.Option(
        metavar="MODEL",
        help=MODEL_HELP,
        callback=arguments.model,
        autocompletion=lambda incomplete: [name for name in PROVIDED if name.startswith(incomplete)],
    ),
]
Queries = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        rich_help_panel=OWN_DATA,
        help="Table of requests (CSV, JSON, Parquet, ...) with columns text, harmful and optionally category, pair, "
        "picture; by default the built-in requests.",
        callback=arguments.existing("query file"),
    ),
]
ColumnNames = Annotated[
    str,
    typer.Option(
        "--columns",
        metavar="NAME=COLUMN",
        rich_help_panel=OWN_DATA,
        help="What your table's columns are called, separated by commas: text=prompt,harmful=label; also category, "
        "pair and picture. harmful=all or harmful=none if every row is of one class.",
    ),
]
HarmfulValues = Annotated[
    str,
    typer.Option(
        "--harmful-values",
        metavar="LABELS",
        rich_help_panel=OWN_DATA,
        help="Which labels in your table mean harmful, separated by commas, as unsafe,1.",
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Use at most N harmful and N harmless requests of each part of the data, for a quick try; by default as "
        "many as the scale says.",
    ),
]
Layers = Annotated[
    str | None,
    typer.Option(
        metavar="LAYERS", help="Layers, counted from 0: numbers and ranges, such as 0,5,8-12; by default every layer."
    ),
]
Scale = Annotated[
    str,
    choice("scale", arguments.SCALES, "How much is measured, from a first try of a minute (tiny) to everything (full)"),
]
Split = Annotated[
    str,
    choice("split", arguments.SPLITS, "Part of the requests that is reported; validation while you still develop"),
]
SplitSeed = Annotated[
    int, typer.Option(metavar="N", help="Seed of folds, of the division of your own requests, and of controls.")
]
BatchSize = Annotated[
    int, typer.Option(min=1, metavar="N", help="Prompts that run together; halved where memory runs out.")
]
ResultFolders = Annotated[
    list[Path],
    typer.Argument(
        metavar="FOLDER...",
        help="Folders with results of one model, as written by repro, probe, sweep, defend and others.",
        callback=arguments.existing("folder of results"),
    ),
]

Ray = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS", help="Spread the work over a Ray cluster: its address, auto, or local for this machine."
    ),
]
CpusPerWorker = Annotated[
    int, typer.Option(min=1, metavar="N", help="With --ray: CPUs of each worker on a cluster without GPUs.")
]

StandIn = Annotated[bool, flag("--stand-in", "Draw a picture in place of each missing one, and mark its row.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, metavar="N", help="Longest answer, in tokens.")]
JudgeSetting = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help="A parameter of the requests to judges behind a URL, such as temperature=0; NAME= leaves one out; "
        "repeatable.",
    ),
]
Label = Annotated[
    list[str] | None,
    typer.Option(
        metavar="LABEL=MEANING",
        help="With a judge classifier=MODEL: what a label of it means: refused, answered, harmful or harmless; "
        "repeatable.",
    ),
]

PRESET = Annotated[
    str | None,
    typer.Option(
        metavar="PRESET",
        rich_help_panel=LOADING,
        help="A published experiment (`vlm-guard reproduce list`): its model, revision and precision in place of "
        "--model, and its data, from the folder data, in place of your own.",
    ),
]
LOADING_OPTIONS = {
    "device": Annotated[
        str,
        typer.Option(
            metavar="DEVICE",
            rich_help_panel=LOADING,
            help="Where it runs: cpu, cuda, cuda:1, mps; auto is the GPU if there is one.",
        ),
    ],
    "dtype": Annotated[
        str,
        choice(
            "dtype",
            arguments.DTYPES,
            "Precision of the weights; auto is the checkpoint's own on a GPU, and on a CPU what it is fast at",
            rich_help_panel=LOADING,
        ),
    ],
    "device_map": Annotated[
        str | None,
        typer.Option(
            metavar="MAP",
            rich_help_panel=LOADING,
            help="auto spreads a large model over all GPUs and memory (needs accelerate); in place of --device.",
        ),
    ],
    "revision": Annotated[
        str | None,
        typer.Option(metavar="REVISION", rich_help_panel=LOADING, help="Commit, tag or branch of a model on the hub."),
    ],
    "trust_remote_code": Annotated[
        bool,
        flag(
            "--trust-remote-code",
            "Run Python code that comes with the model. Read it first.",
            rich_help_panel=LOADING,
        ),
    ],
}
"""Options that say how a model is loaded, named as the arguments of `load_model`."""
Loading = dict[str, str | bool | None]
"""Values of `LOADING_OPTIONS`."""
LOADING_DEFAULTS: Loading = {
    "device": "auto",
    "dtype": "auto",
    "device_map": None,
    "revision": None,
    "trust_remote_code": False,
}


def _with_options(command: Callable, names: Sequence[str]) -> Callable:
    """Give a command these loading options; it receives all of them together, as `loading`.

    A command whose model is the built-in one by default also takes the model of a preset.
    """
    model = signature(command).parameters.get("model")
    takes_preset = model is not None and model.default == DEFAULT_MODEL

    def with_options(**values):
        loading = LOADING_DEFAULTS | {name: values.pop(name) for name in names}
        if takes_preset and (preset := values.pop("preset")):
            from studies.cli.preset_options import with_preset

            values, loading = with_preset(preset, values, loading, DEFAULT_MODEL)
        return command(**values, loading=loading)

    kind = Parameter.KEYWORD_ONLY
    added = [Parameter(name, kind, default=LOADING_DEFAULTS[name], annotation=LOADING_OPTIONS[name]) for name in names]
    if takes_preset:
        added.append(Parameter("preset", kind, default=None, annotation=PRESET))
    return with_parameters(command, with_options, added, without="loading")


def loads_model(command: Callable) -> Callable:
    """Give a command that loads a model all loading options; it receives them as `loading`."""
    return _with_options(command, tuple(LOADING_OPTIONS))


def loads_judges(command: Callable) -> Callable:
    """Give a command that loads judges all loading options but `revision`, which names a commit of one model."""
    return _with_options(command, ("device", "dtype", "device_map", "trust_remote_code"))


def query_columns(queries: Path | None, columns: str, harmful_values: str) -> "Columns | None":
    """Return the mapping that was typed for a file of queries; None if nothing was.

    Raises:
        QueryFileError: the mapping can't be read, or there is no file that it is for.
    """
    from studies.datasets import Columns, QueryFileError

    mapped = Columns.parse(columns, harmful_values)
    if mapped and queries is None:
        raise QueryFileError("--columns and --harmful-values are for a file of your own; expected --queries FILE")
    return mapped or None


def words(text: str) -> tuple[str, ...]:
    """Split a list typed as `a,b`."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def numbers(text: str) -> list[int]:
    """Read layers typed as `0,5,8-12`.

    Raises:
        TraceError: the text holds something else.
    """
    from interp import TraceError
    from studies.guards.sweep_grid import layer_numbers

    try:
        return layer_numbers(text)
    except ValueError as error:
        raise TraceError(str(error)) from None
