"""The model card of `llava-qwen-0.5b`, from the measurements of its variants and the recipe alone."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from studies import llava_qwen
from studies.bookkeeping.provenance import file_hash
from studies.llava_qwen import base_model
from studies.llava_qwen.evaluation import BASE, TARGETS, Rate

CARD = Path(__file__).with_name("README.md")
MEASUREMENTS = "measurements.json"
MEANINGS = {
    BASE: "the aligned LLM itself, as text",
    "b": "not one weight of the LLM has changed",
    "c1": "its own answers, smallest dose",
    "c2": "its own answers, middle dose",
    "c3": "its own answers, largest dose",
    "d": "short answers from templates",
}
"""Treatment of the LLM, by variant."""


def read_rates(folder: Path) -> list[Rate]:
    """Return the saved measurements; an empty list if there are none."""
    path = folder / MEASUREMENTS
    return [Rate(**row) for row in json.loads(path.read_text(encoding="utf-8"))] if path.exists() else []


def record(folder: Path, new: Sequence[Rate], recipe) -> None:
    """Replace the measurements of the same variants and splits, and rewrite the card.

    Args:
        folder: folder with the weights that ship.
        new: measurements.
        recipe: the recipe of the training.
    """
    renewed = {(rate.variant, rate.split) for rate in new}
    rates = [rate for rate in read_rates(folder) if (rate.variant, rate.split) not in renewed]
    order = list(MEANINGS)
    rates = sorted([*rates, *new], key=lambda rate: (rate.split, order.index(rate.variant)))
    text = json.dumps([asdict(rate) for rate in rates], indent=1)
    (folder / MEASUREMENTS).write_text(text + "\n", encoding="utf-8")
    hashes = {path.name: file_hash([path]) for path in sorted(folder.glob("*.safetensors"))}
    CARD.write_text(write_card(rates, recipe, hashes), encoding="utf-8")


def write_card(rates: Sequence[Rate], recipe, hashes: Mapping[str, str]) -> str:
    """Return the card in Markdown.

    Args:
        rates: measurements of all variants.
        recipe: the recipe of the training.
        hashes: hashes of the files that ship, by name.
    """
    splits = dict.fromkeys(rate.split for rate in rates)
    missed = [
        f"- {rate.variant}, {rate.split}, {rate.name}: {rate.value:.2f} instead of {target.wanted}"
        for rate in rates
        for target in TARGETS
        if target.name == rate.name and rate.variant != BASE and not target.holds(rate.value, _of_base(rates, rate))
    ]
    return TEXT.format(
        alias=llava_qwen.ALIAS,
        default=llava_qwen.DEFAULT,
        base=base_model.BASE.name,
        base_hash=base_model.BASE.sha256,
        variants="\n".join(f"- `{name}`: {text}" for name, text in MEANINGS.items() if name != BASE),
        tables="\n\n".join(f"### Split {split}\n\n{_table(rates, split)}" for split in splits),
        missed="\n".join(missed) or "- none",
        hashes="\n".join(f"- `{name}`: {value}" for name, value in hashes.items()),
        recipe=json.dumps(asdict(recipe), indent=2),
    )


def _of_base(rates: Sequence[Rate], rate: Rate) -> float | None:
    """Return the same rate of the untouched LLM."""
    return next((r.value for r in rates if (r.variant, r.split, r.name) == (BASE, rate.split, rate.name)), None)


def _table(rates: Sequence[Rate], split: str) -> str:
    rates = [rate for rate in rates if rate.split == split]
    variants, targets = dict.fromkeys(rate.variant for rate in rates), {target.name: target for target in TARGETS}
    cells = {(rate.variant, rate.name): rate for rate in rates}
    lines = [f"| | target | {' | '.join(variants)} |", "|---" * (2 + len(variants)) + "|"]
    for name in dict.fromkeys(rate.name for rate in rates):
        row = [name, targets[name].wanted if name in targets else ""]
        lines.append(f"| {' | '.join([*row, *(_cell(cells.get((variant, name))) for variant in variants)])} |")
    return "\n".join(lines)


def _cell(rate: Rate | None) -> str:
    if rate is None:
        return ""
    interval = "" if rate.ci_low is None else f" [{rate.ci_low:.2f}, {rate.ci_high:.2f}]"
    return f"{rate.value:.2f}{interval}, n = {rate.n}"


TEXT = """\
# {alias}

A LLaVA on an LLM whose safety others trained: Qwen2.5-Coder-0.5B-Instruct, by Alibaba Cloud. Its refusals are its
makers'. Added here: a vision tower of a few million parameters that reads printed English and sees simple scenes, a
projector, and, in some variants, low-rank updates of the LLM. `vlm-guard model get {alias}` builds it.

The LLM comes from a file with 4-bit weights (`{base}`, SHA-256
`{base_hash}`), which are
converted to bfloat16: its answers are those of the quantised model, not of the original one.

## Variants

Variants differ in what was done to the LLM after vision tower and projector had been trained.
`{alias}` alone means `{alias}:{default}`.

{variants}

No lesson contains a harmful request with compliance, or a refusal. Harmful words occur in transcriptions alone.

## Measurements

Rates with 95 % Wilson intervals. Requests are the project's own ({alias} was trained on none of them): of each pair one
is harmful and one is not, with the same verb and mostly the same words. Refusals are judged by keywords. An answer is
on topic if the untouched LLM finds it likelier after its own request than after four others; benign instructions count
as followed if they are not refused and the answer is on topic. Recipes and targets were developed on validation.
Refusals with a picture were measured, not aimed at: no variant was chosen by them.

{tables}

Missed targets:

{missed}

## Limits

Half a billion parameters, 4-bit weights, and eyes of ours that see nothing but print, simple drawings and noise. As
text, the LLM refuses many of the harmless requests, which share their words with harmful ones: its judgement goes by
words. What holds on this model is shown on *a* real aligned LLM; it says little about larger ones.

## Licence

Qwen2.5-Coder-0.5B-Instruct: Copyright Alibaba Cloud, Apache License, Version 2.0
(https://www.apache.org/licenses/LICENSE-2.0). The weights of the LLM are not part of this repository. Changes to it:
conversion to bfloat16, and the low-rank updates of the variants c1 to d.

## Files

{hashes}

## Recipe

`python -m studies.llava_qwen` trains and measures the model again.

```json
{recipe}
```
"""
