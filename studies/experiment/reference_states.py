"""Reference texts and their states, read and traced once per run."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from interp import Prompt, text_prompt, trace
from interp.identity import fingerprint
from studies.bookkeeping.checkpoints import Checkpoints
from studies.bookkeeping.progress import phase
from studies.experiment.experiment import Experiment
from studies.generation.reference_texts import reference_texts


@dataclass(frozen=True)
class Reference:
    """The reference text of each prompt, and its last-token states in the text-only model."""

    texts: list[str]
    states: Float[Tensor, "prompt layer d_model"]


def read_references(
    experiment: Experiment, prompts: Sequence[Prompt], reference: str, source: str = "vlm_text"
) -> Reference:
    """Trace the reference of each prompt, reading its picture first if the reference requires it.

    Args:
        experiment: model, settings and output folder.
        prompts: the prompts that a guard will act on.
        reference: kind of reference, see `studies.generation.reference_texts`.
        source: whose states to return: the VLM's own LLM (`vlm_text`), or the original aligned LLM (`llm`).
    """
    texts = _texts_once(experiment, prompts, reference)
    text_prompts = [text_prompt(text) for text in texts]
    if source == "vlm_text":
        traced = experiment.traced(text_prompts, f"trace references, {reference}")
    else:
        traced = trace(experiment.scorer, text_prompts, batch_size=experiment.config.generation.batch_size)
    return Reference(texts, torch.from_numpy(traced.resid_post.sel(token="last").values))


def _texts_once(experiment: Experiment, prompts: Sequence[Prompt], reference: str) -> list[str]:
    """Return the reference texts; what was read in pictures is saved, since reading takes a generation per picture."""
    vlm, generation = experiment.vlm, experiment.config.generation
    if reference in ("prompt_text", "oracle"):
        return reference_texts(vlm, prompts, reference, generation)
    depends_on = {
        "prompts": fingerprint(vlm, prompts),
        "generation": vlm.model.generation_config.to_diff_dict(),
        "how": asdict(generation),
    }
    checkpoints = Checkpoints(Path(experiment.config.out) / "references", depends_on)
    texts = checkpoints.read_texts(reference)
    if texts is None:
        with phase(f"read pictures, {reference}", sum(bool(prompt.pictures) for prompt in prompts)) as report:
            texts = reference_texts(vlm, prompts, reference, generation, report)
        checkpoints.write_texts(reference, texts)
    return texts
