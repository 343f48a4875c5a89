"""Options that several verbs share, and how their values are read."""

from collections.abc import Callable, Sequence
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from studies import organism
from studies.cli import arguments

if TYPE_CHECKING:
    from studies.datasets import Columns

DEFAULT_MODEL = organism.ALIAS
MODEL_HELP = (
    "Folder in Hugging Face format, hub id, 'organism' (the built-in model), 'llava-qwen-0.5b' or 'llava-smollm2-135m'."
)

Model = Annotated[str, typer.Option(help=MODEL_HELP, callback=arguments.model)]
ModelArgument = Annotated[str, typer.Argument(help=MODEL_HELP, callback=arguments.model)]
Queries = Annotated[
    Path | None,
    typer.Option(
        help="Table with columns text, harmful and optionally category, pair, picture (or --columns); by default the "
        "built-in queries.",
        callback=arguments.existing("query file"),
    ),
]
Layers = Annotated[str | None, typer.Option(help="Numbers and ranges, such as 0,5,8-12; by default every layer.")]
Scale = Annotated[
    str,
    typer.Option(
        help="How much is measured: tiny, brief, quick, full.",
        callback=arguments.one_of("scale", arguments.SCALES),
    ),
]
Split = Annotated[
    str,
    typer.Option(
        help="Split to report: test, or validation while developing.",
        callback=arguments.one_of("split", arguments.SPLITS),
    ),
]
SplitSeed = Annotated[int, typer.Option(help="Seed for splitting your own queries.")]
ResultFolders = Annotated[
    list[Path],
    typer.Argument(
        help="Folders of results of one model, as `repro` and other verbs write them.",
        callback=arguments.existing("folder of results"),
    ),
]

Ray = Annotated[
    str | None,
    typer.Option(help="Spread the work over a Ray cluster: its address, 'auto', or 'local' for this machine."),
]
CpusPerWorker = Annotated[int, typer.Option(min=1, help="CPUs per worker on a cluster without GPUs.")]

StandIn = Annotated[
    bool, typer.Option("--stand-in", help="Draw a picture in place of each missing one, and mark its row.")
]
ColumnNames = Annotated[
    str,
    typer.Option(
        "--columns",
        help="Columns of a table of your own, comma-separated: text=prompt and harmful=label; also category, pair and "
        "picture. "
        "harmful=all or harmful=none if every row is of one class. Files that are named as a benchmark have their own.",
    ),
]
HarmfulValues = Annotated[
    str,
    typer.Option(
        "--harmful-values", help="Labels that mean harmful in a table of your own, comma-separated, as unsafe,1."
    ),
]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="At most N tokens per answer.")]
JudgeSetting = Annotated[
    list[str] | None,
    typer.Option(
        help="NAME=VALUE, a request parameter for judges behind an endpoint; NAME= drops the parameter; repeatable."
    ),
]
Label = Annotated[
    list[str] | None,
    typer.Option(
        help="LABEL=MEANING, for classifier=MODEL judges: the meaning of a label of the classifier, one of refused, "
        "answered, harmful, harmless; repeatable."
    ),
]

LOADING_OPTIONS = {
    "trust_remote_code": Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the checkpoint. Read it first.")
    ],
    "dtype": Annotated[
        str,
        typer.Option(
            help="Weight precision: auto, float32, bfloat16 or float16.",
            callback=arguments.one_of("dtype", arguments.DTYPES),
        ),
    ],
    "device_map": Annotated[
        str | None, typer.Option(help="'auto' spreads a large model over the devices (needs accelerate).")
    ],
    "revision": Annotated[str | None, typer.Option(help="Commit, tag or branch on the hub.")],
}
"""Options that say how a model is loaded, named as the arguments of `load_model`."""
Loading = dict[str, str | bool | None]
"""Values of `LOADING_OPTIONS`."""
LOADING_DEFAULTS: Loading = {"trust_remote_code": False, "dtype": "auto", "device_map": None, "revision": None}


def _with_options(command: Callable, names: Sequence[str]) -> Callable:
    """Give a command these loading options; it receives all of them together, as `loading`."""
    own = [parameter for parameter in signature(command).parameters.values() if parameter.name != "loading"]
    # typer reads options off the signature and the annotations, both of which name the loading options one by one.
    kind = Parameter.POSITIONAL_OR_KEYWORD
    added = [Parameter(name, kind, default=LOADING_DEFAULTS[name], annotation=LOADING_OPTIONS[name]) for name in names]

    @wraps(command)
    def with_options(**values):
        loading = LOADING_DEFAULTS | {name: values.pop(name) for name in names}
        return command(**values, loading=loading)

    with_options.__signature__ = Signature([*own, *added])
    with_options.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *added)}
    return with_options


def loads_model(command: Callable) -> Callable:
    """Give a command that loads a model all loading options; it receives them as `loading`."""
    return _with_options(command, tuple(LOADING_OPTIONS))


def loads_judges(command: Callable) -> Callable:
    """Give a command that loads judges all loading options but `revision`, which names a commit of one model."""
    return _with_options(command, ("trust_remote_code", "dtype", "device_map"))


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
