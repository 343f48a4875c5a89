"""Every figure and table for papers that the results allow, with captions, and the reason for each one left out."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

import figures
from figures import tables
from interp.whole_files import write_whole
from studies.bookkeeping.progress import phase
from studies.guards.wording import chosen_in_words
from studies.report.results import STUDIES, Results


@dataclass(frozen=True)
class FigureSpec:
    """A figure of the gallery, and the table that it is drawn from."""

    name: str
    """Name of its files."""
    title: str
    table: str
    """Name of a table in `studies.report.results.STUDIES`."""
    draw: Callable[[pd.DataFrame, Results], Figure]
    is_about_guard: bool = False
    """True if the caption has to name the guard in full."""


@dataclass(frozen=True)
class DrawnFigure:
    """A figure that was drawn."""

    name: str
    title: str
    table: str
    figure: Figure

    @property
    def caption(self) -> str:
        """Caption with sample size and intervals; also the text for readers who can't see the figure."""
        return figures.caption(self.figure)


@dataclass(frozen=True)
class OmittedFigure:
    """A figure, or a table for papers, that the results do not allow."""

    name: str
    title: str
    table: str
    reason: str


FIGURES: tuple[FigureSpec, ...] = (
    FigureSpec("hidden_states", "Hidden states", "points", lambda t, r: figures.hidden_states(t)),
    FigureSpec("probe_auroc", "Separability by layer", "separability", lambda t, r: figures.probe_auroc(t)),
    FigureSpec("degradation", "Separability lost to a picture", "separability", lambda t, r: figures.degradation(t)),
    FigureSpec("separation", "Order, distance, border and gap", "separability", lambda t, r: figures.separation(t)),
    FigureSpec("transfer", "Probes across modalities", "separability", lambda t, r: figures.transfer(t, _layer(t, r))),
    FigureSpec(
        "coordinates", "The safety coordinate", "points", lambda t, r: figures.coordinate_ridges(t, _layer(t, r))
    ),
    FigureSpec("directions", "The safety direction", "readings", lambda t, r: figures.directions(t)),
    FigureSpec("refusal_lens", "Where refusal builds up", "signal_path", lambda t, r: figures.refusal_lens(t)),
    FigureSpec(
        "attribution", "Heads and MLPs that write the signal", "signal_path", lambda t, r: figures.attribution(t)
    ),
    FigureSpec(
        "patching_map", "Where a picture suppresses the signal", "signal_path", lambda t, r: figures.patching_map(t)
    ),
    FigureSpec(
        "layer_sweep",
        "The guard at each layer",
        "layer_sweep",
        lambda t, r: figures.layer_sweep(t, chosen_in_words(t)),
    ),
    FigureSpec("pareto", "Every configuration", "layer_sweep", lambda t, r: figures.pareto(t, chosen_in_words(t))),
    FigureSpec(
        "random_directions",
        "The guard among random directions",
        "random_directions",
        lambda t, r: figures.random_directions(t),
        True,
    ),
    FigureSpec(
        "layer_selection", "Rules that choose a layer", "layer_selection", lambda t, r: figures.layer_selection(t)
    ),
    FigureSpec("readings", "Every reading of the method", "readings", lambda t, r: figures.readings(t), True),
    FigureSpec("gate_roc", "The gate as a classifier", "changes", lambda t, r: figures.gate_roc(t), True),
    FigureSpec("what_changed", "What the guard changed", "changes", lambda t, r: figures.what_changed(t), True),
    FigureSpec("defence", "Attack success", "defence", lambda t, r: figures.attack_success_map(t), True),
    FigureSpec(
        "safety_tradeoff", "Safety against over-refusal", "defence", lambda t, r: figures.safety_tradeoff(t), True
    ),
    FigureSpec("adaptive", "Attack success against queries", "adaptive", lambda t, r: figures.attack_curves(t), True),
    FigureSpec("stress", "Other ways of answering", "stress", lambda t, r: figures.stress_map(t), True),
    FigureSpec("detection_auroc", "Detectors", "detection", lambda t, r: figures.detection_auroc(t)),
    FigureSpec("detection_matrix", "Detectors elsewhere", "detection", lambda t, r: figures.detection_matrix(t)),
    FigureSpec("judge_agreement", "Agreement of the judges", "judges", lambda t, r: figures.judge_agreement(t)),
    FigureSpec("targets", "Published numbers and ours", "targets", lambda t, r: figures.targets(t)),
    FigureSpec("bench", "Speed", "bench", lambda t, r: figures.bench_ratios(t)),
)
"""Figures in the order of the argument."""


