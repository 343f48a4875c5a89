"""Numbers in the documentation, from the committed tables: `python docs/measured.py` writes them, a test compares.

A measured number is followed by a comment that names where it comes from, an entry of `measured.toml`:

    0.35 [0.24, 0.48]<!--asr blank-->       35 % [24, 48]<!--asr blank-->

An entry names a table of `results/reference/quick` and the values of some of its columns, which only one row may have;
with `results = "full"` or `"seeds"` it is a table of another folder.
What is written keeps its form: as many digits as are there, with an interval if there is one. `layer = "chosen"` is the
chosen guard's. Between `<!--claims-->` and `<!--end of claims-->` is the table of all claims on all models, between
those of `contradictions` what the models disagree about, between those of `guard` the chosen guard's full name, and
between those of `seeds` the table of the recipe's seeds.
"""

import math
import re
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from textwrap import fill

import pandas as pd

from studies import claims_by_model
from studies.bookkeeping.verdict_words import NOT_SHOWN
from studies.claims_by_model import SHOWN
from studies.guards.sweep_result import SweepChoice
from studies.guards.wording import chosen_in_words, guard_in_words

ROOT = Path(__file__).parents[1]
REFERENCE = Path("results/reference")
DEFAULT = "quick"
"""Folder in `REFERENCE` with the tables of entries that name no other."""
MODELS = {"the built-in model": DEFAULT, "a real aligned LLM (`llava-qwen-0.5b`)": "llava-qwen-0.5b"}
"""Folders of the models that claims are compared on, if they have results."""
PAGES = ("README.md", "docs/results.md", "docs/explanation/method.md", "docs/explanation/separability.md")
PAGES += ("docs/explanation/controls.md", "docs/explanation/real_llm.md", "docs/how-to/new_estimator.md")
PAGES += (
    "docs/how-to/attacks.md",
    "docs/how-to/stress.md",
    "docs/how-to/equal_strength.md",
    "docs/how-to/detectors.md",
    "docs/how-to/guards.md",
    "docs/how-to/hardware.md",
    "docs/speed.md",
)
"""Pages on which every number with decimals is measured, and so has a source."""
NUMBER = r"[−-]?\d+(?:\.\d+)?"
SOURCED = re.compile(
    rf"(?P<value>{NUMBER})(?P<unit> %)?(?P<interval> \[(?P<low>{NUMBER}), (?P<high>{NUMBER})\])?"
    r"<!--(?P<entry>[^<>]+)-->"
)
UNSOURCED = re.compile(rf"(?<![\w./:\[−-]){NUMBER}")
BLOCK = re.compile(r"(<!--(claims|contradictions|guard|seeds)-->\n).*?(<!--end of \2-->)", re.DOTALL)
CODE = re.compile(r"```.*?```|`[^`]*`|\]\([^)]*\)|<!--.*?-->", re.DOTALL)
NOT_RUN = "not measured"
"""Cell of a claim of a setting that was not run."""
NOT_MEASURED = "not measured"
"""Entry whose `literals` may have decimals without a source, such as versions."""
SETTINGS = ("results", "table", "column")
"""Keys of an entry that are not columns of the table: `column` is read instead of `value`."""


GUARDED, WITH_BLANK = {"defence": "guard"}, {"modality": "blank"}
PLAIN, JAILBREAK = ({"setting": setting, **WITH_BLANK} for setting in ("plain", "jailbreak"))
INSIDE = {"setting": "multimodal", "modality": "typographic"}
ASR, OVER_REFUSAL = {"metric": "asr"}, {"metric": "over_refusal_rate"}
OWN, READ = {"reference": "prompt_text"}, {"reference": "transcription"}
GAIN = {"setting": "compared", "split": "test", **WITH_BLANK, "metric": "refusal_score_gain", "control": ""}
SCORE = {"setting": "chosen", "split": "test", "modality": "scene", "metric": "score_auroc"}
SEED_ROWS = (
    ("attack success, blank picture", ASR | PLAIN | {"defence": "unguarded"}),
    ("the same with the guard", ASR | PLAIN | GUARDED),
    ("attack success, jailbreak with a blank picture", ASR | JAILBREAK | {"defence": "unguarded"}),
    ("the same with the guard", ASR | JAILBREAK | GUARDED),
    ("the same, refused wherever the gate opens", ASR | JAILBREAK | {"defence": "gate_refuser"}),
    ("attack success, request in the picture", ASR | INSIDE | {"defence": "unguarded"}),
    ("the same with the guard, transcription", ASR | INSIDE | GUARDED | READ),
    ("the same with the guard, the paper's own reference", ASR | INSIDE | GUARDED | OWN),
    ("its over-refusal there", OVER_REFUSAL | INSIDE | GUARDED | OWN),
    ("change of the refusal score, blank picture, `ablate`", GAIN | {"rule": "ablate"}),
    ("the same, `substitute` (strength 1, gate sign)", GAIN | {"rule": "substitute", "selection_rule": ""}),
    ("AUROC of the refusal score against the exact judge, scene", SCORE | {"defence": "unguarded"}),
    ("the same with the guard", SCORE | GUARDED),
)
"""Rows of the table of seeds: what they say, and the columns of the row in `seeds.csv`."""


