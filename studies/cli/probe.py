"""`vlm-guard probe`: the separability study by itself, on a model or on a saved trace."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from studies.bookkeeping.console import plain_console
from studies.cli import arguments
from studies.cli.messages import print_paths, quieten
from studies.cli.options import (
    DEFAULT_MODEL,
    ColumnNames,
    HarmfulValues,
    Layers,
    Limit,
    Loading,
    Model,
    Queries,
    Scale,
    choices,
    flag,
    loads_model,
    numbers,
    query_columns,
    words,
)
from studies.cli.verbs import VerbResult, Verbs

if TYPE_CHECKING:
    import pandas as pd

    from studies.experiment.config import Config
    from studies.probing.settings import ProbeSettings

app = Verbs()


@app.command()
@loads_model
def probe(
    model: Model = DEFAULT_MODEL,
    queries: Queries = None,
    columns: ColumnNames = "",
    harmful_values: HarmfulValues = "",
    store: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Probe states that `vlm-guard trace` has stored in this folder; neither the model nor --queries are "
            "used then.",
            callback=arguments.existing("store"),
        ),
    ] = None,
    scale: Scale = "quick",
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Folder for table and figure; finished work in it is reused.")
    ] = Path("results/probe"),
    sites: Annotated[
        str | None,
        choices(
            "site",
            arguments.DECODER_SITES,
            "Places in a layer that are probed",
            " resid_post is the layer's output, and the default.",
        ),
    ] = None,
    tokens: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Tokens whose states are probed, separated by commas: last (of the prompt), instruction (last of the "
            "request), image_mean, text_mean (means over tokens of the picture, of the text).",
        ),
    ] = None,
    layers: Layers = None,
    probes: Annotated[
        str | None,
        choices("probe", arguments.PROBES, "Probes", " The first one is also carried from modality to modality."),
    ] = None,
    modality: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="With --store: some of its modalities, separated by commas; default all."),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Part of the requests that is reported: test (the default), or validation while you still develop; "
            "with --store any split that it holds.",
        ),
    ] = None,
    by_category: Annotated[bool, flag("--by-category", "Also fit probes with one category held out at a time.")] = (
        False
    ),
    n_folds: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Parts that cross-validation divides the requests into; a pair stays in one part."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of folds and controls.")] = 0,
    limit: Limit = None,
    *,
    loading: Loading,
) -> VerbResult:
    """Measure where harmful and harmless requests separate: probes with controls, by layer, modality, token, site.

    Rerun it to resume where it stopped.
    """
    quieten()
    from studies import separability
    from studies.experiment.config import Config, ConfigError

    typed = {"sites": sites and words(sites), "tokens": tokens and words(tokens), "probes": probes and words(probes)}
    typed |= {"layers": layers and tuple(numbers(layers)), "n_folds": n_folds, "by_category": by_category or None}
    changes = {name: value for name, value in typed.items() if value is not None}
    mapped = query_columns(queries, columns, harmful_values)
    if store is None:
        if modality:
            raise ConfigError("--modality is for stores; a study probes the modalities of its scale")
        path = str(queries) if queries else None
        config = Config(
            model, path, scale, str(out), split or "test", seed, loading=loading, columns=mapped, limit=limit
        )
        probe_model(config, changes, plain_console())
        return VerbResult(files=_files(out))
    if queries or limit:
        raise ConfigError("--store brings its own queries; leave --queries and --limit out")
    extent = separability.probe_settings(scale, changes)
    probe_store(store, str(out), extent, words(modality or ""), split or "", seed, plain_console())
    return VerbResult(files=_files(out))


def _files(out: Path) -> list[Path]:
    return [out / "separability.csv", out / "probe_auroc.pdf", out / "probe_auroc.png"]


def probe_model(config: "Config", changes: Mapping, console: Console) -> "pd.DataFrame":
    """Run the separability study.

    Args:
        config: settings of the run.
        changes: fields of `ProbeSettings` that differ from the scale's.
        console: where the summary is printed.

    Raises:
        ProbeError: an extent that names something that does not exist.
        ConfigError, QueryFileError, ModelError: see `studies.experiment.experiment.load_experiment`.
    """
    from studies import separability
    from studies.bookkeeping.provenance import write_config, write_provenance
    from studies.bookkeeping.tables import write_table
    from studies.experiment.experiment import load_experiment
    from studies.experiment.run_folder import run_folder

    extent = separability.probe_settings(config.scale, changes)
    with run_folder(config, asdict(extent)) as out:
        experiment = load_experiment(config)
        write_config(out, config, asdict(extent))
        table = separability.run(config, experiment, extent)
        write_table(table, out, "separability")
        write_provenance(out, experiment.inputs(), config.seed, [out / "separability.csv"])
        print_summary(table, out, console)
    return table


def probe_store(
    store: Path,
    out: str,
    extent: "ProbeSettings",
    modalities: Sequence[str],
    split: str,
    seed: int,
    console: Console,
) -> "pd.DataFrame":
    """Probe states that were traced before; no model is needed.

    Args:
        store: folder of the store.
        out: folder for the table.
        extent: what is probed, and with which probes.
        modalities: some of those that were traced; empty for all.
        split: one of the store's; empty where it has none.
        seed: seed for folds and controls.
        console: where the summary is printed.

    Raises:
        ConfigError: the folder holds results with other settings.
        StoreError, ProbeError: see `studies.probing.states.load_probe_data`.
    """
    from interp.json_text import parse_json
    from studies.bookkeeping.provenance import write_json
    from studies.bookkeeping.tables import tidy, write_table
    from studies.experiment.run_folder import CONFIG, check_settings, held
    from studies.probing.rows import probe_rows
    from studies.probing.states import load_probe_data

    states = load_probe_data(store, extent, modalities, split, seed)
    source = {"store": parse_json((store / "header.json").read_text(encoding="utf-8")), "split": split}
    settings = {"store": str(store.resolve()), "split": split, "seed": seed}
    settings["options"] = asdict(extent) | {"modalities": list(modalities)}
    with held(out) as folder:
        check_settings(folder, settings)
        write_json(folder / CONFIG, settings)
        rows = probe_rows(states, folder / "probes", source)
        labels = {"model": source["store"]["about"]["model"], "dataset": store.name, "split": split, "seed": seed}
        table = tidy(labels | row for row in rows)
        write_table(table, folder, "separability")
        print_summary(table, folder, console)
    return table


def print_summary(table: "pd.DataFrame", out: Path, console: Console) -> None:
    """Draw the table, and print its results in words."""
    import figures
    from studies.probing.summary import summary_lines

    figures.save(figures.probe_auroc(table), out, "probe_auroc")
    for line in summary_lines(table):
        console.print(f"- {line}", soft_wrap=True)
    print_paths(console, _files(out))
