"""Every figure that results allow, with its caption, and what was left out and why."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from rich.console import Console

import figures
from figures import tables
from studies.bookkeeping.progress import phase
from studies.experiment.config import writable_folder
from studies.report.results import STUDIES, Results


@dataclass(frozen=True)
class FigureSpec:
    """A figure of the gallery: what it is called, and what it is drawn from."""

    name: str
    """Of its files."""
    title: str
    table: str
    """Of `studies.report.results.STUDIES`."""
    draw: Callable[[pd.DataFrame, Results], Figure]


@dataclass(frozen=True)
class DrawnFigure:
    name: str
    title: str
    table: str
    figure: Figure

    @property
    def caption(self) -> str:
        """What is drawn, of how many, with which intervals; it serves those who can't see the figure, too."""
        return figures.caption(self.figure)


@dataclass(frozen=True)
class OmittedFigure:
    name: str
    title: str
    table: str
    reason: str


FIGURES: tuple[FigureSpec, ...] = (
    FigureSpec("hidden_states", "Hidden states", "points", lambda t, r: figures.hidden_states(t)),
    FigureSpec("probe_auroc", "How well classes are told apart", "separability", lambda t, r: figures.probe_auroc(t)),
    FigureSpec("degradation", "What a picture takes from it", "separability", lambda t, r: figures.degradation(t)),
    FigureSpec("transfer", "Probes carried over", "separability", lambda t, r: figures.transfer(t, _layer(t, r))),
    FigureSpec(
        "coordinates", "The safety coordinate", "points", lambda t, r: figures.coordinate_ridges(t, _layer(t, r))
    ),
    FigureSpec("directions", "The safety direction", "readings", lambda t, r: figures.directions(t)),
    FigureSpec("refusal_lens", "Where refusal builds up", "signal_path", lambda t, r: figures.refusal_lens(t)),
    FigureSpec("attribution", "Heads and MLPs that write it", "signal_path", lambda t, r: figures.attribution(t)),
    FigureSpec("patching_map", "Where a picture loses it", "signal_path", lambda t, r: figures.patching_map(t)),
    FigureSpec("layer_sweep", "The guard at each layer", "layer_sweep", lambda t, r: figures.layer_sweep(t)),
    FigureSpec("pareto", "Every configuration", "layer_sweep", lambda t, r: figures.pareto(t)),
    FigureSpec(
        "layer_selection", "Rules that choose a layer", "layer_selection", lambda t, r: figures.layer_selection(t)
    ),
    FigureSpec("readings", "Every reading of the method", "readings", lambda t, r: figures.readings(t)),
    FigureSpec("gate_roc", "The gate as a classifier", "changes", lambda t, r: figures.gate_roc(t)),
    FigureSpec("what_changed", "What the guard changed", "changes", lambda t, r: figures.what_changed(t)),
    FigureSpec("defence", "Attack success", "defence", lambda t, r: figures.attack_success_bars(t)),
    FigureSpec("safety_tradeoff", "Safety against over-refusal", "defence", lambda t, r: figures.safety_tradeoff(t)),
    FigureSpec("judge_agreement", "Agreement of the judges", "judges", lambda t, r: figures.judge_agreement(t)),
    FigureSpec("bench", "Speed", "bench", lambda t, r: figures.bench_ratios(t)),
)
"""In the order of the argument."""


def drawn(results: Results) -> Iterator[DrawnFigure | OmittedFigure]:
    """Each figure of `FIGURES`, or why it can't be drawn: one that fails takes no other with it."""
    for one in FIGURES:
        about = (one.name, one.title, one.table)
        if one.table not in results:
            yield OmittedFigure(*about, _missing(one.table))
            continue
        try:
            yield DrawnFigure(*about, one.draw(results[one.table], results))
        except (ValueError, LookupError) as error:
            yield OmittedFigure(*about, str(error))


PAPER_TABLES: dict[str, tuple[str, str, Callable[[pd.DataFrame], pd.DataFrame]]] = {
    "claims": ("claims", "Claims of the paper, and the verdicts.", tables.verdicts),
    "auroc": ("separability", "AUROC along the safety direction, with 95 % intervals.", tables.auroc_by_layer),
    "selection_rules": (
        "layer_selection",
        "What the guard is worth on the reported split where each rule would have put it, means over modalities.",
        tables.selection_rules,
    ),
    "defences": ("defence", "Attack success and over-refusal, with 95 % Wilson intervals.", tables.defence_rates),
    "judges": ("judges", "Agreement of judges: Cohen's kappa with 95 % intervals.", tables.kappas),
}
"""Name of the files -> tidy table, caption, and what makes it readable."""


def save(found: Iterable[DrawnFigure | OmittedFigure], out: Path) -> tuple[list[Path], list[OmittedFigure]]:
    """Each figure as PDF and PNG, and `captions.md`; what was written, and what was left out.

    Args:
        found: of `drawn`.
        out: a folder that is there.
    """
    written, left_out, captions = [], [], []
    with phase("figures", len(FIGURES)) as report:
        for one in found:
            if isinstance(one, OmittedFigure):
                left_out.append(one)
            else:
                written += figures.save(one.figure, out, one.name)
                captions.append(f"## {one.title}\n\n`{one.name}.pdf`, `{one.name}.png`\n\n{one.caption}\n")
            report(1, note=one.name)
    path = out / "captions.md"
    path.write_text("\n".join(captions), encoding="utf-8")
    return [*written, path], left_out


def save_tables(results: Results, out: Path) -> tuple[list[Path], list[OmittedFigure]]:
    """`PAPER_TABLES` as LaTeX and Markdown; what was written, and what was left out.

    Args:
        out: a folder that is there.
    """
    written, left_out = [], []
    for name, (source, caption, readable) in PAPER_TABLES.items():
        if source not in results:
            left_out.append(OmittedFigure(name, caption, source, _missing(source)))
            continue
        try:
            shown = readable(results[source])
        except (ValueError, LookupError) as error:
            left_out.append(OmittedFigure(name, caption, source, str(error)))
            continue
        texts = {"tex": tables.to_latex(shown, caption, f"tab:{name}"), "md": tables.to_markdown(shown)}
        for suffix, text in texts.items():
            written.append(out / f"{name}.{suffix}")
            written[-1].write_text(text, encoding="utf-8")
    return written, left_out


def command(folders: Sequence[str | Path], out: str | Path, console: Console) -> None:
    """`vlm-guard figures`: everything that the results at hand allow, and what was left out.

    Raises:
        ResultsError, ConfigError: folders that hold no results or do not belong together; nowhere to write.
    """
    results = Results.of(*folders)
    place = writable_folder(out)
    drawn_files, no_figures = save(drawn(results), place)
    table_files, no_tables = save_tables(results, place)
    for path in (*drawn_files, *table_files):
        if path.suffix != ".pdf":
            console.print(f"  {path}", soft_wrap=True, highlight=False)
    for one in (*no_figures, *no_tables):
        console.print(f"left out: {one.name}: {one.reason}", soft_wrap=True, highlight=False, markup=False)


def _missing(table: str) -> str:
    return f"{table}.csv is missing; run `{STUDIES[table]}`"


def _layer(table: pd.DataFrame, results: Results) -> int:
    """The sweep's choice; where nothing was swept, or something else was probed, the last layer of the table."""
    return results.layer if results.layer in set(table.layer) else int(table.layer.max())
