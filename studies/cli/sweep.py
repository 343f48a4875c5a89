"""`vlm-guard sweep`: where and how to guard, chosen on validation."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from studies.bookkeeping.console import plain_console
from studies.cli import arguments
from studies.cli.messages import print_paths, quieten
from studies.cli.options import CpusPerWorker, Ray, choices, flag
from studies.cli.run_options import runs_study
from studies.cli.verbs import VerbResult, Verbs

if TYPE_CHECKING:
    from studies.experiment.config import Config
    from studies.guards.sweep_grid import Grid
    from studies.sweep import Sweep

app = Verbs()
GRID = "Which guards are tried (by default those of the scale)"


@app.command()
@runs_study("results/sweep")
def sweep(
    layers: Annotated[
        str | None,
        typer.Option(
            metavar="LAYERS",
            help="Layers that guards act on, one guard each: single (every layer), every:N (every Nth), spread:N (N of "
            "them), numbers such as 0,5,8-12; or several layers at once: windows:N (N neighbours), start-to-end, "
            "middle-to-last. Separate several of these with spaces.",
            rich_help_panel=GRID,
        ),
    ] = None,
    direction_layers: Annotated[
        str | None,
        typer.Option(
            metavar="LAYERS",
            help="Layers that directions are fitted at: own (the guarded layer), or numbers such as 0,5,8-12.",
            rich_help_panel=GRID,
        ),
    ] = None,
    rules: Annotated[
        str | None,
        choices(
            "rule",
            arguments.RULES,
            "How states are changed",
            " substitute is the paper's; docs/explanation/method.md has the formulas.",
            rich_help_panel=GRID,
        ),
    ] = None,
    gates: Annotated[
        str | None,
        choices(
            "gate",
            arguments.GATES,
            "When guards act",
            " sign is the paper's: if the text alone lies on the harmful side.",
            rich_help_panel=GRID,
        ),
    ] = None,
    scopes: Annotated[
        str | None,
        choices(
            "scope",
            arguments.SCOPES,
            "What a closed gate holds back",
            " change is everything, target only what is put back.",
            rich_help_panel=GRID,
        ),
    ] = None,
    ranks: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBERS",
            help="Dimensions of the safety subspace, separated by commas, such as 1,2,4.",
            rich_help_panel=GRID,
        ),
    ] = None,
    estimators: Annotated[
        str | None,
        choices(
            "estimator",
            arguments.ESTIMATORS,
            "How directions are fitted",
            " paired_svd is the paper's.",
            rich_help_panel=GRID,
        ),
    ] = None,
    sources: Annotated[
        str | None,
        choices(
            "source",
            arguments.SOURCES,
            "Whose states directions are fitted on",
            " vlm_text is the model itself on text alone, llm the aligned LLM it was made from.",
            rich_help_panel=GRID,
        ),
    ] = None,
    tokens: Annotated[
        str | None,
        choices(
            "token",
            arguments.TOKENS,
            "Tokens whose states directions are fitted on",
            " last is the prompt's last, instruction the request's last.",
            rich_help_panel=GRID,
        ),
    ] = None,
    positions: Annotated[
        str | None,
        choices(
            "positions",
            arguments.POSITIONS,
            "Tokens that guards change",
            " last_prefill is the prompt's last token, generated all tokens of the answer, last both, text the prompt "
            "without pictures.",
            rich_help_panel=GRID,
        ),
    ] = None,
    strengths: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBERS",
            help="Strengths of the change (α in the formulas; 1 is the paper's), separated by commas, such as 0.5,1,2.",
            rich_help_panel=GRID,
        ),
    ] = None,
    top: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Number of finalists, whose whole answers are generated and judged."),
    ] = None,
    halving: Annotated[
        bool,
        flag("--halving", "Save time: rank on 1/4, 1/2, then all prompts, dropping half of the guards each time."),
    ] = False,
    ray: Ray = None,
    cpus_per_worker: CpusPerWorker = 1,
    *,
    config: "Config",
) -> VerbResult:
    """Find where and how to guard: rank every configuration by its first answer token, judge full answers of the best.

    Saves the chosen guard, and shows what other rules for choosing a layer would have picked. Rerun it to resume.
    """
    quieten()
    from interp import read_guard_settings
    from studies.cli.grid_options import grid_from_options
    from studies.guards.sweep_grid import Grid
    from studies.layer_sweep import GRIDS

    typed = {"layers": layers, "direction_layers": direction_layers, "rules": rules, "gates": gates, "scopes": scopes}
    typed |= {"ranks": ranks, "estimators": estimators, "sources": sources, "tokens": tokens, "positions": positions}
    typed |= {"strengths": strengths}
    axes = {name: value for name, value in typed.items() if value is not None}
    # The study itself reports a scale that does not exist.
    grid, out = grid_from_options(axes, GRIDS.get(config.scale, Grid())), Path(config.out)
    run(config, grid, plain_console(), top, halving, ray, cpus_per_worker)
    names = ("layer_sweep.csv", "layer_selection.csv", "random_directions.csv", "pareto.png", "layer_selection.png")
    written = [out / name for name in (*names, "random_directions.png") if (out / name).exists()]
    return VerbResult({"guard": out / "guard", "chosen": read_guard_settings(out / "guard")}, written)


def run(
    config: "Config",
    grid: "Grid",
    console: Console,
    top: int | None = None,
    halving: bool = False,
    ray: str | None = None,
    cpus_per_worker: int = 1,
) -> "Sweep":
    """Sweep, compare selection rules, and save the chosen configuration as a guard.

    Args:
        config: settings of the run.
        grid: what is varied.
        console: where finalists and summary are printed.
        top: number of finalists; None for the scale's.
        halving: whether configurations are ranked by successive halving.
        ray: address of a cluster.
        cpus_per_worker: CPUs per worker on a cluster without GPUs.

    Raises:
        GridError: an empty grid, or layers that do not exist.
        ConfigError: the folder holds a sweep with other settings.
        QueryFileError, ModelError: see `studies.experiment.experiment.load_experiment`.
    """
    import figures
    from studies import layer_selection, layer_sweep
    from studies.bookkeeping.provenance import write_config, write_provenance
    from studies.bookkeeping.tables import write_table
    from studies.experiment.experiment import load_experiment
    from studies.experiment.run_folder import run_folder
    from studies.guards.wording import chosen_in_words
    from studies.sweep import Sweep

    options = asdict(grid) | {"top": top or layer_sweep.TOP.get(config.scale), "halving": halving}
    with run_folder(config, options) as out:
        experiment = load_experiment(config)
        grid.check(experiment)
        write_config(out, config, options)
        swept = Sweep.run(config, experiment, grid, top, halving, ray, cpus_per_worker)
        write_table(swept.table, out, "layer_sweep")
        swept.save_guard(out / "guard", experiment)
        console.print(_finalists(swept))
        in_words = chosen_in_words(swept.table)
        console.print(f"Chosen: {in_words}.", soft_wrap=True)
        selected = layer_selection.run(config, experiment, ray, cpus_per_worker)
        write_table(selected, out, "layer_selection")
        tables = [out / "layer_sweep.csv", out / "layer_selection.csv"]
        # Nothing is compared with random directions if validation is the reported split.
        tables += [write_table(swept.random, out, "random_directions")] if len(swept.random) else []
        write_provenance(out, experiment.inputs(), config.seed, tables)
        for line in layer_selection.summary_lines(selected):
            console.print(f"- {line}", soft_wrap=True)
        drawn = figures.save(figures.pareto(swept.table, in_words), out, "pareto")
        if len(swept.random):
            drawn += figures.save(figures.random_directions(swept.random), out, "random_directions")
        drawn += figures.save(figures.layer_selection(selected), out, "layer_selection")
        print_paths(console, [*tables, out / "guard", *drawn])
    return swept


def _finalists(swept: "Sweep") -> Table:
    """Lay out the finalists, from best to worst on validation."""
    import pandas as pd

    table = Table(title="Finalists on validation: shares refused, KL in nats")
    for name in ("layers", "rule", "gate", "strength", "refused", "harmless", "KL", ""):
        table.add_column(name, overflow="fold")
    for finalist in swept.finalists.itertuples():
        strength = "" if pd.isna(finalist.strength) else f"{finalist.strength:g}"
        values = (f"{value:.3f}" for value in (finalist.refused, finalist.harmless_refused, finalist.kl))
        table.add_row(finalist.layers, finalist.rule, finalist.gate, strength, *values, finalist.mark)
    return table
