"""`make bench`: what tracing and guarding cost, as ratios to the plain forward pass measured beside them in one run."""

import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from interp import VLM, Guard, SafetyDirection, collate, random_basis, to_prompts
from interp.reading import last_resid_post
from studies import organism
from studies.organism import language

REPETITIONS = 15
N_PROMPTS = 16
OUT = Path("results/bench")


def alternating(contenders: dict[str, Callable[[], object]]) -> dict[str, np.ndarray]:
    """Seconds of each contender, taken by turns so that a noisy moment hits all of them."""
    seconds = {name: [] for name in contenders}
    for round_ in range(REPETITIONS + 1):
        for name, call in contenders.items():
            began = time.perf_counter()
            call()
            if round_:  # the first round warms up
                seconds[name].append(time.perf_counter() - began)
    return {name: np.array(values) for name, values in seconds.items()}


def ratios(seconds: dict[str, np.ndarray], base: str) -> pd.DataFrame:
    """Median of the ratios round by round, with its quartiles."""
    rows = []
    for name, values in seconds.items():
        low, middle, high = np.percentile(values / seconds[base], [25, 50, 75])
        rows.append(
            {"contender": name, "base": base, "ratio": middle, "q25": low, "q75": high, "seconds": np.median(values)}
        )
    return pd.DataFrame(rows)


def main() -> None:
    warnings.filterwarnings("ignore")
    vlm = VLM.from_pretrained(organism.path(), device="cpu")
    prompts = to_prompts(language.queries("validation")[:N_PROMPTS], "blank", vlm.picture_size)
    references = [prompt.text for prompt in prompts]
    guard = Guard(SafetyDirection(random_basis(torch.zeros(vlm.n_layers, 1, vlm.d_model), 0), "random"), (3,))
    batch = collate(vlm, prompts)

    @torch.no_grad()
    def forward(careful: bool):
        kwargs = {"use_cache": False, "logits_to_keep": 1} if careful else {}
        return vlm.model(**collate(vlm, prompts), output_hidden_states=True, **kwargs)

    def generate():
        return vlm.model.generate(**batch, max_new_tokens=16, min_new_tokens=16, do_sample=False)

    def guarded():
        with guard.on(vlm, references):
            return generate()

    tables = [
        ratios(
            alternating(
                {
                    "forward, careful": lambda: forward(True),
                    "forward, careless": lambda: forward(False),
                    "trace, every layer": lambda: last_resid_post(vlm, prompts),
                }
            ),
            "forward, careful",
        ),
        ratios(alternating({"generate 16 tokens": generate, "the same, guarded": guarded}), "generate 16 tokens"),
    ]
    table = pd.concat(tables, ignore_index=True)
    OUT.mkdir(parents=True, exist_ok=True)
    table.to_csv(OUT / "bench.csv", index=False, float_format="%.4g")
    print(table.to_string(index=False, float_format="%.3g"))


if __name__ == "__main__":
    main()
