"""Tables for papers, made from the same data as the figures, and written as LaTeX (booktabs) and Markdown.

Each function turns a tidy table into a readable one: cells are strings, with a value and its interval in one cell, and
`**` around what is bold. `to_latex` and `to_markdown` write either kind.
"""

import re

import pandas as pd

from figures.defence import ARMS, BOUNDS, defence_arms, with_places
from figures.readings import FACTORS, on_validation, part_lines, value_and_interval
from figures.style import first_judge, modalities_in, readable, require_columns, require_values
from figures.words import in_words

__all__ = [
    "auroc_by_layer",
    "defence_costs",
    "defence_rates",
    "defence_summary",
    "for_notebook",
    "kappas",
    "readings",
    "selection_rules",
    "to_latex",
    "to_markdown",
    "verdicts",
]

RATES = {"asr": "attack success", "over_refusal_rate": "over-refusal"}
RANKS = {"rank": "rank", "over_refusal_rank": "over-refusal rank"}
COSTS = {"tokens": "tokens", "forward_passes": "passes", "seconds": "seconds"}
READINGS = {
    "refusal_score_gain": "gain, nats",
    "refusal_rate": "harmful refused",
    "answered": "harmless answered well",
    "kl": "KL, nats",
}
"""Measures of the table of readings."""
PLACE = ["setting", "modality"]
MOST_LETTERS, MOST_ROWS = 40, 40
"""Letters of a cell that stays on one line; rows of a table that stays on one page."""
MOST_NARROW = 130
"""Letters of a row that fits one of two columns in small type."""
MOST_HEAD = 5
"""Letters of the head of a narrow column that is not turned."""
SMALL = r"\scriptsize\setlength{\tabcolsep}{2.5pt}"


def to_latex(table: pd.DataFrame, caption: str, label: str) -> str:
    r"""Write a `table` environment with the rules of booktabs; LaTeX markup in cells is escaped.

    It needs `\usepackage{booktabs}`, for tables longer than a page `\usepackage{longtable}`, and for tables of short
    cells, which fit one of two columns, `\usepackage{graphicx}`.
    """
    widths = {name: max(len(str(name)), int(table[name].astype(str).str.len().max() or 0)) for name in table}
    n_wide = sum(width > MOST_LETTERS for width in widths.values())
    # Columns of sentences break into lines and share the width of the page.
    wide = f"p{{{0.8 / max(1, n_wide):.2f}\\linewidth}}"
    column_format = "".join(wide if width > MOST_LETTERS else "l" for width in widths.values())
    is_narrow = len(table) <= MOST_ROWS and not n_wide and sum(widths.values()) <= MOST_NARROW
    heads = [_upright(str(name)) if is_narrow and name != table.columns[0] else _escaped(name) for name in table]
    escaped = table.set_axis(heads, axis=1).map(_escaped)
    options = {"column_format": column_format, "caption": _escaped(caption), "label": label}
    text = escaped.to_latex(index=False, escape=False, longtable=len(table) > MOST_ROWS, **options)
    return text.replace("\\begin{tabular}", f"{SMALL}\n\\begin{{tabular}}", 1) if is_narrow else text


