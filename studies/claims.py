"""The paper's claims, and the verdicts on them that follow from the tables, among them `not shown`.

Only the abstract and the first paragraphs of the paper could be read. Numbers and formulas come from third-party notes,
and `Claim.theirs` says so where it holds one.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import pandas as pd

from studies.attacks import attack_claims
from studies.bookkeeping.verdict_rules import Decision, Holds
from studies.bookkeeping.verdict_words import (
    CEILING,
    NOT_SHOWN,
    NOT_TESTABLE,
    REPRODUCED,
    SHOWN,
    SHOWN_ALIGNED,
    UNDECIDED,
)
from studies.defences import defence_claims
from studies.experiment.config import BUILT_IN
from studies.guards import reading_claims, stress_claims
from studies.guards.sweep_result import SweepChoice
from studies.guards.wording import chosen_in_words
from studies.llava_qwen import QWEN
from studies.probing import separability_claims
from studies.probing.measures import MEASURES, SeparabilityMeasure

LLAVA = "llava-1.5-7b-hf"
"""The paper's own model. Only on it can a claim be `reproduced`: the built-in model was trained to show the effect."""


@dataclass(frozen=True)
class Tables:
    """Tables of a reproduction from which the claims are decided."""

    separability: pd.DataFrame
    layer_sweep: pd.DataFrame
    layer_selection: pd.DataFrame
    readings: pd.DataFrame
    defence: pd.DataFrame
    signal_path: pd.DataFrame

    @property
    def layer(self) -> int:
        """Best single layer of the sweep, on validation: where the guard looks, and claims about its direction too."""
        return SweepChoice.read(self.layer_sweep).layer

    @property
    def probe_layer(self) -> int:
        """Layer where a probe within a picture modality is best on validation. It means something without a gap too.

        Raises:
            LookupError: layer selection measured no such probe.
        """
        rows = self.layer_selection
        if "selection_rule" in rows:
            rows = rows[(rows.setting == "criterion") & (rows.selection_rule == "probe_auroc")]
        if rows.empty or rows.value.isna().all():
            raise LookupError("layer selection has no criterion probe_auroc")
        return int(rows.layer[rows.value.idxmax()])


@dataclass(frozen=True)
class Claim:
    """One claim of the paper, and how it is decided."""

    name: str
    theirs: str
    """The paper's number as far as it is known, and where it is known from."""
    decide: Callable[[Tables], Decision]
    guard: Callable[[Tables], str] = lambda tables: ""
    """Names the guard that the claim is about, in full; empty if it is about none."""


@dataclass(frozen=True)
class ClaimVerdict:
    """A claim with the paper's number, ours, and the verdict: a row of `claims.csv`."""

    claim: str
    theirs: str
    ours: str
    verdict: str
    guard: str = ""
    """The guard that the claim is about, in full."""

    def _repr_markdown_(self) -> str:
        guard = f"\n- guard: {self.guard}" if self.guard else ""
        return f"- verdict: **{self.verdict}**\n- ours: {self.ours}\n- theirs: {self.theirs}{guard}"


def _separability_claims(name: str, theirs: str, modality: str) -> Iterator[Claim]:
    """Yield a claim for each measure, which its name says."""
    for measure in MEASURES:
        yield Claim(f"{name}: {measure.name}", theirs, partial(_is_lost, modality=modality, measure=measure))


def _is_lost(tables: Tables, modality: str, measure: SeparabilityMeasure) -> Decision:
    return separability_claims.is_lost(tables.separability, tables.layer, modality, measure)


REFERENCES = {
    "prompt_text": "with the paper's own reference (prompt_text)",
    "transcription": "with a transcription of the picture",
}
"""Kinds of reference that claims about the guard are decided with, and how their names say so."""


def _guard_claims(name: str, theirs: str, decide: Callable[[pd.DataFrame, str], Decision]) -> Iterator[Claim]:
    """Yield a claim for each kind of reference, which its name says."""
    for reference, words in REFERENCES.items():
        is_own = reference == "prompt_text"
        yield Claim(
            f"{name}, {words}" if is_own else f"(beyond the paper) {name}, {words}",
            theirs if is_own else "not reported",
            partial(_decide_on_defences, decide=decide, reference=reference),
            partial(_chosen, reference=reference),
        )


def _decide_on_defences(tables: Tables, decide: Callable[[pd.DataFrame, str], Decision], reference: str) -> Decision:
    return decide(tables.defence, reference)


def _chosen(tables: Tables, reference: str | None = None) -> str:
    return chosen_in_words(tables.layer_sweep, reference)