class NumberError(ValueError):
    """An entry that names no row or several, or a number without a source."""


def text_of(page: str) -> str:
    """Return the source of a page."""
    return (ROOT / page).read_text(encoding="utf-8")


@cache
def entries() -> dict[str, dict]:
    """Return the entries of `measured.toml` by name."""
    return tomllib.loads((ROOT / "docs" / "measured.toml").read_text(encoding="utf-8"))


@cache
def _table(name: str, results: str = DEFAULT) -> pd.DataFrame:
    return pd.read_csv(ROOT / REFERENCE / results / f"{name}.csv", low_memory=False)


def row_of(name: str) -> pd.Series:
    """Return the row that an entry names; columns that it gives as "" are empty in that row.

    Raises:
        NumberError: the entry does not exist, or does not name exactly one row.
    """
    if name not in entries():
        raise NumberError(f"{name!r} is not in docs/measured.toml")
    entry = entries()[name]
    results = entry.get("results", DEFAULT)
    rows = _table(entry["table"], results)
    wanted = {column: value for column, value in entry.items() if column not in SETTINGS}
    if wanted.get("layer") == "chosen":
        wanted["layer"] = SweepChoice.read(_table("layer_sweep", results)).layer
    rows = _like(rows, wanted)
    if len(rows) != 1:
        raise NumberError(f"{name!r}: {len(rows)} rows of {results}/{entry['table']}.csv are like this; expected one")
    return rows.iloc[0]


def _like(rows: pd.DataFrame, wanted: Mapping[str, object]) -> pd.DataFrame:
    """Return the rows with these values; "" means empty."""
    for column, value in wanted.items():
        rows = rows[rows[column].isna() if value == "" else rows[column] == value]
    return rows


def written(match: re.Match) -> str:
    """Return a number with its interval and source as it should be, in the form in which it is there."""
    row, scale = row_of(match["entry"]), 100 if match["unit"] else 1
    value = scale * row[entries()[match["entry"]].get("column", "value")]
    text = _formatted(value, match["value"]) + (match["unit"] or "")
    if match["interval"]:
        limits = (_formatted(scale * row[f"ci_{side}"], match[side]) for side in ("low", "high"))
        text += f" [{', '.join(limits)}]"
    return f"{text}<!--{match['entry']}-->"


def _formatted(value: float, like: str) -> str:
    if not math.isfinite(value):
        raise NumberError(f"{value} in place of {like}")
    digits = len(like.partition(".")[2])
    # No minus sign before what is rounded to zero.
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")


def compared() -> dict[str, str]:
    """Return the models of `MODELS` that have results."""
    return {name: folder for name, folder in MODELS.items() if (ROOT / REFERENCE / folder / "claims.csv").is_file()}


def claims() -> str:
    """Return the verdict on each claim on each model, and, folded away, the numbers with what is known of theirs."""
    models = compared()
    tables = [_table("claims", folder).fillna("").set_index("claim") for folder in models.values()]
    verdicts, numbers = [], []
    for claim in dict.fromkeys(claim for table in tables for claim in table.index):
        rows = [table.loc[claim] if claim in table.index else None for table in tables]
        theirs = next(row.theirs for row in rows if row is not None)
        verdicts.append(f"| {claim} | {' | '.join(map(_verdict, rows))} |")
        numbers.append(f"| {claim} | {theirs} | {' | '.join(map(_outcome, rows))} |")
    names = " | ".join(models)
    return "\n".join(
        [f"| claim | {names} |", "|---|" + "---|" * len(models), *verdicts, "", '<details markdown="1">']
        + ["<summary>The numbers behind each verdict</summary>", "", f"| claim | theirs | {names} |"]
        + ["|---|---|" + "---|" * len(models), *numbers, "", "</details>", ""]
    )


