"""States of the references, traced from the text-only model."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from interp.activations import fingerprint
from interp.inputs import Prompt, text_prompt
from interp.trace import trace
from studies.bookkeeping.checkpoints import Checkpoints
from studies.bookkeeping.progress import phase
from studies.experiment.experiment import Experiment
from studies.generation.reference_texts import reference_texts


@dataclass(frozen=True)
class Reference:
    """What the VLM's own LLM, without a picture, makes of the reference text of each prompt."""

    texts: list[str]
    states: Float[Tensor, "prompt layer d_model"]


def read_references(
    material: Experiment, prompts: Sequence[Prompt], reference: str, source: str = "vlm_text"
) -> Reference:
    """Reads pictures first where the reference asks for it; never inside a hook.

    Args:
        source: whose states they are: the VLM's own, or those of the aligned LLM (`llm`).
    """
    how = material.config.generation
    texts = _read_once(material, prompts, reference)
    shown = [text_prompt(text) for text in texts]
    if source == "vlm_text":
        traced = material.traced(shown, f"trace references, {reference}")
    else:
        traced = trace(material.scorer, shown, batch_size=how.batch_size)
    return Reference(texts, torch.from_numpy(traced.resid_post.sel(token="last").values))


def _read_once(material: Experiment, prompts: Sequence[Prompt], reference: str) -> list[str]:
    """Reading a picture is a generation of its own: what was read is kept."""
    vlm, how = material.vlm, material.config.generation
    if reference in ("prompt_text", "oracle"):
        return reference_texts(vlm, prompts, reference, how)
    about = {"prompts": fingerprint(vlm, prompts), "generation": vlm.model.generation_config.to_diff_dict()}
    pieces = Checkpoints(Path(material.config.out) / "references", about | {"how": asdict(how)})
    texts = pieces.read_texts(reference)
    if texts is None:
        with phase(f"read pictures, {reference}", sum(bool(prompt.pictures) for prompt in prompts)) as report:
            texts = reference_texts(vlm, prompts, reference, how, report)
        pieces.write_texts(reference, texts)
    return texts
