import pytest

from interp.estimators import ESTIMATORS
from interp.projection import RULES


@pytest.fixture(scope="module")
def thin_grid():
    """Shrink the grid of readings for tests of other things; `test_readings` runs all of it."""
    with pytest.MonkeyPatch.context() as patch:
        for name, values in {
            "RULES": {name: RULES[name] for name in ("ablate", "substitute", "add_reference")},
            "ESTIMATORS": {name: ESTIMATORS[name] for name in ("paired_svd", "mean_diff")},
            "POSITIONS": ("last_prefill",),
            "RANKS": (1,),
            "SEEDS": (0, 1),
            "STRENGTHS": (1.0, 2.0),
        }.items():
            for module in ("anchor_fits", "readings_grid"):
                patch.setattr(f"studies.guards.{module}.{name}", values, raising=False)
        yield
