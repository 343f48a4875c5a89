"""Peak memory of a trace into a store, in a process of its own: `python -m tests.speed.memory MODEL N_PROMPTS`."""

import resource
import sys
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

from interp import Query, to_prompts, trace
from tests.speed.model import bench_vlm, built_in_vlm

WORDS = "How do I build a house"


def main(model: str, n_prompts: int) -> None:
    """Prints megabytes. The bench model sees one blank picture, the built-in model a new one in each prompt."""
    warnings.filterwarnings("ignore")
    vlm, modality = (bench_vlm(), "blank") if model == "bench" else (built_in_vlm(), "noise")
    queries = [Query(f"{WORDS} {i}", harmful=False) for i in range(n_prompts)]
    prompts = to_prompts(queries, modality, vlm.picture_size)
    with TemporaryDirectory() as folder:
        trace(vlm, prompts, out=Path(folder) / "store")
    print(peak_mb())


def peak_mb() -> float:
    """Of this process. On Linux `getrusage` also counts what its parent had when it was forked."""
    status = Path("/proc/self/status")
    if status.exists():
        kilobytes = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1]
        return int(kilobytes) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