CLAIMS = (
    Claim(
        "harmful and harmless are separable as text: AUROC of a probe",
        "a plot, as described",
        lambda tables: separability_claims.separable_as_text(tables.separability, tables.probe_layer),
    ),
    *_separability_claims("an image blurs them", "a plot, as described", "blank"),
    *_separability_claims("(beyond the paper) a request inside a picture is blurred", "not reported", "typographic"),
    Claim(
        "an image lowers refusal: attack success without a defence",
        "described as 15 % as text, 34 % with a blank image (one third-party note; data set not stated)",
        lambda tables: defence_claims.lowers_refusal(tables.defence),
    ),
    *_guard_claims(
        "the guard lowers attack success by more than it raises over-refusal",
        "described as lowest in three settings",
        defence_claims.lowers_attack_success,
    ),
    *_guard_claims(
        "the guard is below the baselines (Self-Reminder, Goal Priority) in attack success by more than it is above "
        "them in over-refusal",
        "described as lowest in three settings",
        defence_claims.beats_baselines,
    ),
    *_guard_claims(
        "the guard has less attack success than its null models, at no more over-refusal",
        "not reported",
        defence_claims.beats_null_models,
    ),
    Claim(
        "the guard keeps fluency where it changes the answer",
        "perplexity described as near the unguarded model's",
        lambda tables: defence_claims.keeps_fluency(tables.defence),
        _chosen,
    ),
    Claim(
        "(against the abstract's wording) projecting out alone lowers refusal: refusal score",
        "not reported",
        lambda tables: reading_claims.lowers_refusal(tables.readings, "ablate"),
        lambda tables: reading_claims.in_words(tables.readings, "ablate"),
    ),
    Claim(
        "the text-only LLM's own coordinate brings refusal back: refusal score",
        "formulas described in two third-party notes, which differ",
        lambda tables: reading_claims.brings_refusal_back(tables.readings, "substitute"),
        lambda tables: reading_claims.in_words(tables.readings, "substitute"),
    ),
    Claim(
        "(beyond the paper) the guard does more than random directions: refusal score",
        "not reported",
        lambda tables: reading_claims.more_than_random(tables.readings),
        _chosen,
    ),
)


class Verdicts(tuple[ClaimVerdict, ...]):
    """Verdicts on several claims, which show themselves in Jupyter one below the other."""

    def about(self, *words: str) -> "Verdicts":
        """Return the verdicts on claims whose names contain one of these words.

        Raises:
            LookupError: there are none.
        """
        found = Verdicts(verdict for verdict in self if any(each in verdict.claim for each in words))
        if not found:
            raise LookupError(f"no claim is about {' or '.join(map(repr, words))}")
        return found

    def _repr_markdown_(self) -> str:
        return "\n\n".join(f"**{verdict.claim}**\n\n{verdict._repr_markdown_()}" for verdict in self)


def verdicts(tables: Tables) -> Verdicts:
    """Return the verdict on each claim, from the tables alone; claims without their rows are `not testable here`."""
    row = tables.defence.iloc[0]
    return Verdicts(_verdict(claim, tables, str(row.model), str(row.dataset)) for claim in CLAIMS)


def _verdict(claim: Claim, tables: Tables, model: str, dataset: str) -> ClaimVerdict:
    try:
        holds, ours = claim.decide(tables)
    except LookupError as error:
        ours, word = f"no such measurement ({error})", NOT_TESTABLE
    else:
        word = verdict_word(holds, model, dataset)
    return ClaimVerdict(claim.name, claim.theirs, ours, word, claim.guard(tables))


def verdict_word(holds: Holds, model: str, dataset: str) -> str:
    """Return the verdict that a decision comes to on a model and a data set."""
    if model == BUILT_IN and dataset != BUILT_IN:
        # The built-in model knows only the words of its own queries, so numbers on other queries mean nothing.
        return NOT_TESTABLE
    if holds is None:
        return UNDECIDED
    if holds == CEILING:
        return CEILING
    if not holds:
        return NOT_SHOWN
    if model == BUILT_IN:
        return SHOWN
    if QWEN.is_meant(model):
        return SHOWN_ALIGNED
    return REPRODUCED if model == LLAVA else f"shown on {model}"


UNDER_ATTACK = "(beyond the paper) the guard holds against an attacker who knows it: attack success"
UNDER_STRESS = "(beyond the paper) the guard lowers attack success with sampled, longer and later answers too"


def attack_verdict(table: pd.DataFrame) -> ClaimVerdict:
    """Return the verdict on the claim that `vlm-guard attack` tests, from its table alone."""
    return _of_one_table(UNDER_ATTACK, attack_claims.holds, table)


def stress_verdict(table: pd.DataFrame) -> ClaimVerdict:
    """Return the verdict on the claim that `vlm-guard stress` tests, from its table alone."""
    return _of_one_table(UNDER_STRESS, stress_claims.holds, table)


def _of_one_table(claim: str, holds: Callable[[pd.DataFrame], Decision], table: pd.DataFrame) -> ClaimVerdict:
    row = table.iloc[0]
    try:
        decided, ours = holds(table)
    except LookupError as error:
        return ClaimVerdict(claim, "not reported", f"no such measurement ({error})", NOT_TESTABLE)
    return ClaimVerdict(claim, "not reported", ours, verdict_word(decided, str(row.model), str(row.dataset)))
