"""Tables for papers, from the frames that the figures are drawn from: LaTeX (booktabs) and Markdown.

Each function takes a tidy table and gives one to read: strings, a value with its interval in a cell. `to_latex` and
`to_markdown` write either kind.
"""

import pandas as pd

from figures.style import filled, first_judge, present, readable, require_columns

RATES = {"asr": "attack success", "over_refusal_rate": "over-refusal"}
PLACE = ["setting", "modality"]
MOST_LETTERS, MOST_ROWS = 40, 40
"""Of a cell that stays on one line; of a table that stays on one page."""


def to_latex(table: pd.DataFrame, caption: str, label: str) -> str:
    r"""A `table` environment with booktabs' rules; what LaTeX takes for markup is escaped.

    Needs `\usepackage{booktabs}`, and `\usepackage{longtable}` for more rows than fit on a page.
    """
    escaped = table.rename(columns=_escaped).map(_escaped)
    widest = {name: max(len(str(name)), int(table[name].astype(str).str.len().max() or 0)) for name in table}
    n_texts = sum(width > MOST_LETTERS for width in widest.values())
    # Sentences are broken into lines; what is left of the page is shared by them.
    text = f"p{{{0.8 / max(1, n_texts):.2f}\\linewidth}}"
    columns = "".join(text if width > MOST_LETTERS else "l" for width in widest.values())
    how = {"column_format": columns, "caption": _escaped(caption), "label": label}
    return escaped.to_latex(index=False, escape=False, longtable=len(table) > MOST_ROWS, **how)


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
    """A pipe table; pipes inside cells are escaped."""
    shown = table.rename(columns=str).map(lambda cell: str(cell).replace("|", "\\|"))
    return shown.to_markdown(index=False, disable_numparse=True) + "\n"


def _cell(row) -> str:
    if pd.isna(row.ci_low):
        return f"{row.value:z.2f}"
    return f"{row.value:z.2f} [{row.ci_low:z.2f}, {row.ci_high:z.2f}]"


def defence_rates(table: pd.DataFrame) -> pd.DataFrame:
    """Attack success and over-refusal of each defence: a row a setting, modality and defence.

    Args:
        table: of the defence study.
    """
    columns = [
        *PLACE,
        "defence",
        "reference",
        "standing",
        "judge",
        "category",
        "metric",
        "value",
        "ci_low",
        "ci_high",
        "n",
    ]
    table = table.reindex(columns=list(dict.fromkeys([*table.columns, "category", "reference"])))
    require_columns(table, columns, "defence_rates")
    rows = first_judge(table)
    rows = rows[rows.metric.isin(RATES) & rows.category.isna()]
    filled(rows, ["value"], "defence_rates of rates")
    rows = rows.assign(cell=rows.apply(_cell, axis=1), metric=rows.metric.map(RATES))
    keys = ["setting", "modality", "defence", "reference", "standing"]
    keys = [*(["dataset"] if "dataset" in rows and rows.dataset.nunique() > 1 else []), *keys]
    rows = rows.assign(**{key: rows[key].astype(object).where(rows[key].notna(), "") for key in keys})
    wide = rows.pivot_table("cell", keys, "metric", aggfunc="first", sort=False, fill_value="")
    wide = wide.reindex(columns=[name for name in RATES.values() if name in wide])
    return _for_people(wide.assign(n=rows.groupby(keys, sort=False).n.max().astype(int)).reset_index(), keys)


def auroc_by_layer(table: pd.DataFrame) -> pd.DataFrame:
    """AUROC along the SSD: a row a layer, a column a modality.

    Args:
        table: of the separability study.
    """
    require_columns(
        table, ["probe", "modality", "layer", "control", "metric", "value", "ci_low", "ci_high"], "auroc_by_layer"
    )
    rows = table[(table.probe == "ssd") & (table.metric == "auroc") & table.control.isna()]
    if "split" in rows:
        rows = rows[~rows.split.isin(["train", "anchors"])]
    filled(rows, ["value", "layer"], "auroc_by_layer of the SSD")
    first = rows.iloc[0]
    same = [name for name in ("site", "token") if name in rows]
    for name in same:
        rows = rows[rows[name] == first[name]]
    rows = rows.assign(cell=rows.apply(_cell, axis=1), layer=rows.layer.astype(int))
    wide = rows.pivot_table("cell", "layer", "modality", aggfunc="first", fill_value="")
    return wide[present(rows.modality)].reset_index().rename(columns=readable).rename_axis(columns=None)


def selection_rules(table: pd.DataFrame) -> pd.DataFrame:
    """What each rule picks, and what the guard is worth there on the reported split: means over modalities.

    Args:
        table: of `studies.layer_selection`.
    """
    require_columns(
        table, ["setting", "selection_rule", "layer", "modality", "metric", "judge", "value"], "selection_rules"
    )
    rows = first_judge(table[table.setting == "pick"])
    filled(rows, ["value"], "selection_rules of picks")
    names = {"refusal_rate": "harmful refused", "over_refusal_rate": "harmless refused", "kl": "KL, nats"}
    rows = rows[rows.metric.isin(names)]
    wide = rows.pivot_table("value", "selection_rule", "metric", aggfunc="mean")[list(names)].rename(columns=names)
    wide = wide.sort_values("harmful refused", ascending=False)
    shown = wide.map("{:.3f}".format)
    shown = shown.rename(index={"best_on_test": "best on test (bound)"})
    shown.insert(0, "layer", [_picked(rows[rows.selection_rule == name].iloc[0]) for name in wide.index])
    return _for_people(shown.reset_index(), ["selection_rule"])


def _picked(row: pd.Series) -> str:
    if pd.isna(row.layer):
        return "several"
    last = row.get("last_layer")
    return f"{row.layer:.0f}" if pd.isna(last) else f"{row.layer:.0f} to {last:.0f}"


def kappas(table: pd.DataFrame) -> pd.DataFrame:
    """Agreement of each two judges beyond chance.

    Args:
        table: of `studies.judge_agreement`, `vlm-guard judges` or `vlm-guard defend`.
    """
    require_columns(table, ["setting", "judge", "judge_2", "metric", "value", "ci_low", "ci_high", "n"], "kappas")
    rows = filled(table[table.metric == "kappa"], ["value"], "kappas of kappa")
    rows = rows.assign(kappa=rows.apply(_cell, axis=1), n=rows.n.astype(int).astype(str))
    shown = rows[["setting", "judge", "judge_2", "kappa", "n"]].rename(columns={"judge_2": "other judge"})
    return shown.reset_index(drop=True)


def verdicts(table: pd.DataFrame) -> pd.DataFrame:
    """The paper's claims: their number, ours, the verdict.

    Args:
        table: `claims.csv`.
    """
    return filled(table, ["claim", "theirs", "ours", "verdict"], "verdicts")[["claim", "theirs", "ours", "verdict"]]


def _for_people(table: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Names of tables in words."""
    worded = {key: table[key].astype(str).map(readable) for key in keys}
    return table.assign(**worded).rename(columns=readable).rename_axis(columns=None)