def draw_figures(results: Results) -> Iterator[DrawnFigure | OmittedFigure]:
    """Draw each figure of `FIGURES`; one that can't be drawn is omitted with the reason, and the others are not."""
    for spec in FIGURES:
        names = (spec.name, spec.title, spec.table)
        if spec.table not in results:
            yield OmittedFigure(*names, _missing(spec.table))
            continue
        try:
            figure = spec.draw(results[spec.table], results)
            if spec.is_about_guard and results.guard:
                figures.style.add_caption(figure, f"{figures.caption(figure)} The guard: {results.guard}.")
            yield DrawnFigure(*names, figure)
        except (ValueError, LookupError) as error:
            yield OmittedFigure(*names, str(error))


PAPER_TABLES: dict[str, tuple[str, str, Callable[[pd.DataFrame], pd.DataFrame]]] = {
    "claims": ("claims", "Claims of the paper, and the verdicts.", tables.verdicts),
    "auroc": ("separability", "AUROC along the safety direction, with 95 % intervals.", tables.auroc_by_layer),
    "selection_rules": (
        "layer_selection",
        "What the guard does on the reported split at the layer that each rule picks, means over modalities.",
        tables.selection_rules,
    ),
    "defences": (
        "defence",
        "Attack success/over-refusal in per cent; bold: the best of those that are no bounds (†), in each setting.",
        tables.defence_summary,
    ),
    "defences_in_full": (
        "defence",
        "Attack success and over-refusal, with 95 % Wilson intervals.",
        tables.defence_rates,
    ),
    "readings": ("readings", "All readings of the method on validation, with 95 % intervals.", tables.readings),
    "costs": (
        "defence",
        "What an answer costs under each defence: means over prompts that are answered one by one.",
        tables.defence_costs,
    ),
    "judges": ("judges", "Agreement of judges: Cohen's kappa with 95 % intervals.", tables.kappas),
}
"""Tables for papers, by the name of their files: the tidy table, a caption, and the function that makes it readable."""


def save_figures(
    figures_or_reasons: Iterable[DrawnFigure | OmittedFigure], out: Path
) -> tuple[list[Path], list[OmittedFigure]]:
    """Save each figure as PDF and PNG, and all captions in `captions.md`.

    Args:
        figures_or_reasons: from `draw_figures`.
        out: an existing folder.

    Returns:
        The files that were written, and the figures that were omitted.
    """
    files, omitted, captions = [], [], []
    with phase("figures", len(FIGURES)) as report:
        for entry in figures_or_reasons:
            if isinstance(entry, OmittedFigure):
                omitted.append(entry)
            else:
                files += figures.save(entry.figure, out, entry.name)
                captions.append(f"## {entry.title}\n\n`{entry.name}.pdf`, `{entry.name}.png`\n\n{entry.caption}\n")
            report(1, note=entry.name)
    path = out / "captions.md"
    write_whole(path, "\n".join(captions))
    return [*files, path], omitted


def save_tables(results: Results, out: Path) -> tuple[list[Path], list[OmittedFigure]]:
    """Save `PAPER_TABLES` as LaTeX and Markdown.

    Args:
        results: the tidy tables.
        out: an existing folder.

    Returns:
        The files that were written, and the tables that were omitted.
    """
    files, omitted = [], []
    for name, (source, caption, readable) in PAPER_TABLES.items():
        if source not in results:
            omitted.append(OmittedFigure(name, caption, source, _missing(source)))
            continue
        try:
            table = readable(results[source])
        except (ValueError, LookupError) as error:
            omitted.append(OmittedFigure(name, caption, source, str(error)))
            continue
        caption = f"{caption} {_about(results, source)}"
        texts = {"tex": tables.to_latex(table, caption, f"tab:{name}"), "md": tables.to_markdown(table)}
        for suffix, text in texts.items():
            files.append(out / f"{name}.{suffix}")
            write_whole(files[-1], text)
    return files, omitted


def _about(results: Results, source: str) -> str:
    """Return model, scale and deciding judge of a table, for its caption."""
    table = results[source]
    scales = {config["scale"] for config in results.configs.values() if config.get("scale")}
    judges = table.judge.dropna() if "judge" in table else []
    parts = [f"Model: {results.model}"]
    parts += [f"scale: {', '.join(sorted(scales))}"] if scales else []
    parts += [f"judge: {judges.iloc[0]}"] if len(judges) else []
    return "; ".join(parts) + "."


def _missing(table: str) -> str:
    return f"{table}.csv is missing; run `{STUDIES[table]}`"


def _layer(table: pd.DataFrame, results: Results) -> int:
    """Return the sweep's choice; if nothing was swept, or other layers were probed, the last layer of the table."""
    return results.layer if results.layer in set(table.layer) else int(table.layer.max())
