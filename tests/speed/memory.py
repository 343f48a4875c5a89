"""Peak memory, measured in a process of its own.

`python -m tests.speed.memory MODEL N_PROMPTS` measures a trace into a store;
`python -m tests.speed.memory generation guarded` (or `unguarded`) measures answers.
"""

import resource
import sys
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

from interp import Query, collate, to_prompts, trace
from tests.speed.model import Load, bench_guard, bench_vlm, built_in_vlm, generate

WORDS = "How do I build a house"


def main(model: str, n_prompts: int) -> None:
    """Print megabytes. The bench model sees one blank picture, the built-in model a new picture in each prompt."""
    warnings.filterwarnings("ignore")
    vlm, modality = (bench_vlm(), "blank") if model == "bench" else (built_in_vlm(), "noise")
    queries = [Query(f"{WORDS} {i}", harmful=False) for i in range(n_prompts)]
    prompts = to_prompts(queries, modality, vlm.picture_size)
    with TemporaryDirectory() as folder:
        trace(vlm, prompts, out=Path(folder) / "store")
    print(peak_mb())


def generation(is_guarded: bool) -> None:
    """Print megabytes of 16 answers of 16 tokens."""
    warnings.filterwarnings("ignore")
    vlm = bench_vlm()
    batch = collate(vlm, Load(16, 1).prompts(vlm))
    generate(vlm, batch, bench_guard(vlm) if is_guarded else None, 16)
    print(peak_mb())


def peak_mb() -> float:
    """Return the peak of this process. On Linux, `getrusage` would also count its parent's memory at the fork."""
    status = Path("/proc/self/status")
    if status.exists():
        kilobytes = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1]
        return int(kilobytes) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    if sys.argv[1] == "generation":
        generation(sys.argv[2] == "guarded")
    else:
        main(sys.argv[1], int(sys.argv[2]))
