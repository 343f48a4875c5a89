"""Options that several verbs share, and how their values are read."""

from pathlib import Path
from typing import Annotated

import typer

from studies import organism

DEFAULT_MODEL = organism.ALIAS
MODEL_HELP = "Folder in Hugging Face format, hub id, or 'organism' (the built-in model)."

Model = Annotated[str, typer.Option(help=MODEL_HELP)]
ModelArgument = Annotated[str, typer.Argument(help=MODEL_HELP)]
Queries = Annotated[
    Path | None,
    typer.Option(
        help="CSV with columns text, harmful and optionally category, pair, picture; by default the built-in queries."
    ),
]
Layers = Annotated[str | None, typer.Option(help="Numbers and ranges, such as 0,5,8-12; by default every layer.")]
Split = Annotated[str, typer.Option(help="Split to report: test, or validation while developing.")]
SplitSeed = Annotated[int, typer.Option(help="Seed for splitting your own queries.")]
ResultFolders = Annotated[
    list[Path], typer.Argument(help="Folders of results of one model, as `repro` and other verbs write them.")
]

Ray = Annotated[
    str | None,
    typer.Option(help="Spread the work over a Ray cluster: its address, 'auto', or 'local' for this machine."),
]
CpusPerWorker = Annotated[int, typer.Option(min=1, help="CPUs per worker on a cluster without GPUs.")]

StandIn = Annotated[
    bool, typer.Option("--stand-in", help="Draw a picture in place of each missing one, and mark its row.")
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

Trust = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the checkpoint. Read it first.")
]
Precision = Annotated[str, typer.Option(help="Weight precision: auto, float32, bfloat16 or float16.")]
DeviceMap = Annotated[
    str | None, typer.Option(help="'auto' spreads a large model over the devices (needs accelerate).")
]
Revision = Annotated[str | None, typer.Option(help="Commit, tag or branch on the hub.")]


def loading_of(
    dtype: str, device_map: str | None, trust_remote_code: bool, revision: str | None = None
) -> dict[str, str | bool | None]:
    """Return how a model is loaded, as arguments of `studies.experiment.model_loading.load_model`.

    Args:
        dtype: weight precision.
        device_map: how the model is spread over devices.
        trust_remote_code: whether code of the checkpoint may run.
        revision: commit, tag or branch on the hub.
    """
    return {
        "dtype": dtype,
        "device_map": device_map,
        "revision": revision,
        "trust_remote_code": trust_remote_code,
    }


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
