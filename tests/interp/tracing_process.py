"""A trace for processes that `test_kills` kills."""

import warnings

from interp.inputs import MODALITIES, Query, to_prompts
from interp.trace import trace
from interp.vlm import VLM


def main(folder: str, out: str, n_prompts: int, batch_size: int) -> None:
    warnings.filterwarnings("ignore")
    vlm = VLM.from_pretrained(folder, device="cpu")
    queries = [Query(f"How do I build {'a ' * i}house?", harmful=bool(i % 2)) for i in range(n_prompts // 6)]
    prompts = [prompt for modality in MODALITIES for prompt in to_prompts(queries, modality, vlm.picture_size)]
    trace(
        vlm,
        prompts,
        sites=("resid_post", "projector_out"),
        tokens=("last", "text_mean"),
        out=out,
        batch_size=batch_size,
    )