MARKUP = {
    "\\": r"\textbackslash{}",
    **{mark: f"\\{mark}" for mark in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "‖": r"$\|$",
    "Δ": r"$\Delta$",
    "−": "$-$",
}


def _upright(name: str) -> str:
    """Turn the head of a narrow column, which is longer than its cells."""
    return _escaped(name) if len(name) <= MOST_HEAD else rf"\rotatebox{{90}}{{{_escaped(name)}}}"


BOLD = re.compile(r"\*\*(.+?)\*\*")


def _escaped(text) -> str:
    return BOLD.sub(r"\\textbf{\1}", str(text).translate(str.maketrans(MARKUP)))


def to_markdown(table: pd.DataFrame) -> str:
    """Write a pipe table; pipes inside cells are escaped."""
    escaped = table.rename(columns=str).map(lambda cell: str(cell).replace("|", "\\|"))
    return escaped.to_markdown(index=False, disable_numparse=True) + "\n"


def _cell(row) -> str:
    if pd.isna(row.ci_low):
        return f"{row.value:z.2f}"
    return f"{row.value:z.2f} [{row.ci_low:z.2f}, {row.ci_high:z.2f}]"


def defence_rates(table: pd.DataFrame) -> pd.DataFrame:
    """Tabulate attack success and over-refusal, with a row for each setting, modality and defence.

    Args:
        table: written by `studies.defence_comparison` or `studies.benchmarks`.

    Returns:
        A readable table, with the rank in each rate and the tuning of each defence if the table has them.
    """
    needed = [*PLACE, "defence", "standing", "judge", "metric", "value", "ci_low", "ci_high", "n"]
    require_columns(table, needed, "defence_rates")
    table = table.reindex(columns=list(dict.fromkeys([*table.columns, "category", "reference"])))
    rows = first_judge(table)
    rows = rows[rows.metric.isin((*RATES, *RANKS)) & rows.category.isna()]
    require_values(rows[rows.metric.isin(RATES)], ["value"], "defence_rates of rates")
    is_rate = rows.metric.isin(RATES)
    cells = rows.apply(_cell, axis=1).where(is_rate, rows.value.map("{:.0f}".format))
    rows = rows.assign(cell=cells, metric=rows.metric.replace(RATES | RANKS))
    keys = _defence_keys(rows, "setting", "modality", "defence", "reference", "standing", "tuning")
    rows = rows.assign(**{key: rows[key].astype(object).where(rows[key].notna(), "") for key in keys})
    wide = rows.pivot_table("cell", keys, "metric", aggfunc="first", sort=False, fill_value="")
    n = rows[is_rate].groupby(keys, sort=False).n.max().astype(int)
    wide = wide.reindex(columns=[name for name in (RATES | RANKS).values() if name in wide])
    return _readable_table(wide.assign(n=n).reset_index(), keys)


def defence_summary(table: pd.DataFrame) -> pd.DataFrame:
    """Tabulate attack success/over-refusal in per cent, with a row for each defence and a column for each setting.

    The best of the defences that are no bounds is bold in each column, attack success and over-refusal apart. It fits
    one column of two; intervals are in `defence_rates`.

    Args:
        table: written by `studies.defence_comparison` or `studies.benchmarks`.

    Returns:
        A readable table.
    """
    rows = with_places(defence_arms(table, "defence_summary")[0])
    rows = rows.assign(
        place=rows.place.str.replace(r"(blank|noise|scene) picture", r"\1", regex=True),
        percent=(100 * rows.value).round(),
    )
    arms, places = [arm for arm in ARMS if arm in set(rows.arm)], list(dict.fromkeys(rows.place))
    cells = pd.DataFrame("", index=arms, columns=places)
    for place in places:
        own = rows[rows.place == place].pivot(index="arm", columns="metric", values="percent").reindex(arms)
        is_best = own == own[~own.index.isin(BOUNDS)].min()
        for arm, values in own.iterrows():
            words = [
                "–" if pd.isna(values.get(rate)) else f"**{values[rate]:.0f}**" if bold else f"{values[rate]:.0f}"
                for rate in RATES
                for bold in [arm not in BOUNDS and bool(is_best.loc[arm].get(rate, False))]
            ]
            cells.loc[arm, place] = "" if words == ["–", "–"] else "/".join(words)
    cells.insert(0, "defence", [in_words(arm, "defence") + " †" * (arm in BOUNDS) for arm in arms])
    return cells.reset_index(drop=True)


def readings(table: pd.DataFrame) -> pd.DataFrame:
    """Tabulate all readings of the method on validation, for an appendix.

    Args:
        table: written by `studies.readings`.

    Returns:
        A readable table, with a row for each configuration and modality.
    """
    require_columns(table, ["setting", "split", "modality", "metric", "value"], "readings")
    table = on_validation(table)
    rows = []
    for part in FACTORS:
        for label, own in part_lines(part, table[table.setting == part]):
            for (modality, control), seeds in own.groupby(["modality", own.control.fillna("")], sort=False):
                flipped = ", sign flipped" * (control == "sign_flipped")
                cells = {
                    "factor": readable(part),
                    "reading": label + flipped,
                    "modality": in_words(modality, "modality"),
                }
                rows.append(
                    cells | {name: _bracketed(*value_and_interval(seeds, key)) for key, name in READINGS.items()}
                )
    if not rows:
        raise ValueError("readings found none on validation; run its study first")
    return pd.DataFrame(rows)


def _bracketed(value: float, low: float, high: float) -> str:
    if pd.isna(value):
        return "–"
    return f"{value:z.2f}" if pd.isna(low) or low == high else f"{value:z.2f} [{low:z.2f}, {high:z.2f}]"


def defence_costs(table: pd.DataFrame) -> pd.DataFrame:
    """Tabulate what an answer costs under each defence: tokens, forward passes and seconds, with intervals.

    Args:
        table: written by `studies.defence_comparison`.

    Returns:
        A readable table of means over prompts.
    """
    require_columns(table, ["setting", "modality", "defence", "metric", "value", "ci_low", "ci_high"], "defence_costs")
    rows = require_values(table[table.metric.isin(COSTS)], ["value"], "defence_costs of costs")
    rows = rows.assign(cell=rows.apply(_cell, axis=1), metric=rows.metric.replace(COSTS))
    keys = _defence_keys(rows, "modality", "defence", "reference")
    rows = rows.assign(**{key: rows[key].astype(object).where(rows[key].notna(), "") for key in keys})
    wide = rows.pivot_table("cell", keys, "metric", aggfunc="first", sort=False)[list(COSTS.values())]
    return _readable_table(wide.assign(n=rows.groupby(keys, sort=False).n.max().astype(int)).reset_index(), keys)


def _defence_keys(rows: pd.DataFrame, *names: str) -> list[str]:
    """Return the columns that identify a row of a table of defences; the dataset only if there are several."""
    several = ["dataset"] if "dataset" in rows and rows.dataset.nunique() > 1 else []
    return [*several, *(name for name in names if name in rows)]


def auroc_by_layer(table: pd.DataFrame) -> pd.DataFrame:
    """Tabulate AUROC along the SSD, with a row for each layer and a column for each modality.

    Args:
        table: written by `studies.separability`.

    Returns:
        A readable table.
    """
    require_columns(
        table, ["probe", "modality", "layer", "control", "metric", "value", "ci_low", "ci_high"], "auroc_by_layer"
    )
    rows = table[(table.probe == "ssd") & (table.metric == "auroc") & table.control.isna()]
    if "split" in rows:
        rows = rows[~rows.split.isin(["train", "anchors"])]
    require_values(rows, ["value", "layer"], "auroc_by_layer of the SSD")
    first = rows.iloc[0]
    for name in (name for name in ("site", "token") if name in rows):
        rows = rows[rows[name] == first[name]]
    rows = rows.assign(cell=rows.apply(_cell, axis=1), layer=rows.layer.astype(int))
    wide = rows.pivot_table("cell", "layer", "modality", aggfunc="first", fill_value="")
    return wide[modalities_in(rows.modality)].reset_index().rename(columns=readable).rename_axis(columns=None)


def selection_rules(table: pd.DataFrame) -> pd.DataFrame:
    """Tabulate the layer that each rule picks and what the guard does there on the reported split.

    Args:
        table: written by `studies.layer_selection`.

    Returns:
        A readable table of means over modalities, from the best rule to the worst.
    """
    require_columns(
        table, ["setting", "selection_rule", "layer", "modality", "metric", "judge", "value"], "selection_rules"
    )
    rows = first_judge(table[table.setting == "pick"])
    require_values(rows, ["value"], "selection_rules of picks")
    names = {"refusal_rate": "harmful refused", "over_refusal_rate": "harmless refused", "kl": "KL, nats"}
    rows = rows[rows.metric.isin(names)]
    wide = rows.pivot_table("value", "selection_rule", "metric", aggfunc="mean")[list(names)].rename(columns=names)
    wide = wide.sort_values("harmful refused", ascending=False)
    cells = wide.map("{:.3f}".format)
    cells.insert(0, "layer", [_layers(rows[rows.selection_rule == name].iloc[0]) for name in wide.index])
    cells = cells.rename(index=lambda rule: in_words(rule, "selection_rule"))
    return _readable_table(cells.reset_index(), ["selection_rule"])


def _layers(row: pd.Series) -> str:
    if pd.isna(row.layer):
        return "several"
    last = row.get("last_layer")
    return f"{row.layer:.0f}" if pd.isna(last) else f"{row.layer:.0f} to {last:.0f}"


def kappas(table: pd.DataFrame) -> pd.DataFrame:
    """Tabulate the agreement of each pair of judges, corrected for chance.

    Args:
        table: written by `studies.judge_agreement`, `vlm-guard judges` or `vlm-guard defend`.

    Returns:
        A readable table.
    """
    require_columns(table, ["setting", "judge", "judge_2", "metric", "value", "ci_low", "ci_high", "n"], "kappas")
    rows = require_values(table[table.metric == "kappa"], ["value"], "kappas of kappa")
    names = {column: [in_words(judge, "judge") for judge in rows[column]] for column in ("judge", "judge_2")}
    rows = rows.assign(kappa=rows.apply(_cell, axis=1), n=rows.n.astype(int).astype(str), **names)
    columns = ["setting", "judge", "judge_2", "kappa", "n"]
    return rows[columns].rename(columns={"judge_2": "other judge"}).reset_index(drop=True)


def verdicts(table: pd.DataFrame) -> pd.DataFrame:
    """Tabulate the paper's claims with its numbers, ours and the verdict.

    Args:
        table: `claims.csv`.

    Returns:
        A readable table.
    """
    return require_values(table, ["claim", "theirs", "ours", "verdict"], "verdicts")[
        ["claim", "theirs", "ours", "verdict"]
    ]


def _readable_table(table: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Make column names and the values of the columns `keys` readable."""
    values = {key: table[key].astype(str).map(readable) for key in keys}
    return table.assign(**values).rename(columns=readable).rename_axis(columns=None)


class MarkdownTable(str):
    """A pipe table, which notebooks show as a table."""

    def _repr_markdown_(self) -> str:
        return str(self)


def for_notebook(table: pd.DataFrame) -> MarkdownTable:
    """Lay out rows of any table for readers: two decimals, each interval next to its value, no row numbers.

    Args:
        table: rows; `value` with `ci_low` and `ci_high` becomes one column. Columns without a value are left out.
    """
    if {"value", "ci_low", "ci_high"} <= set(table):
        cells = [_cell(row) for row in table.itertuples()]
        table = table.assign(value=cells).drop(columns=["ci_low", "ci_high"])
    shown = {readable(str(name)): _rounded(table[name]) for name in table if table[name].notna().any()}
    return MarkdownTable(to_markdown(pd.DataFrame(shown)))


def _rounded(values: pd.Series) -> list[str]:
    """Write numbers with two decimals, or none where a column holds whole ones; empty cells as nothing."""
    is_whole = pd.api.types.is_float_dtype(values) and (values.dropna() % 1 == 0).all()
    form = "{:.0f}" if is_whole else "{:z.2f}"
    cells = [form.format(value) if isinstance(value, float) else str(value) for value in values]
    return ["" if is_empty else cell for cell, is_empty in zip(cells, values.isna(), strict=True)]
