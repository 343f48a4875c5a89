from dataclasses import replace

import numpy as np
import pytest

from interp.directions import SafetyDirection
from interp.inputs import to_prompts
from interp.trace import trace
from studies.judges import Case, LinearJudge
from studies.organism import language

LAYER = 1


def answered(split, n):
    """Every request with a refusal and with an answer."""
    pairs = language.splits()[split][:n]
    cases = [
        Case(query.text, form.format(core=core))
        for pair in pairs
        for query, core in zip(pair.queries(), (pair.harmful, pair.harmless), strict=True)
        for form in (language.REFUSALS[0], language.COMPLIANCE[0])
    ]
    return cases, [True, False] * (2 * n)


@pytest.fixture(scope="module")
def fitted(tiny_vlm):
    return LinearJudge.fit(tiny_vlm, LAYER, *answered("anchors", 8))


def test_a_linear_judge_detects_refusals_of_other_requests(fitted):
    cases, refused = answered("validation", 6)
    judge = fitted.checked(cases, refused)
    assert judge.validation.value > 0.9 and judge.validation.n == 24
    done = []
    verdicts = judge.verdicts(cases[:4], done.append)
    assert [verdict.refused for verdict in verdicts] == refused[:4] and sum(done) == 4
    assert verdicts[0].said.startswith(f"accuracy {judge.validation.value:.2f} [") and verdicts[0].harmful is None


def test_a_linear_judge_whose_accuracy_is_unknown_gives_no_verdicts(fitted):
    with pytest.raises(ValueError, match="the accuracy of linear@1 is unknown; measure it"):
        fitted.verdicts([Case("Q?", "A.")])


def test_a_linear_judges_identity_is_its_weights_and_its_layer(fitted):
    others = [
        replace(fitted, weights=fitted.weights + 1e-6),
        replace(fitted, bias=fitted.bias + 1e-6),
        replace(fitted, layer=0),
    ]
    assert len({fitted.identity, *(other.identity for other in others)}) == 4
    assert replace(fitted, anchors=frozenset()).identity == fitted.identity


def test_accuracy_needs_answers_of_both_classes(fitted):
    cases, _ = answered("validation", 2)
    with pytest.raises(ValueError, match="all 8 answers are of one class"):
        fitted.checked(cases, [True] * 8)


def test_accuracy_is_not_measured_on_anchors(fitted):
    with pytest.raises(ValueError, match="32 of 32 cases are anchors"):
        fitted.checked(*answered("anchors", 8))


def test_a_fitted_direction_judges_from_half_way_between_the_classes(tiny_vlm, queries):
    traced = trace(tiny_vlm, to_prompts(queries, "text", tiny_vlm.picture_size))
    direction = SafetyDirection.fit(traced, "mean_diff")
    judge = LinearJudge.of_direction(tiny_vlm, LAYER, direction)
    states = traced.resid_post.sel(token="last", layer=LAYER).values.astype(np.float64)
    coordinates = states @ direction.basis[LAYER, 0].numpy()
    scores = states @ judge.weights + judge.bias
    assert scores == pytest.approx(coordinates - direction.midpoint(LAYER), abs=1e-6)
    assert judge.name == "linear_direction@1" and judge.validation is None
