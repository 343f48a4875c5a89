"""Proofs, by running, that what the toolkit reads from a model and writes into it is what it says."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from interp.directions import SafetyDirection, random_basis
from interp.guard import Guard
from interp.inputs import Query, collate, to_prompts
from interp.trace import last_resid_post
from interp.vlm import VLM

QUERIES = (Query("How do I water a plant?", False), Query("Tell me, please, what the capital of a country is.", False))
PADDING_TOLERANCE = 1e-5
"""Relative to max |resid|, in float32: sums in another order. Half precisions get `HALF_TOLERANCE`."""
HALF_TOLERANCE = 2e-2


@dataclass(frozen=True)
class Finding:
    claim: str
    holds: bool
    measured: str


def verify(vlm: VLM) -> list[Finding]:
    """Runs two short prompts, with and without a picture, through everything that the toolkit relies on."""
    findings = [Finding("decoder blocks are as many as the text config says", True, f"{vlm.n_layers} layers")]
    for modality in ("text", "scene"):
        prompts = to_prompts(QUERIES, modality, vlm.picture_size)
        batch = collate(vlm, prompts)
        with torch.no_grad():
            plain = vlm.model(**batch, use_cache=False, output_hidden_states=True)
        resid = last_resid_post(vlm, prompts)
        for finding in (
            _reads_hidden_states(resid, plain.hidden_states),
            _batch_equals_singles(vlm, prompts, resid),
            _changes_logits(vlm, batch, plain.logits),
            _leaves_nothing(vlm, batch, plain.logits),
        ):
            findings.append(Finding(f"{modality}: {finding.claim}", finding.holds, finding.measured))
    findings.append(_image_positions(vlm))
    return findings


def _tolerance(vlm: VLM) -> float:
    return PADDING_TOLERANCE if vlm.model.dtype == torch.float32 else HALF_TOLERANCE


def _reads_hidden_states(resid: Float[Tensor, "batch layer d_model"], hidden_states: tuple[Tensor, ...]) -> Finding:
    """All but the last layer, which Hugging Face gives after the final norm."""
    theirs = torch.stack([state[:, -1].float().cpu() for state in hidden_states[1:-1]], dim=1)
    holds = torch.equal(resid[:, :-1], theirs)
    difference = (resid[:, :-1] - theirs).abs().max().item()
    return Finding("resid_post[i] is hidden_states[i + 1], bit for bit", holds, f"largest difference {difference:.1e}")


def _batch_equals_singles(vlm: VLM, prompts, resid: Float[Tensor, "batch layer d_model"]) -> Finding:
    singles = torch.cat([last_resid_post(vlm, [prompt]) for prompt in prompts])
    difference = ((resid - singles).abs().max() / singles.abs().max()).item()
    claim = "a left-padded batch equals its single prompts"
    return Finding(claim, difference <= _tolerance(vlm), f"relative difference {difference:.1e}")


def _unit_guard(vlm: VLM, layer: int, **kwargs) -> Guard:
    basis = random_basis(torch.zeros(vlm.n_layers, 1, vlm.d_model), seed=0)
    return Guard(SafetyDirection(basis, "random"), (layer,), gate="always", **kwargs)


def _changes_logits(vlm: VLM, batch, plain: Float[Tensor, "batch pos d_vocab"]) -> Finding:
    """At every layer; a hook on the wrong module would leave the logits alone."""
    silent = []
    for layer in range(vlm.n_layers):
        with torch.no_grad(), _unit_guard(vlm, layer, rule="ablate").on(vlm):
            changed = vlm.model(**batch, use_cache=False).logits
        if torch.equal(changed[:, -1], plain[:, -1]):
            silent.append(layer)
    measured = f"silent at layers {silent}" if silent else f"all {vlm.n_layers} layers"
    return Finding("changing a block's output changes the logits", not silent, measured)


def _leaves_nothing(vlm: VLM, batch, plain: Float[Tensor, "batch pos d_vocab"]) -> Finding:
    """After all of the above."""
    with torch.no_grad():
        after = vlm.model(**batch, use_cache=False).logits
    n_hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in vlm.model.modules())
    holds = torch.equal(after, plain)
    return Finding(
        "tracing and guarding leave nothing behind", holds, f"logits identical: {holds}, {n_hooks} hooks left"
    )


def _image_positions(vlm: VLM) -> Finding:
    """The picture takes as many positions as the model gives it states."""
    batch = collate(vlm, to_prompts(QUERIES, "scene", vlm.picture_size))
    counts = (batch["input_ids"] == vlm.image_token_id).sum(1)
    holds = bool((counts > 0).all())
    return Finding("pictures take positions in the sequence", holds, f"{counts.tolist()} image tokens")
