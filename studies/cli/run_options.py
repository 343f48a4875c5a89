"""The options of a study's run, which every verb that runs one has: model, requests, scale, folder."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from inspect import Parameter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from studies.cli import arguments
from studies.cli.options import (
    DEFAULT_MODEL,
    ColumnNames,
    HarmfulValues,
    Limit,
    Model,
    Queries,
    Scale,
    Split,
    SplitSeed,
    loads_model,
    query_columns,
)
from studies.cli.verbs import with_parameters

if TYPE_CHECKING:
    from interp import Guard
    from studies.experiment.config import Config
    from studies.experiment.experiment import Experiment

RunFolder = Annotated[
    Path, typer.Option("--out", metavar="FOLDER", help="Folder for the results; finished work in it is reused.")
]
Weights = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Another training of the built-in model, as `python -m studies.organism --seed N` writes it.",
    ),
]
SavedGuard = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Folder of a saved guard; by default the one that the sweep chooses on validation.",
        callback=arguments.existing("guard"),
    ),
]
RUN_OPTIONS = {
    "model": Model,
    "queries": Queries,
    "columns": ColumnNames,
    "harmful_values": HarmfulValues,
    "scale": Scale,
    "out": RunFolder,
    "split": Split,
    "seed": SplitSeed,
    "limit": Limit,
    "weights": Weights,
}
"""Options of a study's run, named as the fields of `Config`; `columns` and `harmful_values` are its `columns`."""
RUN_DEFAULTS = {
    "model": DEFAULT_MODEL,
    "columns": "",
    "harmful_values": "",
    "scale": "quick",
    "split": "test",
    "seed": 0,
}
"""Defaults of these options; the others have none."""


def runs_study(out: str, **differing: object) -> Callable[[Callable], Callable]:
    """Give a command the options of a study's run; it receives their `Config`, as `config`.

    Args:
        out: default folder of the results.
        differing: annotations of options that mean something else for this command.
    """

    def decorate(command: Callable) -> Callable:
        def with_config(*, queries, columns, harmful_values, out, weights, loading, **values):
            from studies.experiment.config import Config

            known = {name: values.pop(name) for name in ("model", "scale", "split", "seed", "limit")}
            mapped = query_columns(queries, columns, harmful_values)
            path, weights = (str(each) if each else None for each in (queries, weights))
            config = Config(**known, queries=path, out=str(out), loading=loading, columns=mapped, weights=weights)
            return command(**values, config=config)

        kinds = RUN_OPTIONS | differing
        defaults = RUN_DEFAULTS | {"out": Path(out)}
        added = [
            Parameter(name, Parameter.KEYWORD_ONLY, default=defaults.get(name), annotation=kind)
            for name, kind in kinds.items()
        ]
        return loads_model(with_parameters(command, with_config, added, without="config", first=True))

    return decorate


@contextmanager
def opened_run(
    config: "Config", options: Mapping[str, object], guard: Path | None
) -> Iterator[tuple[Path, "Experiment", "Guard | None"]]:
    """Open the folder of a run that takes a saved guard, load model and guard, and write the settings down.

    Args:
        config: settings of the run.
        options: those of the verb, without the guard.
        guard: folder of the guard; one that holds none shows before the model is loaded.
    """
    from interp import Guard, read_guard_settings
    from studies.bookkeeping.provenance import write_config
    from studies.experiment.experiment import load_experiment
    from studies.experiment.run_folder import run_folder

    if guard:
        read_guard_settings(guard)
    options = {**options, "guard": guard and str(guard.resolve())}
    with run_folder(config, options) as folder:
        experiment = load_experiment(config)
        saved = Guard.from_pretrained(guard, experiment.vlm) if guard else None
        write_config(folder, config, options)
        yield folder, experiment, saved
