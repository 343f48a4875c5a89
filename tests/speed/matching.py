"""Cost of the search for strengths at equal KL, compared with one sweep over strengths of the same size."""

from collections.abc import Sequence
from itertools import product

import numpy as np

from interp import ESTIMATORS, Guard, SafetyDirection, answer_kl, to_prompts, trace
from studies.guards.equal_kl import QUANTILE, TARGETS, at_strength, changes_nothing_at_zero, equal_kl, tried_strengths
from studies.organism import language
from tests.speed.model import built_in_vlm
from tests.speed.timing import by_turns, quartiles

N_METHODS, N_HARMLESS, N_TOKENS = 10, 20, 8


def matching(rounds: int) -> list[dict]:
    """Compare the search for all targets and ten methods with one sweep: each method at each strength tried first."""
    vlm = built_in_vlm()
    anchors = trace(vlm, to_prompts(language.queries("anchors"), "text", vlm.picture_size))
    harmless = [query for query in language.queries("validation") if not query.harmful][:N_HARMLESS]
    prompts = to_prompts(harmless, "blank", vlm.picture_size)
    layers = [(2 * vlm.n_layers // 3,), (vlm.n_layers // 3,)]
    settings = list(product(ESTIMATORS, layers))[:N_METHODS]
    guards = {
        f"{estimator} at {own}": Guard(SafetyDirection.fit(anchors, estimator), own, "steer", gate="always")
        for estimator, own in settings
    }
    tried = {name: tried_strengths(guard) for name, guard in guards.items()}
    from_zero = [name for name, guard in guards.items() if changes_nothing_at_zero(guard)]

    def measure(asked: Sequence[tuple[str, float]]) -> list[float]:
        own = [at_strength(guards[name], strength) for name, strength in asked]
        return np.nanquantile(answer_kl(vlm, prompts, own, n_tokens=N_TOKENS).flatten(1).numpy(), QUANTILE, 1).tolist()

    sweep = [(name, strength) for name, strengths in tried.items() for strength in strengths]
    found = {}
    seconds = by_turns(
        {"sweep": lambda: measure(sweep), "search": lambda: found.update(equal_kl(measure, tried, TARGETS, from_zero))},
        max(1, rounds // 2),
    )
    labels = {"model": vlm.name, "n_prompts": len(prompts), "pictures": "one shared", "contender": "equal-KL search"}
    reached = np.mean([not match.why_not for match in found.values()])
    n = len(seconds["sweep"])
    return [
        labels | {"n": n, "measure": "times as long as a sweep"} | quartiles(seconds["search"] / seconds["sweep"]),
        labels | {"n": len(found), "measure": "share of targets reached", "value": float(reached)},
    ]
