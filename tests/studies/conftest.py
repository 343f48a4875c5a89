import pytest

from interp.estimators import ESTIMATORS
from interp.projection import RULES


@pytest.fixture(scope="module")
def thin_grid():
    """Shrink the grid of readings and the random directions for tests of other things; theirs run all of them."""
    with pytest.MonkeyPatch.context() as patch:
        for name, values in {
            "RULES": {name: RULES[name] for name in ("ablate", "substitute", "add_reference")},
            "ESTIMATORS": {name: ESTIMATORS[name] for name in ("paired_svd", "mean_diff")},
            "POSITIONS": ("last_prefill",),
            "RANKS": (1,),
            "SHUFFLES": (0, 1),
            "STRENGTHS": (1.0, 2.0),
        }.items():
            for module in ("anchor_fits", "readings_grid"):
                patch.setattr(f"studies.guards.{module}.{name}", values, raising=False)
        patch.setattr("studies.guards.random_directions.N_DRAWS", 20)
        yield
