"""Tables for papers, made from the same data as the figures, and written as LaTeX (booktabs) and Markdown.

Each function turns a tidy table into a readable one: cells are strings, with a value and its interval in one cell.
`to_latex` and `to_markdown` write either kind.
"""

import pandas as pd

from figures.style import first_judge, modalities_in, readable, require_columns, require_values

__all__ = [
    "auroc_by_layer",
    "defence_costs",
    "defence_rates",
    "for_notebook",
    "kappas",
    "selection_rules",
    "to_latex",
    "to_markdown",
    "verdicts",
]

RATES = {"asr": "attack success", "over_refusal_rate": "over-refusal"}
RANKS = {"rank": "rank", "over_refusal_rank": "over-refusal rank"}
COSTS = {"tokens": "tokens", "forward_passes": "passes", "seconds": "seconds"}
PLACE = ["setting", "modality"]
MOST_LETTERS, MOST_ROWS = 40, 40
"""Letters of a cell that stays on one line; rows of a table that stays on one page."""


def to_latex(table: pd.DataFrame, caption: str, label: str) -> str:
    r"""Write a `table` environment with the rules of booktabs; LaTeX markup in cells is escaped.

    It needs `\usepackage{booktabs}`, and `\usepackage{longtable}` for tables longer than a page.
    """
    escaped = table.rename(columns=_escaped).map(_escaped)
    widths = {name: max(len(str(name)), int(table[name].astype(str).str.len().max() or 0)) for name in table}
    n_wide = sum(width > MOST_LETTERS for width in widths.values())
    # Columns of sentences break into lines and share the width of the page.
    wide = f"p{{{0.8 / max(1, n_wide):.2f}\\linewidth}}"
    column_format = "".join(wide if width > MOST_LETTERS else "l" for width in widths.values())
    options = {"column_format": column_format, "caption": _escaped(caption), "label": label}
    return escaped.to_latex(index=False, escape=False, longtable=len(table) > MOST_ROWS, **options)


MARKUP = {
    "\\": r"\textbackslash{}",
    **{mark: f"\\{mark}" for mark in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "‖": r"$\|$",
    "Δ": r"$\Delta$",
    "−": "$-$",
}


def _escaped(text) -> str:
    return str(text).translate(str.maketrans(MARKUP))


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
    cells = cells.rename(index={"best_on_test": "best on test (bound)"})
    cells.insert(0, "layer", [_layers(rows[rows.selection_rule == name].iloc[0]) for name in wide.index])
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
    rows = rows.assign(kappa=rows.apply(_cell, axis=1), n=rows.n.astype(int).astype(str))
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
