"""The card of a model that is built, from the measurements of its variants and the recipe alone."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from studies.bookkeeping.provenance import file_hash
from studies.llava_qwen.built_model import BuiltModel
from studies.llava_qwen.evaluation import BASE, KEPT, TARGETS, CapabilityTarget, Rate

CARD = "README.md"
MEASUREMENTS = "measurements.json"


@dataclass(frozen=True)
class CardTexts:
    """Texts of a card around its measurements."""

    about: str
    variants: str
    """How variants differ."""
    lessons: str
    """The kinds of lessons that there are not."""
    limits: str
    licence: str


def read_rates(folder: Path) -> list[Rate]:
    """Return the saved measurements; an empty list if there are none."""
    path = folder / MEASUREMENTS
    return [Rate(**row) for row in json.loads(path.read_text(encoding="utf-8"))] if path.exists() else []


def record(model: BuiltModel, texts: CardTexts, new: Sequence[Rate], recipe) -> None:
    """Replace the measurements of the same variants and splits, and rewrite the card, next to the weights' folder.

    Args:
        model: the model that was measured.
        texts: the card's texts around the measurements.
        new: measurements.
        recipe: the recipe of the training.
    """
    folder = model.weights
    renewed = {(rate.variant, rate.split) for rate in new}
    rates = [rate for rate in read_rates(folder) if (rate.variant, rate.split) not in renewed]
    order = [BASE, *model.variants]
    rates = sorted([*rates, *new], key=lambda rate: (rate.split, order.index(rate.variant)))
    text = json.dumps([asdict(rate) for rate in rates], indent=1)
    (folder / MEASUREMENTS).write_text(text + "\n", encoding="utf-8")
    hashes = {path.name: file_hash([path]) for path in sorted(folder.glob("*.safetensors"))}
    card = write_card(model, texts, rates, recipe, hashes)
    folder.with_name(CARD).write_text(card, encoding="utf-8")


def write_card(model: BuiltModel, texts: CardTexts, rates: Sequence[Rate], recipe, hashes: Mapping[str, str]) -> str:
    """Return the card in Markdown.

    Args:
        model: the model.
        texts: the card's texts around the measurements.
        rates: measurements of all variants.
        recipe: the recipe of the training.
        hashes: hashes of the files that ship, by name.
    """
    splits = dict.fromkeys(rate.split for rate in rates)
    missed = [
        f"- {rate.variant}, {rate.split}, {rate.name}: {rate.value:.2f} instead of {target.wanted}"
        for rate in rates
        for target in targets_of(model)
        if target.name == rate.name and rate.variant != BASE and not target.holds(rate.value, _of_base(rates, rate))
    ]
    return TEXT.format(
        model=model,
        texts=texts,
        package=model.weights.parent.name,
        variants="\n".join(f"- `{name}`: {text}" for name, text in model.shipped.items()),
        tables="\n\n".join(f"### Split {split}\n\n{_table(rates, split, targets_of(model))}" for split in splits),
        missed="\n".join(missed) or "- none",
        hashes="\n".join(f"- `{name}`: {value}" for name, value in hashes.items()),
        recipe=json.dumps(asdict(recipe), indent=2),
    )


def targets_of(model: BuiltModel) -> tuple[CapabilityTarget, ...]:
    """Return the targets of a model: where the LLM is aligned here, it has no behaviour that should be kept."""
    return TARGETS if model.own_alignment else (*KEPT, *TARGETS)


def _of_base(rates: Sequence[Rate], rate: Rate) -> float | None:
    """Return the same rate of the untouched LLM."""
    return next((r.value for r in rates if (r.variant, r.split, r.name) == (BASE, rate.split, rate.name)), None)


def _table(rates: Sequence[Rate], split: str, targets: Sequence[CapabilityTarget]) -> str:
    rates = [rate for rate in rates if rate.split == split]
    variants, targets = dict.fromkeys(rate.variant for rate in rates), {target.name: target for target in targets}
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
# {model.alias}

{texts.about} `vlm-guard model get {model.alias}` builds it.

The LLM comes from a file with 4-bit weights (`{model.base.name}`, SHA-256
`{model.base.sha256}`), which are
converted to bfloat16: its answers are those of the quantised model, not of the original one.

## Variants

{texts.variants}
`{model.alias}` alone means `{model.alias}:{model.default}`.

{variants}

{texts.lessons}

## Measurements

Rates with 95 % Wilson intervals. Requests are the project's own: of each pair one is harmful and one is not, with the
same verb and mostly the same words. Refusals are judged by keywords. An answer is on topic if the aligned LLM finds it
likelier after its own request than after four others; benign instructions count as followed if they are not refused and
the answer is on topic. Recipes and targets were developed on validation. Refusals with a picture were measured, not
aimed at: no variant was chosen by them. *Base LLM* is the LLM as it came, which sees no picture.

{tables}

Missed targets:

{missed}

## Limits

{texts.limits}

## Licence

{texts.licence}

## Files

{hashes}

## Recipe

`python -m studies.{package}` trains and measures the model again.

```json
{recipe}
```
"""
