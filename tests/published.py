"""Location of the published benchmark files, laid out as their authors do; the project ships none."""

import os
from pathlib import Path

_SHARED = Path(__file__).parents[2] / "shared" / "data"
BENCHMARKS = Path(os.environ.get("VLM_GUARD_BENCHMARKS", _SHARED if _SHARED.is_dir() else "benchmarks"))
NO_BENCHMARKS = f"the published benchmark files are not in {BENCHMARKS.name}; set VLM_GUARD_BENCHMARKS"
CASES = Path(os.environ.get("VLM_GUARD_CASES", _SHARED.parent / "cases" / "data"))