def _verdict(row: pd.Series | None) -> str:
    """Return a verdict without the model that it is about, which heads its column."""
    return NOT_RUN if row is None else row.verdict.partition(" on ")[0]


def _outcome(row: pd.Series | None) -> str:
    """Return the cell of a claim on one model; a claim of a setting that was not run has no row."""
    if row is None:
        return NOT_RUN
    return f"**{row.verdict}**<br>{row.ours.replace('; ', '<br>').replace('|', chr(92) + '|')}"


def contradictions() -> str:
    """Return the claims that one model shows and another does not, as a list."""
    folders = {model: ROOT / REFERENCE / folder for model, folder in compared().items()}
    table = claims_by_model.run(folders)
    wide = table.pivot(index="claim", columns="model", values="outcome").reindex(columns=list(folders))
    differing = wide[[{SHOWN, NOT_SHOWN} <= set(row) for row in wide.to_numpy()]]
    lines = [
        f"- {claim}: " + ", ".join(f"**{outcome}** on {model}" for model, outcome in row.items())
        for claim, row in differing.reindex([c for c in table.claim.unique() if c in differing.index]).iterrows()
    ]
    return "\n".join(lines or ["- none"]) + "\n"


def unsourced(page: str) -> list[str]:
    """Return the numbers with decimals that have no source, outside of code, links and comments."""
    text = text_of(page)
    for literal in sorted(entries()[NOT_MEASURED]["literals"], key=len, reverse=True):
        text = text.replace(literal, "")
    text = CODE.sub("", SOURCED.sub("", BLOCK.sub("", text)))
    return [number for number in UNSOURCED.findall(text) if "." in number]


def differing(page: str) -> Iterator[tuple[str, str]]:
    """Yield every number that is not as in the tables: as it is there, and as it should be."""
    for match in SOURCED.finditer(text_of(page)):
        if match[0] != (right := written(match)):
            yield match[0], right
    for match in BLOCK.finditer(text_of(page)):
        if match[0] != (right := _filled(match)):
            yield match[0], right


def guard() -> str:
    """Return the chosen guard's full name, as a paragraph."""
    return fill(f"The guard: {chosen_in_words(_table('layer_sweep'))}.", 120, break_on_hyphens=False) + "\n"


def seeds() -> str:
    """Return the table of the recipe's seeds, with the mean and the range over them."""
    table = _table("seeds", "seeds")
    names = sorted(int(seed) for seed in table.seed.dropna().unique())
    chosen = table[(table.setting == "chosen") & (table.defence == "guard") & table.seed.notna()]
    by_seed = chosen.drop_duplicates("seed").set_index("seed").loc[names]
    columns = ["layer", "last_layer", "layers", "rule", "gate", "strength"]
    # What a guard reads is the same in all of them.
    guards = [
        guard_in_words(row).partition(", reference")[0] for row in by_seed.reindex(columns=columns).to_dict("records")
    ]
    lines = [
        f"| | {' | '.join(f'seed {name}' for name in names)} | mean [lowest, highest] |",
        f"|---|{'---|' * len(names)}---|",
        f"| chosen guard | {' | '.join(guards)} | |",
    ]
    for label, wanted in SEED_ROWS:
        rows = _like(table, wanted)
        own, spread = rows[rows.seed.notna()].set_index("seed").sort_index(), rows[rows.seed.isna()]
        if list(own.index) != names or len(spread) != 1:
            raise NumberError(f"{label!r}: {len(rows)} rows of seeds.csv are like this; expected one per seed, and one")
        mean = spread.iloc[0]
        values = [*own.value, mean.value, mean.ci_low, mean.ci_high]
        *by_name, middle, low, high = (_formatted(value, "0.00") for value in values)
        lines.append(f"| {label} | {' | '.join(by_name)} | {middle} [{low}, {high}] |")
    return "\n".join(lines) + "\n"


BLOCKS = {"claims": claims, "contradictions": contradictions, "guard": guard, "seeds": seeds}


def _filled(match: re.Match) -> str:
    start, name, end = match.groups()
    return f"{start}{BLOCKS[name]()}{end}"


def write() -> None:
    """Bring every page up to date with the tables."""
    for page in PAGES:
        text = BLOCK.sub(_filled, SOURCED.sub(written, text_of(page)))
        (ROOT / page).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write()
