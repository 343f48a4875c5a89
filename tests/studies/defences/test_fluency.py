"""Fluency is measured where a guard changes answers that stay answers."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from studies.defences.arms import arms_of
from studies.defences.fluency import changed_rows, geometric_mean
from studies.defences.ranking import table_rows
from studies.generation.generate import perplexities
from tests.studies.defences.test_rates import JUDGE, judged, named

GUARD = named("guard", "guard")


def said(i, answer, refused=False, coherent=True, **changed):
    record = replace(judged(i, i < 5, refused, **changed), answer=answer)
    record.verdicts[JUDGE]["coherent"] = None if refused else coherent
    return record


def arms(*rows):
    """The unguarded and the guarded arm, from (answer, guarded answer, changes of the guarded record) by prompt."""
    plain = [said(i, before) for i, (before, *_) in enumerate(rows)]
    guarded = [
        said(i, after, **GUARD, **(changed[0] if changed else {})) for i, (_, after, *changed) in enumerate(rows)
    ]
    return arms_of([*plain, *guarded])


ROWS = (
    ("Sure one.", "Sure one."),
    ("Sure two.", "I'm sorry.", {"refused": True}),
    ("Sure three.", "Well three."),
    ("Sure four.", "four four four", {"coherent": False}),
    ("Sure five.", "Sure five."),
    ("Yes one.", "Yes one."),
    ("Yes two.", "Maybe two."),
    ("Yes three.", "I'm sorry.", {"refused": True}),
)
"""Five harmful requests, of which four are answered both times, two of them differently; three harmless ones, of which
two are answered both times, one differently."""


def by_key(rows):
    return {(row["metric"], row["category"]): row for row in rows}


def test_only_changed_answers_that_stay_answers_count():
    plain, guarded = arms(*ROWS)
    fluency = {(record.request, record.answer): 2.0 for arm in (plain, guarded) for record in arm.answers}
    fluency[guarded.answers[2].request, "Well three."] = 8.0
    fluency[guarded.answers[3].request, "four four four"] = 4.0
    rows = by_key(changed_rows(guarded, plain, fluency, JUDGE))
    share, ratio, coherence = (
        rows[f"changed_{name}", "harmful"] for name in ("share", "perplexity_ratio", "coherence")
    )
    assert (share["value"], share["n"]) == (0.5, 4) and (coherence["value"], coherence["n"]) == (0.5, 2)
    # Guarded over unguarded, paired: 4 and 2.
    assert ratio["value"] == pytest.approx(8**0.5) and ratio["n"] == 2
    assert (rows["changed_share", "harmless"]["value"], rows["changed_share", "harmless"]["n"]) == (0.5, 2)
    assert (
        rows["changed_perplexity_ratio", "harmless"]["value"] == 1 and rows["changed_coherence", "harmless"]["n"] == 1
    )


def test_a_guard_that_changes_nothing_has_no_fluency():
    """Before, perplexity was averaged over answers that the guard had left alone."""
    plain, guarded = arms(*((before, before) for before, *_ in ROWS))
    rows = by_key(changed_rows(guarded, plain, {}, JUDGE))
    assert rows["changed_share", "harmful"]["value"] == rows["changed_share", "harmless"]["value"] == 0
    for metric in ("changed_perplexity_ratio", "changed_coherence"):
        assert np.isnan(rows[metric, "harmful"]["value"]) and rows[metric, "harmful"]["n"] == 0


def test_the_interval_of_a_ratio_is_that_of_its_logarithm():
    ratios = np.random.default_rng(0).lognormal(0.2, 0.5, 30)
    row = geometric_mean("changed_perplexity_ratio", [*ratios, np.nan])
    interval = ttest_1samp(np.log(ratios), 0).confidence_interval()
    assert row["value"] == pytest.approx(np.exp(np.log(ratios).mean())) and row["n"] == 30
    assert (row["ci_low"], row["ci_high"]) == pytest.approx((np.exp(interval.low), np.exp(interval.high)))


def test_guards_have_these_rows_and_other_defences_do_not(tiny_vlm):
    others = {"guard_always": "control", "reminder": "prompt"}
    plain = [said(i, f"Sure {i}.") for i in range(8)]
    changed = [
        said(i, f"Well {i}.", **named(name, kind))
        for name, kind in (others | {"guard": "guard"}).items()
        for i in range(8)
    ]
    rows = [row for row in table_rows([*plain, *changed], [JUDGE], tiny_vlm) if row["metric"].startswith("changed_")]
    assert {row["defence"] for row in rows} == {"guard", "guard_always"} and len(rows) == 2 * 2 * 3
    (row,) = [
        r
        for r in rows
        if (r["defence"], r["metric"], r["category"]) == ("guard", "changed_perplexity_ratio", "harmful")
    ]
    requests = [record.request for record in plain[:5]]
    after, before = (perplexities(tiny_vlm, requests, [f"{word} {i}." for i in range(5)]) for word in ("Well", "Sure"))
    assert row["value"] == pytest.approx((after / before).log().mean().exp().item(), rel=1e-4)
